"""Which runs a sweep consists of, and what they are called."""

import json
import re
from pathlib import Path

import pytest

from flaxtl.errors import UserError
from flaxtl.tuning import sweep_grid
from flaxtl.tuning.sweep_grid import SweepRun, make_plan, merge_plans, shard_runs, text_of, values_of

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.py")
FROZEN = ["--config.phases=('frozen',)"]


def made(*grids, seeds=None, folds=None, overrides=FROZEN):
    return make_plan(DEMO, overrides, grids, seeds, folds)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64", ["64"]),
        ("64,128", ["64", "128"]),
        ("64,(128,64),()", ["64", "(128,64)", "()"]),
        ("('frozen',),('frozen','finetune')", ["('frozen',)", "('frozen','finetune')"]),
        ("none,{'daisy':2,'roses':[1,2]}", ["none", "{'daisy':2,'roses':[1,2]}"]),
        (",block3_pool", ["", "block3_pool"]),
    ],
)
def test_commas_within_brackets_do_not_separate(text, values):
    assert values_of(text) == values


def test_the_product_of_grids_in_order():
    found = made("config.head.units=64,(128,64)", "config.head.dropout=0,0.4")
    assert found.keys == ["head.units", "head.dropout"]
    assert (found.seeded, found.folds) == (False, 0)
    assert [run.name for run in found.runs] == [
        "head.units=64,head.dropout=0.0",
        "head.units=64,head.dropout=0.4",
        "head.units=128-64,head.dropout=0.0",
        "head.units=128-64,head.dropout=0.4",
    ]
    assert found.runs[2] == SweepRun(
        "head.units=128-64,head.dropout=0.0",
        {"head.units": [128, 64], "head.dropout": 0.0},
        0,
        ["--config.head.units=(128,64)", "--config.head.dropout=0"],
    )
    assert found.config["head"] == {"pooling": "global_average", "units": [128], "dropout": 0.4}
    assert found.config["phases"] == ["frozen"]


@pytest.mark.parametrize("given", [{"seeds": "0,7"}, {"grids": ("config.seed=0,7",)}])
def test_seeds_and_folds_are_runs_of_one_point(given):
    found = made(*given.get("grids", ()), "config.head.units=8", seeds=given.get("seeds"), folds=2)
    assert (found.keys, found.seeded, found.folds) == (["head.units"], True, 2)
    assert [(run.name, run.point, run.fold) for run in found.runs] == [
        (f"head.units=8,seed={seed},fold={fold}", {"head.units": [8]}, fold) for seed in (0, 7) for fold in (1, 2)
    ]
    assert found.runs[3].settings == ["--config.head.units=8", "--config.seed=7"]


def test_a_config_without_a_grid_can_be_repeated():
    assert [run.name for run in made(seeds="0,1").runs] == ["seed=0", "seed=1"]
    assert [(run.name, run.point) for run in made(folds=2).runs] == [("fold=1", {}), ("fold=2", {})]


def test_a_seed_that_deals_out_the_images_may_stand_beside_seeds():
    found = made(seeds="0,1", overrides=["--config.seed=5"])
    assert found.config["seed"] == 5


def test_names_suit_every_file_system():
    (path,) = made("config.weights.path=/a b/ü:c.h5").runs
    assert path.name == "weights.path=a-b-ü-c.h5"
    (long,) = made("config.weights.path=/" + "ü" * 300).runs
    (other,) = made("config.weights.path=/" + "ü" * 301).runs
    assert len(long.name.encode()) <= sweep_grid.LONGEST
    assert long.name != other.name
    assert long.name.startswith("weights.path=üüü")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({}, r"--grid\b.*--seeds\b.*--kfold\b"),
        ({"grids": ["config.head.unit=64"]}, r"'head\.unit'.*'head\.units'"),
        ({"grids": ["config.head.dropout=0,half"]}, r"--config\.head\.dropout=half\b.*float\b.*'half'"),
        ({"grids": ["head.units=64"]}, r"--grid.head\.units=64 .*--grid.config\.head\.units=64,128"),
        ({"grids": ["config.head.units="]}, r"--grid.config\.head\.units=(?!\w).*--grid.config\.head\.units=\w"),
        ({"grids": ["config.head.units=(64,128"]}, r"'\(64,128'"),
        ({"grids": ["config.head.units=64)"]}, r"'64\)'"),
        ({"grids": ["config.head.dropout=0.4,0.40"]}, r"--grid\b.*(?<!config\.)head\.dropout=0\.4(?!,?0)"),
        ({"grids": ["config.head.units=64,(64,)"]}, r"--grid\b.*(?<!config\.)head\.units=64(?!,?\()"),
        ({"grids": ["config.head.units=8", "config.head.units=9"]}, r"\bhead\.units\b(?!=).*--grid\b"),
        ({"grids": ["config.batch_size=8,9"], "overrides": ["--config.batch_size=8"]}, r"\bbatch\w*\b(?!=).*--grid\b"),
        ({"grids": ["config.seed=0,1"], "seeds": "0,1"}, r"\bseed\b(?!=).*--grid\b"),
        ({"grids": ["config.data.source=synthetic,folder:x"]}, r"(?<!config\.)data\.source\b(?!=)"),
        ({"grids": ["config.data.fractions.train=0.5"]}, r"(?<!config\.)data\.fractions\.train\b(?!=)"),
        ({"grids": ["config.finetune.epochs=1,2"]}, r"\bfinetune\.epochs\b.*\bfrozen\b"),
        ({"seeds": "0,-1"}, r"\bseed\b.* -1\b"),
        ({"seeds": "0,x"}, r"--config\.seed=.*'x'"),
        ({"folds": 1}, "--kfold=1 .*2"),
        ({"folds": 0}, "--kfold=0 .*2"),
    ],
)
def test_refusals(arguments, facts):
    given = {"grids": [], "seeds": None, "folds": None, "overrides": FROZEN} | arguments
    with pytest.raises(UserError, match=facts):
        make_plan(DEMO, given["overrides"], given["grids"], given["seeds"], given["folds"])


def test_shares_are_all_runs_once():
    runs = made("config.head.units=1,2,3,4,5,6,7").runs
    shares = [shard_runs(f"{number}/3", runs) for number in (1, 2, 3)]
    assert [[run.point["head.units"][0] for run in share] for share in shares] == [[1, 4, 7], [2, 5], [3, 6]]
    assert shard_runs("1/1", runs) == runs
    assert shard_runs("9/9", runs) == []
    for text in ("0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/2/3"):
        with pytest.raises(UserError, match=rf"--shard={text}(?![\w/]).*\b1/N\b"):
            shard_runs(text, runs)


@pytest.mark.parametrize(
    ("value", "text"),
    [([64], "64"), ([128, 64], "(128, 64)"), ([], "()"), (0.4, "0.4"), (1e-6, "1e-06"), (True, "true"), ("", "")],
)
def test_values_are_told_as_people_write_them(value, text):
    assert text_of(value) == text


def test_a_plan_reads_back(tmp_path):
    found = made("config.head.units=64,(128,64)", seeds="0,1")
    found.write(tmp_path / "sweep.json")
    assert sweep_grid.read_plan(tmp_path / "sweep.json") == found


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 1}'])
def test_a_damaged_plan_is_refused(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / 'sweep.json'))} .*--workdir\b"):
        sweep_grid.read_plan(tmp_path / "sweep.json")


def test_a_grid_may_grow(tmp_path):
    one, two = made("config.head.units=1,2"), made("config.head.units=2,3")
    assert [run.name for run in merge_plans(one, two, tmp_path).runs] == [f"head.units={n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("other", "fact"),
    [
        (lambda: made("config.head.dropout=0"), r"head\.units\b"),
        (lambda: made("config.head.units=1", seeds="0"), r"head\.units\b"),
        (lambda: made("config.head.units=1", folds=3), r"head\.units\b"),
        (
            lambda: made("config.head.units=1", overrides=[*FROZEN, "--config.batch_size=8"]),
            r"\(batch\w*: 16 -> 8\)",
        ),
    ],
)
def test_another_sweep_is_not_joined(tmp_path, other, fact):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}\b.*{fact}.*--workdir\b"):
        merge_plans(made("config.head.units=1"), other(), tmp_path)
    changed = made("config.head.units=1", overrides=[*FROZEN, "--config.feature_cache.dir=x"])
    assert merge_plans(made("config.head.units=1"), changed, tmp_path).config["feature_cache"]["dir"] == "x"


def test_what_is_written_is_plain_json(tmp_path):
    made("config.head.units=8").write(tmp_path / "sweep.json")
    told = json.loads((tmp_path / "sweep.json").read_text())
    assert told["runs"] == [
        {"name": "head.units=8", "point": {"head.units": [8]}, "fold": 0, "settings": ["--config.head.units=8"]}
    ]
