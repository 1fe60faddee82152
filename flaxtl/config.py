"""Configs: a config file, its command-line overrides, and the settings that a config may leave out."""

import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from flaxtl.errors import UserError, unknown

DEFAULTS = ConfigDict(
    {
        "seed": 0,  # of split, order, augmentation, dropout and the head's first weights
        "batch_size": 32,  # images a step, over all devices
        "accum_steps": 1,  # equal parts of a batch that pass one after the other, for less memory
        "class_weights": "none",  # or balanced, or factors on the loss by class name: {'daisy': 2.0}
        "label_smoothing": 0.0,  # share of a label that the loss spreads evenly over all classes
        "deterministic": False,  # whether a GPU gives the same bits in every run, by slower kernels
        "dtype": "float32",  # or bfloat16, of the layers; parameters, last layer and loss are always float32
        "data": {
            "source": "synthetic",  # folder:PATH, archive:FILE, tfds:NAME, csv:FILE or garden
            "classes": (),  # the class names that are expected, sorted; () takes what is there
            "height": 200,  # of every image as the network sees it, in pixels
            "width": 200,  # in pixels; need not equal the height
            "resize": "squash",  # or crop: shorter side first, then the centre
            "interpolation": "bilinear",  # of the resize: nearest, bilinear, bicubic, lanczos, box or hamming
            "sampling": "shuffled",  # or balanced: every class equally often
            "fractions": {"train": 0.5, "validation": 0.2, "test": 0.3},  # of images that come without splits
            "near_duplicates": 4,  # bits of 64 by which the perceptual hashes of like images differ; -1: equal files
            "allow_leaks": False,  # whether the same image may lie in two given splits
            "on_error": "fail",  # or skip: train without the images that cannot be read
            "pipeline": "auto",  # or resident: images in device memory; or stream: from a file, by TensorFlow
        },
        "weights": {
            "path": "imagenet",  # of the base: imagenet, builtin, random or a file
        },
        "model": {
            "name": "vgg16",  # a network of the catalog
            "output_layer": "",  # the last layer of the base, '' for all of it
        },
        "head": {
            "pooling": "average_2x2",  # or global_average, global_max, none
            "units": (128,),  # of each hidden layer; () for none
            "dropout": 0.4,  # probability that a hidden unit is left out of a step
        },
        "augmentation": {
            "rotation": 0.0,  # degrees
            "height_shift": 0.0,  # fraction of the height
            "width_shift": 0.0,  # fraction of the width
            "shear": 0.0,  # degrees
            "zoom": 0.0,  # factors from 1 - zoom to 1 + zoom
            "horizontal_flip": False,  # left and right change places, every other time
            "vertical_flip": False,  # top and bottom
            "fill": "nearest",  # or constant, reflect, wrap: what lies outside the image
            "cval": 0.0,  # the constant, a grey level 0..255
            "brightness": 0.0,  # factors from 1 - brightness to 1 + brightness
            "channel_shift": 0.0,  # grey levels
            "contrast": 0.0,  # factors, as brightness
            "saturation": 0.0,  # factors, as brightness
            "hue": 0.0,  # fraction of the colour circle, at most 0.5
            "crop": 0.0,  # random-resized crops of at least this fraction of the area; 0: none
            "randaugment": 0,  # operations of RandAugment; 0: none
            "magnitude": 9.0,  # their strength, 0..10
            "erasing": 0.0,  # probability that a box is covered
            "mixup": 0.0,  # alpha of the shares' Beta distribution; 0: none
            "cutmix": 0.0,  # alpha, as of mixup: a box of another image takes its share
        },
        "optimizer": {  # every other argument of the optimizer that is named may be added
            "name": "nadam",  # Keras' own; or optax' adabelief, adam, adamw, lamb, lion, radam, rmsprop, sgd
            "b1": 0.9,  # decay of the running mean of gradients
            "b2": 0.999,  # decay of the running mean of their squares
        },
        "param_groups": (),  # pairs (name, regular expression), the first match wins; () takes the network's own
        "phases": ("frozen",),  # names, in order; each has settings of its own
        "feature_cache": {
            "views": 0,  # augmented views of each image that a frozen base is passed by once; 0: fresh in each step
            "dir": "",  # where frozen features are kept; '' for the run directory
        },
        "checkpoint": {
            "every_seconds": 60.0,  # how often a run saves its state; it also does when a phase ends or it is stopped
        },
    }
)

PHASE_DEFAULTS = ConfigDict(
    {
        "epochs": 10,  # at most, where patience ends the phase sooner
        "steps_per_epoch": 0,  # 0: one pass over the training images
        "augment": False,  # whether training images are augmented
        "lr": {},  # group -> learning rate; 0.0 is frozen; `top` is the network's own top block, whatever its name
        "schedule": "constant",  # or cosine, linear: down to 0; step: a tenth at 1/2, again at 3/4; or plateau
        "plateau_factor": 0.1,  # above 0, below 1: what a plateau multiplies the rate by, every time
        "plateau_patience": 10,  # epochs without a better metric that make a plateau
        "warmup_steps": 0,  # steps from 0 up to the rate, before the schedule
        "layer_decay": 1.0,  # above 0, up to 1: the k-th layer below the head learns at its group's rate times this**k
        "ema": 0.0,  # decay a step, below 1, of an average of what learns, which is measured and kept; 0: none
        "monitor": "validation_loss",  # what is best: watched by early stopping and schedule=plateau
        "patience": 0,  # epochs without a better metric until the phase stops; 0: never, the last weights stay
    }
)

TOP = "top"
"""In a phase's lr the network's own group between head and base: block5 in VGG16, conv5 in ResNet50."""

OPEN = frozenset({"optimizer", "data.fractions"})
"""Settings that a config replaces as a whole."""


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config in FILE or FILE:VARIANT with its defaults filled in and `--config.key=value` overrides applied.

    Raises UserError for a missing or broken file and for keys that do not exist; locked against new keys.
    """
    config = complete_config(_read_config_file(spec))
    for override in overrides:
        if override.startswith("--config.optimizer.name="):  # the arguments were those of another optimizer
            with config.unlocked():
                config.optimizer = ConfigDict({"name": config.optimizer.name})
    known = dict(flatten_config(config))
    for override in overrides:
        key, is_given, value = override.removeprefix("--config.").partition("=")
        if not is_given:
            raise UserError(f"{override!r} needs a value: --config.{key}=VALUE")
        if key not in known and not _rename_top_group(config, key) and not _is_optimizer_argument(config, key, value):
            raise unknown("setting", key, known)
    config = _apply_overrides(config, overrides)
    _check_seed(config.seed)
    _check_phases(config.phases)
    return prune_phases(config)


def prune_phases(config: ConfigDict) -> ConfigDict:
    """A copy of a complete config without the settings of phases that `phases` names no longer."""
    left = config.copy_and_resolve_references()
    with left.unlocked():
        for name, value in config.items():
            if isinstance(value, ConfigDict) and "lr" in value and name not in config.phases:
                del left[name]
    return left


def _rename_top_group(config: ConfigDict, key: str) -> bool:
    """Whether `key` rates a group by its own name where the config speaks of `top`; then it does so no longer."""
    phase, _, group = key.partition(".lr.")
    if not group or phase not in config.phases or TOP not in config[phase].lr:
        return False
    rates = config[phase].lr
    with config.unlocked():
        rates[group] = rates[TOP]
        del rates[TOP]
    return True


def _is_optimizer_argument(config: ConfigDict, key: str, value: str) -> bool:
    """Whether `key` is an argument of the optimizer, which the config need not have named; then it does."""
    name = key.removeprefix("optimizer.")
    if name in ("", key):
        return False
    try:
        kind = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return False
    with config.unlocked():
        config.optimizer[name] = kind
    return True


def complete_config(values: ConfigDict) -> ConfigDict:
    """`config` over the defaults; keys unknown to both are an error."""
    phases = _check_phases(values.get("phases", DEFAULTS.phases))
    config = DEFAULTS.copy_and_resolve_references().unlock()
    for name in phases:
        if name in DEFAULTS:
            raise UserError(f"the config calls a phase {name!r}, which is a setting's name; choose another")
        if name not in values:
            raise UserError(f"the config names a phase {name!r} in phases but has no settings under c.{name}")
        config[name] = PHASE_DEFAULTS.copy_and_resolve_references().unlock()
    _fill(config, values, "")
    _check_seed(config.seed)
    for rule in config.param_groups:
        if not isinstance(rule, tuple | list) or [type(part) for part in rule] != [str, str]:
            raise UserError(f"the config's groups hold {rule!r}; each must be a pair (name, regular expression)")
    return config.lock()


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:  # what jax.random.key takes
        raise UserError(f"the config's seed is {seed}; it must be at least 0 and below 2**63")


def _check_phases(phases: Any) -> Sequence[str]:
    if not isinstance(phases, tuple | list) or not phases or not all(isinstance(name, str) for name in phases):
        raise UserError("the config's phases must be a tuple of names, such as ('frozen', 'finetune')")
    return phases


def _fill(config: ConfigDict, values: Mapping[str, Any], prefix: str) -> None:
    for key, value in values.items():
        path = prefix + key
        if key not in config:
            raise _unknown_key(config, path, value, prefix)
        if key == "class_weights" and isinstance(value, ConfigDict):
            config[key] = repr(value.to_dict())  # a text, so that the command line can replace it by a word
        elif isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict) and path not in OPEN and key != "lr":
            _fill(config[key], value, path + ".")
        else:
            config[key] = _float_lrs(path, value) if key == "lr" else _check_type(path, value, config[key])


def _unknown_key(config: Mapping[str, Any], path: str, value: Any, prefix: str) -> UserError:
    if isinstance(value, ConfigDict) and "lr" in value:
        return UserError(f"the config has settings c.{path} of a phase that phases does not name; add or remove it")
    return unknown("setting", path, dict(flatten_config(config, prefix)))


def _float_lrs(path: str, value: Any) -> ConfigDict:
    """Learning rates as float, so that a 0 can be overridden by any rate."""
    try:
        return ConfigDict({group: float(rate) for group, rate in value.items()})
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"the config's {path} must give every group a rate, such as dict(head=1e-3)") from error


def _check_type(path: str, value: Any, default: Any) -> Any:
    """`value` if it is of the default's kind; ml_collections would turn a number into a text unasked."""
    kinds = {float: (float, int), tuple: (tuple, list)}.get(type(default), type(default))
    too_large = isinstance(value, int) and isinstance(default, float) and abs(value) > sys.float_info.max
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)) or too_large:
        example = default.to_dict() if isinstance(default, ConfigDict) else default
        raise UserError(f"the config's {path} is {value!r}; it must be like {example!r}")
    return value


def _read_config_file(spec: str) -> ConfigDict:
    file = Path(spec.split(":", 1)[0])
    if not file.is_file():
        raise UserError(f"there is no config {str(file)!r}; give a config file, such as --config=configs/demo.py")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
    try:
        values(["flaxtl", f"--config={spec}"])
        config = values["config"].value
    except Exception as error:
        raise UserError(f"the config {spec!r} cannot be read: {_sentence(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config {spec!r} must return an ml_collections.ConfigDict from get_config()")
    return config


def _apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    arguments = ["flaxtl", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"an override does not fit the config: {_sentence(error)}") from error
    return values["config"].value


def _sentence(error: Exception) -> str:
    """The last line of an error: config_flags quotes a whole traceback before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every ('a.b.c', value) of a nested config, in its order."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            yield from flatten_config(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def config_to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return dict(json.loads(config.to_json_best_effort()))


def config_from_json(values: Mapping[str, Any]) -> ConfigDict:
    """A config as `to_json` wrote it; raises UserError for anything else."""
    try:
        return complete_config(ConfigDict(dict(values)))
    except (TypeError, ValueError) as error:
        raise UserError(f"the config in config.json is damaged ({error}); start anew in another --workdir") from error


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'key: old -> new' for every setting that differs between two JSON configs, without phases that one lacks."""
    before, after = dict(flatten_config(old)), dict(flatten_config(new))
    keys = [*before, *(key for key in after if key not in before)]
    absent = "(absent)"
    lone = set(old.get("phases", ())) ^ set(new.get("phases", ()))
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent) and key.split(".")[0] not in lone
    ]
