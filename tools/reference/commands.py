"""Generate the command reference from the argument parsers."""

import argparse
import re
from collections.abc import Iterator
from functools import partial

from flaxtl.cli import parser
from reference.markdown import code, reference, text

USAGE_WIDTH = 80

INTRODUCTION = """# Command reference

An image `SOURCE` is `folder:PATH`, `archive:FILE`, `csv:FILE`, `tfds:NAME` or `synthetic`. Commands that take a
config also take any number of `--config.KEY=VALUE` ([Config reference](config.md)). Invalid input ends with a message
and exit code 2; `--debug`, an option of all commands, adds the traceback.
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return command -> parser, in the order of `flaxtl --help`."""
    (choices,) = (action for action in parser.make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choices.choices)


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of a command, without those of all commands."""
    return [action for action in command._actions if action.dest not in ("help", "debug")]


def page() -> str:
    """Return the page in Markdown."""
    return "\n".join([INTRODUCTION, *(_chapter(name, command) for name, command in commands().items())])


def _chapter(name: str, command: argparse.ArgumentParser) -> str:
    command.formatter_class = partial(argparse.HelpFormatter, width=USAGE_WIDTH)
    indented = command.format_usage().removeprefix("usage: ")
    usage = indented.replace("\n" + " " * len("usage: "), "\n")
    rows = [(_name(option), " ".join(_describe(option))) for option in options(command)]
    return "\n".join(
        [
            f"## flaxtl {name} {{ #{name} }}\n",
            text(f"{command.description or ''}\n"),
            f"```text\n{usage}```\n",
            reference(("option", "meaning"), rows),
            "",
        ]
    )


def _name(option: argparse.Action) -> str:
    *_, flag = option.option_strings
    return code(flag if option.nargs == 0 else f"{flag} {_value(option)}")


def _value(option: argparse.Action) -> str:
    value = option.metavar or (option.dest.upper() if option.choices is None else "|".join(option.choices))
    return f"{value} ..." if option.nargs == "+" else str(value)


def _describe(option: argparse.Action) -> Iterator[str]:
    meaning = re.sub(r" \(default: %\(default\)\w\)", "", option.help or "")  # the default is added below
    yield text(f"{meaning[:1].upper()}{meaning[1:]}.") if meaning else ""
    if option.required:
        yield "*Required.*"
    if isinstance(option, argparse._AppendAction):
        yield "*Can be repeated.*"
    if option.nargs != 0 and option.default not in (None, []):
        yield f"*Default:* {code(str(option.default))}."
