"""Options that do not exist: the error suggests an option of the command, or the setting that the user may mean."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from flaxtl.config import OTHER_NAMES, flatten_config, load_config, settings_named
from flaxtl.errors import UserError, join_names, unknown


def check_options(command: str, arguments: Sequence[str], known: Sequence[str], default_config: str) -> None:
    """Check the names of all options.

    Args:
      command: a command.
      arguments: what follows it on the command line.
      known: the options of the command, with their dashes.
      default_config: the config that its settings are looked up in, without --config.

    Raises:
      UserError: for the first unknown option. If the command has a config, `--epochs=5` gets the suggestion
        `--config.frozen.epochs=5`, once for each phase.
    """
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if not re.fullmatch(r"--[\w.-]+", name) or name in known or name.startswith("--config."):
            continue
        settings = _similar_settings(name, arguments, known, default_config) if "--config" in known else []
        if not settings:
            raise unknown(f"option of flaxtl {command}:", name, known)
        following = next((text for text in arguments[index + 1 : index + 2] if not text.startswith("-")), "VALUE")
        suggestions = [shlex.quote(f"--config.{setting}={value or following}") for setting in settings]
        raise UserError(f"Unknown option of flaxtl {command}: {name!r}. Did you mean {join_names(suggestions, 'or')}?")


def _similar_settings(option: str, arguments: Sequence[str], known: Sequence[str], default_config: str) -> list[str]:
    """Return the settings with the name of an option, or a similar name; none if an option of the command is nearer."""
    settings = _settings(arguments, default_config)
    names = settings if "." in option else [*OTHER_NAMES, *{key.split(".")[-1]: None for key in settings}]
    options = [name.removeprefix("--").replace("-", "_") for name in known]
    nearest = get_close_matches(option.removeprefix("--").replace("-", "_"), [*options, *names], n=1, cutoff=0.75)
    return settings_named(nearest[0], settings) if nearest and nearest[0] not in options else []


def _settings(arguments: Sequence[str], default_config: str) -> dict[str, Any]:
    """Return the settings of the config that a command line names; of the default one if that cannot be loaded."""
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    names = re.findall(r"--config[= ](\S+)", " ".join(arguments))
    try:
        config = load_config((names or [default_config])[0], overrides)
    except UserError:
        config = load_config(default_config)
    return dict(flatten_config(config)) | {"optimizer.weight_decay": 0.0}  # works with most optimizers
