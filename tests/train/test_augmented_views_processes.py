"""Cached augmented views of a distributed run."""

import re

import pytest
from helpers.launched_run import Launched, compare, outcome

pytestmark = pytest.mark.multiprocess

VIEWS = ("--config.feature_cache.views=2", "--config.frozen.augment=True", "--config.data.pipeline=resident")


@pytest.mark.exhaustive("processes")
def test_two_processes_share_cached_views(tmp_path):
    launcher = Launched(tmp_path)
    shared = f"--config.feature_cache.dir={tmp_path / 'features'}"
    code, output = launcher.run(tmp_path / "one", 1, 4, *VIEWS)
    assert code == 0, output
    code, output = launcher.run(tmp_path / "two", 2, 2, *VIEWS, shared)
    assert code == 0, output
    assert re.findall(r"\b(\w+): 2 views\b", output) == ["frozen", "finetune"]
    assert "train, 2 views" in output
    compare(outcome(tmp_path / "two"), outcome(tmp_path / "one"))
    names = sorted(file.name for file in (tmp_path / "features").iterdir())
    assert all(name.endswith(".npy") and not name.startswith(".") for name in names)
    code, output = launcher.run(tmp_path / "again", 2, 2, *VIEWS, shared)
    assert code == 0, output
    assert "train, 2 views" not in output
    compare(outcome(tmp_path / "again"), outcome(tmp_path / "two"))
