"""The restart of the command with huge pages."""

import os
import subprocess
import sys

import pytest

from flaxtl.cli import huge_pages

ENVIRONMENT = {"PATH": "/bin"}


@pytest.fixture
def restart(monkeypatch, tmp_path):
    """Return a function that runs `restart_with_huge_pages`; it returns the arguments of execve, or None."""

    def run(environment=ENVIRONMENT, kernel="always [madvise] never", library="glibc 2.36"):
        calls = []

        def confstr(name):
            if library is None:
                raise ValueError("unrecognized configuration name")  # as with musl and on macOS
            return library

        setting = tmp_path / "enabled"
        setting.write_text(kernel) if kernel else setting.unlink(missing_ok=True)
        monkeypatch.setattr(huge_pages, "KERNEL_SETTING", setting)
        monkeypatch.setattr(os, "environ", dict(environment))
        monkeypatch.setattr(os, "confstr", confstr)
        monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
        monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "flaxtl", "models"])
        huge_pages.restart_with_huge_pages()
        return calls[0] if calls else None

    return run


def test_restart_keeps_the_command_line_and_adds_a_variable(restart):
    program, arguments, environment = restart()
    assert (program, arguments) == (sys.executable, [sys.executable, "-X", "utf8", "-m", "flaxtl", "models"])
    assert environment == ENVIRONMENT | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    "where",
    [
        {"kernel": "[always] madvise never"},
        {"kernel": "always madvise [never]"},
        {"kernel": None},
        {"library": "glibc 2.34"},
        {"library": ""},
        {"library": None},
        {"environment": {"FLAXTL_HUGE_PAGES": "0"}},
        {"environment": {"GLIBC_TUNABLES": "glibc.malloc.check=1"}},
    ],
)
def test_no_restart_where_huge_pages_cannot_be_asked_for_or_are_not_wanted(restart, where):
    assert restart(**where) is None


def test_process_that_cannot_be_restarted_continues(monkeypatch, restart):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    restart()
    monkeypatch.setattr(os, "execve", fail)
    huge_pages.restart_with_huge_pages()


PROGRAM = """
import os, pathlib, sys
from flaxtl.cli import huge_pages
huge_pages.KERNEL_SETTING = pathlib.Path(sys.argv[1])
print("started", os.getpid(), flush=True)
huge_pages.restart_with_huge_pages()
print(sys.stdin.read(), os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(not huge_pages.malloc_can_ask(), reason="another C library, or an older one")
def test_restarted_process_has_the_same_number_and_standard_streams(tmp_path):
    (tmp_path / "enabled").write_text("[madvise]")
    environment = os.environ | {"FLAXTL_HUGE_PAGES": "1"}
    environment.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "enabled")]
    done = subprocess.run(command, input="text", capture_output=True, text=True, check=True, env=environment)
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert last == "text glibc.malloc.hugetlb=1"
