"""A finished run to report on."""

import shutil
from pathlib import Path

import pytest
from helpers import finished_run

from flaxtl.report import plots


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run directory; tests do not change it, except that they write reports into it."""
    return finished_run.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unplotted(monkeypatch):
    """Pages without their SVG plots: drawing them takes most of the time, and test_plots.py tests them."""
    for name in ("plot_confusion", "plot_reliability", "plot_risk_coverage", "plot_curves"):
        monkeypatch.setattr(plots, name, lambda *arguments: "<svg></svg>")
