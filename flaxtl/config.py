"""Configs: read a config file, fill in the defaults of defaults.py, apply command-line overrides, validate."""

import ast
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from flaxtl.defaults import ATOMIC_SETTINGS, DEFAULTS, LAST_BLOCK, PHASE_DEFAULTS
from flaxtl.errors import UserError, join_names, unknown

RENAMED = {"features": "feature_cache", "filter": "interpolation", "metric": "monitor", "stop": "output_layer"}
"""Former names of settings, too different from the new ones for a suggestion by similarity."""

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}
"""Type of a setting -> what an error calls its values."""

FLOAT_SECTIONS = {
    "lr": "the learning rate of every group, such as dict(head=1e-3)",
    "fractions": "the fraction of every split, such as dict(train=0.5, validation=0.2, test=0.3)",
}
"""Section of numbers with names of the user's choice -> what an error says that it must give."""

OTHER_NAMES = {
    "lr": "lr.head",
    "learning_rate": "lr.head",
    "data": "data.source",
    "model": "model.name",
    "arch": "model.name",
    "optimizer": "optimizer.name",
    "opt": "optimizer.name",
    "weights": "weights.path",
    "batch": "batch_size",
    "img_size": "height",
    "image_size": "height",
}
"""What the options of other training scripts, such as timm's, call a setting -> the end of its name here."""


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a config file, fill in the defaults and apply overrides.

    Args:
      spec: NAME of a config that comes with flaxtl, or FILE; optionally followed by :VARIANT.
      overrides: '--config.key=value', as on the command line.

    Returns:
      The complete config, locked against new keys.

    Raises:
      UserError: the file is missing or broken, a key does not exist, or a value has the wrong type.
    """
    config = complete_config(_read_config_file(spec))
    values = dict(_parse_overrides(overrides))  # the last one of a setting that is given twice
    name = config.optimizer.get("name")
    if values.get("optimizer.name", name) != name:
        with config.unlocked():  # the other arguments belong to the optimizer that is replaced
            config.optimizer = ConfigDict({"name": ""})
    known = dict(flatten_config(config))
    for key in list(values):
        if key.startswith("optimizer.") and known.get(key) is None:  # config_flags cannot override None
            _set_optimizer_argument(config, key, values.pop(key))
        elif key in known:
            if isinstance(known[key], tuple):
                values[key] = _tuple_literal(values[key])
        elif _names_last_block(config, key):
            _check_one_name(values, key)
            _rename_last_block(config, key)
        else:
            raise _unknown_key(key, known)
    config = _apply_overrides(config, values)
    _check_values(config)
    return prune_phases(config)


def bundled_configs() -> dict[str, Path]:
    """Return name -> file of the configs that come with flaxtl: in an installed package, or else in a checkout."""
    package = Path(__file__).parent
    folder = next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def complete_config(values: ConfigDict) -> ConfigDict:
    """Return the defaults updated with `values`. Raises UserError for keys that have no default."""
    config = DEFAULTS.copy_and_resolve_references().unlock()
    for name in _check_phases(values.get("phases", DEFAULTS.phases)):
        if name in DEFAULTS:
            raise UserError(f"A phase cannot be called {name!r}: a setting has this name. Rename it in phases.")
        if name not in values:
            raise _missing_phase(name, [key for key in values if _is_phase(key, values[key])])
        config[name] = PHASE_DEFAULTS.copy_and_resolve_references().unlock()
    _merge(config, values, "")
    _check_values(config)
    return config.lock()


def prune_phases(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config without the settings of phases that it does not list.

    Raises:
      UserError: `phases` is not a sequence of names, or lists a phase that has no settings.
    """
    phases = _check_phases(config.get("phases", DEFAULTS.phases))
    names = [name for name, value in config.items() if _is_phase(name, value)]
    for name in phases:
        if name not in names:
            raise _missing_phase(name, names)
    pruned = config.copy_and_resolve_references()
    with pruned.unlocked():
        for name in names:
            if name not in phases:
                del pruned[name]
    return pruned


def _missing_phase(name: object, others: Sequence[str]) -> UserError:
    """Return the error for a phase without settings; `others` have settings."""
    if others:
        return unknown("phase", name, others)
    return UserError(f"Phase {name!r} has no settings. Add them, such as c.{name} = dict(lr=dict(head=1e-3)).")


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ('a.b.c', value) for every value of a nested config, in its order."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            yield from flatten_config(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def settings_named(name: str, known: Mapping[str, Any]) -> list[str]:
    """Return the settings that end in a name, in the order of the phases.

        settings_named("epochs", known)  # frozen.epochs, augmented.epochs, finetune.epochs
        settings_named("lr", known)      # frozen.lr.head, augmented.lr.head, finetune.lr.head

    Args:
      name: a setting without its section, or a key of OTHER_NAMES.
      known: all settings and their values.
    """
    ending, phases = OTHER_NAMES.get(name, name), list(known.get("phases", ()))
    named = [key for key in known if key == ending or key.endswith(f".{ending}")]
    return sorted(named, key=lambda key: phases.index(phase) if (phase := key.split(".")[0]) in phases else -1)


def config_to_json(config: ConfigDict) -> dict[str, Any]:
    """Return the config as plain JSON values; tuples become lists."""
    return dict(json.loads(config.to_json_best_effort()))


def config_from_json(values: Mapping[str, Any]) -> ConfigDict:
    """Return the config that `config_to_json` converted. Raises UserError for anything else."""
    try:
        return complete_config(ConfigDict(dict(values)))
    except (TypeError, ValueError) as error:
        raise UserError(f"The config in config.json is damaged: {error}. Use a new --workdir.") from error


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return 'key: old -> new' for every setting in which two JSON configs differ.

    The settings of a phase that only one of them has are left out: `phases` differs too, which is enough. An argument
    of the optimizer that one of them lacks, because it had none when the run was started, has its default.
    """
    before, after = (dict(flatten_config(_with_optimizer_defaults(config))) for config in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    absent = "(absent)"
    unshared_phases = set(old.get("phases", ())) ^ set(new.get("phases", ()))
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent) and key.split(".")[0] not in unshared_phases
    ]


def _with_optimizer_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON config in which the default optimizer has all of its settings, with their default values."""
    optimizer = config.get("optimizer", {})
    defaults = DEFAULTS.optimizer.to_dict() if optimizer.get("name") == DEFAULTS.optimizer.name else {}
    return {**config, "optimizer": {**defaults, **optimizer}}


def _read_config_file(spec: str) -> ConfigDict:
    """Return what get_config() of a config file returns."""
    file, variant = _find_config(spec)
    try:
        loader = SourceFileLoader("flaxtl_config", str(file))
        module = module_from_spec(spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
        loader.exec_module(module)
        if variant and not inspect.signature(module.get_config).parameters:
            raise ValueError(f"it has no variants. Leave out ':{variant[0]}'.")
        config = module.get_config(*variant)
    except Exception as error:
        raise UserError(f"Cannot load the config {spec!r}: {_last_line(error)}{_place(error, file)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of the config {spec!r} must return an ml_collections.ConfigDict.")
    return config


def _place(error: Exception, file: Path) -> str:
    """Return ' (KeyError in line 7)' for an error of a config file; '' for a ValueError: it refuses a variant so."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" ({type(error).__name__} in line {lines[-1]})" if lines and not isinstance(error, ValueError) else ""


def _find_config(spec: str) -> tuple[Path, list[str]]:
    """Return the config file, or the config of that name that comes with flaxtl, and the variant, if there is one.

    The longest part of `spec` that is a file, before a colon or the end, is the file: its path may contain colons.
    """
    parts = spec.split(":")
    for length in range(len(parts), 0, -1):
        # Methods of Path raise errors for a path without a home folder and for a long one.
        file = os.path.expanduser(":".join(parts[:length]))  # noqa: PTH111
        if os.path.isfile(file):  # noqa: PTH113
            return Path(file), [":".join(parts[length:])] if length < len(parts) else []
    name, *variant = spec.split(":", 1)
    configs = bundled_configs()
    if name in configs:
        return configs[name], variant
    raise UserError(f"Config {name!r} not found. Give a file, or the name of a config: --config={'|'.join(configs)}")


def _parse_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, value) of each '--config.key=value'."""
    for override in overrides:
        key, equals_sign, value = override.removeprefix("--config.").partition("=")
        if not equals_sign:
            raise UserError(f"{override!r} has no value. Write --config.{key}=VALUE.")
        yield key, value


def _set_optimizer_argument(config: ConfigDict, key: str, value: str) -> None:
    """Set an argument of the optimizer that the config does not have; the type is that of the literal `value`."""
    name = key.removeprefix("optimizer.")
    try:
        literal = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    except (ValueError, SyntaxError) as error:
        raise UserError(f"--config.{key}={value} is not a value, such as 0.9, true or 'text'.") from error
    if not name:
        raise UserError(f"--config.{key}={value} does not name an argument. Write --config.optimizer.NAME=VALUE.")
    with config.unlocked():
        config.optimizer[name] = literal


def _names_last_block(config: ConfigDict, key: str) -> bool:
    """Return whether `key` sets the rate of a group by its own name in a phase that calls this group `top`."""
    phase, _, group = key.partition(".lr.")
    return bool(group) and phase in config.phases and LAST_BLOCK in config[phase].lr


def _check_one_name(values: Mapping[str, str], key: str) -> None:
    """Raise UserError if the rate of the last block is given under both of its names."""
    phase, _, group = key.partition(".lr.")
    if (other := f"{phase}.lr.{LAST_BLOCK}") in values:
        raise UserError(f"{key} and {other} set the rate of the same group, {group}. Give one of them.")


def _rename_last_block(config: ConfigDict, key: str) -> None:
    """Replace `top` by the group's own name, which `key` gives."""
    phase, _, group = key.partition(".lr.")
    rates = config[phase].lr
    with config.unlocked():
        rates[group] = rates[LAST_BLOCK]
        del rates[LAST_BLOCK]


def _tuple_literal(text: str) -> str:
    """Return names, such as 'roses,daisy' or '[roses]', as a tuple, "('roses', 'daisy')"; other texts as they are."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        if "," in inner or inner != text or not text:
            return repr(tuple(name.strip() for name in inner.split(",") if name.strip()))
    return text


def _apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Return the config with the values of the overrides, converted to the types of the settings."""
    values = flags.FlagValues()
    arguments = ["flaxtl", *(f"--config.{key}={value}" for key, value in overrides.items())]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise _wrong_type(config, overrides, error) from error
    return values["config"].value


def _wrong_type(config: ConfigDict, overrides: Mapping[str, str], error: Exception) -> UserError:
    """Return the error for the override that config_flags could not convert, in words instead of Python's types."""
    known = dict(flatten_config(config))
    for key, value in overrides.items():
        kind = TYPE_NAMES.get(type(known[key]))
        if kind and f"--config.{key}=" in str(error):
            return UserError(f"--config.{key}={value}: {value!r} is not {kind}, such as {str(known[key]).lower()}.")
    return UserError(f"Invalid override: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    """Return the last line of an error: config_flags quotes a whole traceback before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _merge(config: ConfigDict, values: Mapping[str, Any], prefix: str) -> None:
    """Replace the defaults in `config` by `values`, section by section; `prefix` is the path of the section."""
    for key, value in values.items():
        path = prefix + key
        if key not in config:
            if _is_phase(key, value):
                raise UserError(f"The config has settings c.{path} of a phase that is not in phases. Add or remove it.")
            raise _unknown_key(path, dict(flatten_config(config, prefix)))
        if key == "class_weights" and isinstance(value, ConfigDict):
            config[key] = repr(value.to_dict())  # a string, so that the command line can replace it by a word
        elif key in FLOAT_SECTIONS:
            config[key] = _floats(path, value, FLOAT_SECTIONS[key])
        elif isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict) and path not in ATOMIC_SETTINGS:
            _merge(config[key], value, path + ".")
        else:
            config[key] = _check_type(path, value, config[key])


def _is_phase(name: str, value: Any) -> bool:
    """Return whether a config value holds the settings of a phase."""
    return name not in DEFAULTS and isinstance(value, ConfigDict) and "lr" in value


def _unknown_key(key: str, known: Mapping[str, Any]) -> UserError:
    """Return the error for a setting that does not exist."""
    new_key = ".".join(RENAMED.get(part, part) for part in key.split("."))
    if new_key != key and any(name.startswith(new_key) for name in known):
        return UserError(f"Unknown setting {key!r}. Did you mean {new_key!r}?")
    if key not in OTHER_NAMES and (section := [name for name in known if name.startswith(f"{key}.")]):
        return UserError(f"{key!r} is a section of settings. Set one of them: {join_names(section, 'or')}")
    phase, _, setting = key.partition(".")
    if setting.split(".")[0] in PHASE_DEFAULTS and not any(name.startswith(f"{phase}.") for name in known):
        return unknown("phase", phase, known["phases"])
    if named := settings_named(key, known):
        return UserError(f"Unknown setting {key!r}. Did you mean {join_names(map(repr, named), 'or')}?")
    if "." not in key:
        names = {name.split(".")[0]: None for name in known}
        sections = sorted(names, key=DEFAULTS.__contains__)  # phases first
        return unknown("phase or setting", key, [*sections, *known])
    return unknown("setting", key, known)


def _floats(path: str, value: Any, contents: str) -> ConfigDict:
    """Return the numbers of a section as float, so that an override can replace a 0 by any number."""
    try:
        return ConfigDict({name: float(number) for name, number in value.items()})
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"Setting {path!r} must give {contents}.") from error


def _check_type(path: str, value: Any, default: Any) -> Any:
    """Return `value` if it has the type of the default; ml_collections would convert a number to a string."""
    types = {float: (float, int), tuple: (tuple, list)}.get(type(default), type(default))
    too_large = isinstance(value, int) and isinstance(default, float) and abs(value) > sys.float_info.max
    if not isinstance(value, types) or (isinstance(value, bool) and not isinstance(default, bool)) or too_large:
        given, example = (item.to_dict() if isinstance(item, ConfigDict) else item for item in (value, default))
        raise UserError(f"Setting {path!r} is {given!r}, which has the wrong type. Give a value such as {example!r}.")
    return value


def _check_values(config: ConfigDict) -> None:
    """Raise UserError for a seed, number or rule that no run can use."""
    if not 0 <= config.seed < 2**63:  # the range of jax.random.key
        raise UserError(f"The seed is {config.seed}. Give a number from 0 to 2**63 - 1.")
    for key, value in flatten_config(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"Setting {key!r} is {value}. Give a finite number.")
    if wrong := [units for units in config.head.units if not isinstance(units, int) or isinstance(units, bool)]:
        raise UserError(f"Setting 'head.units' contains {wrong[0]!r}. Give whole numbers, such as 128 or 256,64.")
    for rule in config.param_groups:
        if not isinstance(rule, tuple | list) or [type(part) for part in rule] != [str, str]:
            raise UserError(f"Setting 'param_groups' contains {rule!r}. Give pairs (name, regular expression).")


def _check_phases(phases: Any) -> Sequence[str]:
    """Return the names of the phases, if they are a sequence of strings."""
    if not isinstance(phases, tuple | list) or not phases or not all(isinstance(name, str) for name in phases):
        raise UserError(
            "Setting 'phases' must be names separated by commas, such as frozen,finetune "
            "(in a Python file, a tuple of strings)."
        )
    return phases
