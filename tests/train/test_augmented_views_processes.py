"""Augmented views computed and read by several real processes: the run of one process."""

import re

import pytest
from helpers.launched_run import Launched, compare, outcome

VIEWS = ("--config.feature_cache.views=2", "--config.frozen.augment=True", "--config.data.pipeline=resident")


@pytest.mark.slow
def test_several_processes_share_their_views(tmp_path):
    place = Launched(tmp_path)
    shared = f"--config.feature_cache.dir={tmp_path / 'features'}"
    code, said = place.run(tmp_path / "one", 1, 4, *VIEWS)
    assert code == 0, said
    code, said = place.run(tmp_path / "two", 2, 2, *VIEWS, shared)
    assert code == 0, said
    assert re.findall(r"\b(\w+): 2 views\b", said) == ["frozen", "finetune"]
    assert "in 2 views" in said
    compare(outcome(tmp_path / "two"), outcome(tmp_path / "one"))
    names = sorted(file.name for file in (tmp_path / "features").iterdir())
    assert all(name.endswith(".npy") and not name.startswith(".") for name in names)
    code, said = place.run(tmp_path / "again", 2, 2, *VIEWS, shared)
    assert code == 0, said
    assert "in 2 views" not in said
    compare(outcome(tmp_path / "again"), outcome(tmp_path / "two"))
