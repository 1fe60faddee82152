"""Every command with its usage and its options, as `flaxtl COMMAND --help` tells them."""

import argparse
import re
from collections.abc import Iterator
from functools import partial

from flaxtl.cli import parser
from reference.markdown import code, reference, text

WIDTH = 80
"""Columns of a usage."""

INTRODUCTION = """# Command reference

A `SOURCE` of images is `folder:PATH`, `archive:FILE`, `csv:FILE`, `tfds:NAME` or `synthetic`. Commands that take a
config also take any number of `--config.KEY=VALUE` ([Config reference](config.md)). A mistake ends in one sentence and
exit code 2; `--debug`, which all commands take, adds the traceback.
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    """Name -> parser of every command, in the order of `flaxtl --help`."""
    (choices,) = (action for action in parser.make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choices.choices)


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of one command, in the order of its --help, but for those that all have."""
    return [action for action in command._actions if action.dest not in ("help", "debug")]


def page() -> str:
    """The page in Markdown: a chapter for each command."""
    return "\n".join([INTRODUCTION, *(_chapter(name, command) for name, command in commands().items())])


def _chapter(name: str, command: argparse.ArgumentParser) -> str:
    command.formatter_class = partial(argparse.HelpFormatter, width=WIDTH)
    indented = command.format_usage().removeprefix("usage: ")
    usage = indented.replace("\n" + " " * len("usage: "), "\n")
    purpose = command.description or ""
    rows = [(_name(option), " ".join(_told(option))) for option in options(command)]
    return "\n".join(
        [
            f"## flaxtl {name} {{ #{name} }}\n",
            text(f"{purpose}\n"),
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


def _told(option: argparse.Action) -> Iterator[str]:
    told = re.sub(r" \(default: %\(default\)\w\)", "", option.help or "")  # it follows at the end
    yield text(f"{told[:1].upper()}{told[1:]}.") if told else ""
    if option.required:
        yield "*Required.*"
    if isinstance(option, argparse._AppendAction):
        yield "*May be given several times.*"
    if option.nargs != 0 and option.default not in (None, []):
        yield f"*Default:* {code(str(option.default))}."
