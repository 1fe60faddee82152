import json
import re
from pathlib import Path

import pytest

from flaxtl.errors import UserError
from flaxtl.tuning import sweep_grid
from flaxtl.tuning.sweep_grid import (
    SweepRun,
    format_value,
    keep_run_names,
    make_plan,
    merge_plans,
    shard_runs,
    split_values,
)

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.py")
FROZEN = ["--config.phases=('frozen',)"]


def plan_of(*grids, seeds=None, folds=None, overrides=FROZEN):
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
def test_split_values_ignores_commas_inside_brackets(text, values):
    assert split_values(text) == values


def test_merge_plans_with_a_changed_weight_file_is_refused(tmp_path):
    file = tmp_path / "w.h5"
    weights = [*FROZEN, f"--config.weights.path={file}"]
    file.write_bytes(b"first")
    old = plan_of("config.head.dropout=0.1", overrides=weights)
    assert list(old.weights) == [str(file)]
    more = plan_of("config.head.dropout=0.2", overrides=weights)
    assert len(merge_plans(old, more, tmp_path).runs) == 2
    file.write_bytes(b"second")
    changed = plan_of("config.head.dropout=0.2", overrides=weights)
    with pytest.raises(UserError, match=rf"{re.escape(str(file))} has changed since the sweep .*--workdir"):
        merge_plans(old, changed, tmp_path)


def test_make_plan_is_the_product_of_grids_in_order():
    plan = plan_of("config.head.units=64,(128,64)", "config.head.dropout=0,0.4")
    assert plan.keys == ["head.units", "head.dropout"]
    assert (plan.seeded, plan.folds) == (False, 0)
    assert [run.name for run in plan.runs] == [
        "head.units=64,head.dropout=0.0",
        "head.units=64,head.dropout=0.4",
        "head.units=128-64,head.dropout=0.0",
        "head.units=128-64,head.dropout=0.4",
    ]
    assert plan.runs[2] == SweepRun(
        "head.units=128-64,head.dropout=0.0",
        {"head.units": [128, 64], "head.dropout": 0.0},
        0,
        ["--config.head.units=(128,64)", "--config.head.dropout=0"],
    )
    assert plan.config["head"] == {"pooling": "global_average", "units": [128], "dropout": 0.4, "normalize": "none"}
    assert plan.config["phases"] == ["frozen"]


@pytest.mark.parametrize("arguments", [{"seeds": "0,7"}, {"grids": ("config.seed=0,7",)}])
def test_make_plan_seeds_and_folds_are_runs_of_one_point(arguments):
    plan = plan_of(*arguments.get("grids", ()), "config.head.units=8", seeds=arguments.get("seeds"), folds=2)
    assert (plan.keys, plan.seeded, plan.folds) == (["head.units"], True, 2)
    assert [(run.name, run.point, run.fold) for run in plan.runs] == [
        (f"head.units=8,seed={seed},fold={fold}", {"head.units": [8]}, fold) for seed in (0, 7) for fold in (1, 2)
    ]
    assert plan.runs[3].overrides == ["--config.head.units=8", "--config.seed=7"]


def test_make_plan_without_a_grid_repeats_the_config():
    assert [run.name for run in plan_of(seeds="0,1").runs] == ["seed=0", "seed=1"]
    assert [(run.name, run.point) for run in plan_of(folds=2).runs] == [("fold=1", {}), ("fold=2", {})]


def test_make_plan_keeps_the_seed_of_the_split_beside_seeds():
    plan = plan_of(seeds="0,1", overrides=["--config.seed=5"])
    assert plan.config["seed"] == 5


def test_make_plan_knows_all_spellings_of_a_model(tmp_path):
    typed, own = (plan_of(f"config.model.name={name},vgg16") for name in ("EfficientNetB0", "efficientnet_b0"))
    assert [run.name for run in typed.runs] == ["model.name=efficientnet_b0", "model.name=vgg16"]
    assert [run.point for run in typed.runs] == [run.point for run in own.runs]
    assert len(merge_plans(typed, own, tmp_path).runs) == 2
    with pytest.raises(UserError, match=r"model\.name=efficientnet_b0"):
        plan_of("config.model.name=EfficientNetB0,efficientnet_b0")
    named = [plan_of(seeds="0", overrides=[f"--config.model.name={name}"]) for name in ("VGG16", "vgg16")]
    assert len(merge_plans(*named, tmp_path).runs) == 1


def test_keep_run_names_finds_runs_under_a_former_model_name(tmp_path):
    own = plan_of("config.model.name=efficientnet_b0,resnet50", "config.head.units=8", seeds="0")
    names = [run.name for run in own.runs]
    former = own.replace(
        runs=[
            own.runs[0].replace(
                name=names[0].replace("efficientnet_b0", "EfficientNetB0"),
                point=own.runs[0].point | {"model.name": "EfficientNetB0"},
            )
        ]
    )
    kept = keep_run_names(own, former)
    assert [run.name for run in kept.runs] == ["model.name=EfficientNetB0,head.units=8,seed=0", names[1]]
    assert [run.point for run in kept.runs] == [run.point for run in own.runs]
    assert merge_plans(former, kept, tmp_path).runs == kept.runs
    assert keep_run_names(own, own) == own


def test_run_names_suit_every_file_system():
    (path,) = plan_of("config.weights.path=/a b/ü:c.h5").runs
    assert path.name == "weights.path=a-b-ü-c.h5"
    (long,) = plan_of("config.weights.path=" + f"/{'ü' * 100}" * 3).runs
    (other,) = plan_of("config.weights.path=" + f"/{'ü' * 100}" * 4).runs
    assert len(long.name.encode()) <= sweep_grid.MAX_NAME_BYTES
    assert long.name != other.name
    assert long.name.startswith("weights.path=üüü")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({}, r"--grid\b.*--seeds\b.*--kfold\b"),
        ({"grids": ["config.head.unit=64"]}, r"'head\.unit'.*'head\.units'"),
        ({"grids": ["config.head.dropout=0,half"]}, r"--config\.head\.dropout=half: 'half' is not a number\b"),
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
def test_make_plan_with_invalid_input_names_the_problem(arguments, facts):
    arguments = {"grids": [], "seeds": None, "folds": None, "overrides": FROZEN} | arguments
    with pytest.raises(UserError, match=facts):
        make_plan(DEMO, **arguments)


def test_shards_contain_every_run_once():
    runs = plan_of("config.head.units=1,2,3,4,5,6,7").runs
    shards = [shard_runs(f"{number}/3", runs) for number in (1, 2, 3)]
    assert [[run.point["head.units"][0] for run in shard] for shard in shards] == [[1, 4, 7], [2, 5], [3, 6]]
    assert shard_runs("1/1", runs) == runs
    assert shard_runs("9/9", runs) == []
    for text in ("0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/2/3"):
        with pytest.raises(UserError, match=rf"--shard={text}(?![\w/]).*\b1/N\b"):
            shard_runs(text, runs)


@pytest.mark.parametrize(
    ("value", "text"),
    [([64], "64"), ([128, 64], "(128, 64)"), ([], "()"), (0.4, "0.4"), (1e-6, "1e-06"), (True, "true"), ("", "")],
)
def test_format_value(value, text):
    assert format_value(value) == text


def test_read_plan_reverses_write(tmp_path):
    plan = plan_of("config.head.units=64,(128,64)", seeds="0,1")
    plan.write(tmp_path / "sweep.json")
    assert sweep_grid.read_plan(tmp_path / "sweep.json") == plan


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 1}'])
def test_read_plan_of_a_damaged_file_names_the_file(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / 'sweep.json'))} .*--workdir\b"):
        sweep_grid.read_plan(tmp_path / "sweep.json")


def test_merge_plans_adds_the_values_of_a_grid(tmp_path):
    one, two = plan_of("config.head.units=1,2"), plan_of("config.head.units=2,3")
    assert [run.name for run in merge_plans(one, two, tmp_path).runs] == [f"head.units={n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("other", "fact"),
    [
        (lambda: plan_of("config.head.dropout=0"), r"head\.units\b"),
        (lambda: plan_of("config.head.units=1", seeds="0"), r"head\.units\b"),
        (lambda: plan_of("config.head.units=1", folds=3), r"head\.units\b"),
        (
            lambda: plan_of("config.head.units=1", overrides=[*FROZEN, "--config.batch_size=8"]),
            r"\(batch_size: 16 -> 8\)",
        ),
    ],
)
def test_merge_plans_of_another_sweep_is_refused(tmp_path, other, fact):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}\b.*{fact}.*--workdir\b"):
        merge_plans(plan_of("config.head.units=1"), other(), tmp_path)
    changed = plan_of("config.head.units=1", overrides=[*FROZEN, "--config.feature_cache.dir=x"])
    assert merge_plans(plan_of("config.head.units=1"), changed, tmp_path).config["feature_cache"]["dir"] == "x"


def test_write_plan_is_plain_json(tmp_path):
    plan_of("config.head.units=8").write(tmp_path / "sweep.json")
    values = json.loads((tmp_path / "sweep.json").read_text())
    assert values["runs"] == [
        {"name": "head.units=8", "point": {"head.units": [8]}, "fold": 0, "overrides": ["--config.head.units=8"]}
    ]
