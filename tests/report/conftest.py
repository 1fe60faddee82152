"""A finished run to report on."""

import shutil
from pathlib import Path

import pytest
from helpers import finished_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run directory; tests do not change it, except that they write reports into it."""
    return finished_run.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
