import re

import pytest

from flaxtl.errors import UserError
from flaxtl.models.classifier import flatten_params, unflatten_params
from flaxtl.train import param_groups

PATHS = [
    "backbone/block1_conv1/kernel",
    "backbone/block5_conv1/kernel",
    "backbone/block5_conv1/bias",
    "head/out/kernel",
]
RULES = (("head", "head/.*"), ("block5", "backbone/block5_.*"), ("base", "backbone/.*"))
RATES = {"head": 1e-3, "block5": 0.0, "base": 0.0}


def refused(*facts):
    return pytest.raises(UserError, match=".*".join(map(re.escape, facts)))


def test_flatten_and_nest_are_inverse():
    tree = {"backbone": {"a": {"kernel": 1, "bias": 2}}, "head": {"b": {"kernel": 3}}}
    flat = {"backbone/a/kernel": 1, "backbone/a/bias": 2, "head/b/kernel": 3}
    assert flatten_params(tree) == flat
    assert unflatten_params(flat) == tree


def test_the_first_rule_that_matches_the_whole_path_wins():
    assert param_groups.assign_groups(PATHS, RULES) == dict(
        zip(PATHS, ["base", "block5", "block5", "head"], strict=True)
    )
    everything_first = (("all", ".*/kernel"), ("rest", ".*"))
    assert list(param_groups.assign_groups(PATHS, everything_first).values()) == ["all", "all", "rest", "all"]


def test_a_rule_must_match_the_whole_path():
    with refused("'backbone/block1_conv1/kernel'"):
        param_groups.assign_groups(PATHS, (("head", "head/.*"), ("base", "backbone")))


def test_an_unmatched_parameter_is_named():
    with refused("'head/out/kernel'"):
        param_groups.assign_groups(PATHS, RULES[1:])


def test_a_rule_that_matches_nothing_is_named_though_its_group_has_another():
    with refused("('head', 'haed/.*')"):
        param_groups.assign_groups(PATHS, (("head", "head/.*"), ("head", "haed/.*"), ("base", "backbone/.*")))


def test_a_rule_that_matches_nothing_is_named():
    with refused("('block6', 'backbone/block6_.*')"):
        param_groups.assign_groups(PATHS, (("block6", "backbone/block6_.*"), *RULES))


def test_a_rule_that_comes_too_late_is_named():
    with refused("('head', 'head/.*')"):
        param_groups.assign_groups(PATHS, (("all", ".*"), ("head", "head/.*")))


@pytest.mark.parametrize("rules", [(("head", "head/("),), ("head",), (("a", "b", "c"),), (("head", 5),)])
def test_rules_that_are_no_rules(rules):
    with refused("regular expression"):
        param_groups.assign_groups(PATHS, rules)


def test_part_and_labels():
    split = param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), RATES | {"block5": 1e-6})
    learning, _, frozen = split.partition(dict.fromkeys(PATHS, 7))
    assert sorted(learning) == sorted(PATHS[1:])
    assert list(frozen) == PATHS[:1]
    assert split.labels(learning) == dict(zip(PATHS[1:], ["block5", "block5", "head"], strict=True))


NORM = [f"backbone/norm/{leaf}" for leaf in ("scale", "bias", "mean", "var")]


def norm_split(rules, **rates):
    return param_groups.make_param_groups("tune", param_groups.assign_groups(NORM, rules), rates)


def test_statistics_move_with_their_layer_and_do_not_learn():
    parts = norm_split((("all", ".*"),), all=1e-3).partition(dict.fromkeys(NORM, 7))
    assert [list(part) for part in parts] == [NORM[:2], NORM[2:], []]
    assert param_groups.layers_in_train_mode([*parts.params, *parts.batch_stats], parts.frozen) == {"norm"}
    parts = norm_split((("all", ".*/(scale|bias|mean)"), ("rest", ".*")), all=1e-3, rest=0.0).partition(
        dict.fromkeys(NORM)
    )
    assert [list(part) for part in parts] == [NORM[:2], NORM[2:3], NORM[3:]]


def test_a_norm_whose_statistics_stay_is_not_in_training_though_its_bias_learns():
    parts = norm_split((("biases", ".*/bias"), ("rest", ".*")), biases=1e-3, rest=0.0).partition(dict.fromkeys(NORM))
    assert [list(part) for part in parts] == [NORM[1:2], [], [NORM[0], *NORM[2:]]]
    assert param_groups.layers_in_train_mode(parts.params, parts.frozen) == frozenset()
    assert param_groups.layers_in_train_mode([*parts.params, "head/out/bias"], [*parts.frozen, "head/out/kernel"]) == {
        "out"
    }


def test_statistics_alone_are_nothing_that_learns():
    with refused("'tune'", "tune.lr"):
        norm_split((("statistics", ".*/(mean|var)"), ("rest", ".*")), statistics=1e-3, rest=0.0)


LAYERS = ["block1_conv1", "block1_pool", "block5_conv1", "block5_pool"]  # of which two have parameters


def test_layers_decay_from_the_head_down():
    assert param_groups.layer_decay_scales(PATHS, LAYERS, 0.5) == dict(zip(PATHS, [0.25, 0.5, 0.5, 1.0], strict=True))
    assert param_groups.layer_decay_scales(PATHS, LAYERS, 1.0) == {}


def test_the_rates_of_a_group_whose_layers_decay():
    assigned = param_groups.assign_groups(PATHS, (("head", "head/.*"), ("base", "backbone/.*")))
    split = param_groups.ParamGroups(
        assigned, {"head": 0.5, "base": 0.25}, param_groups.layer_decay_scales(PATHS, LAYERS, 0.5)
    )
    assert split.lr_range("head") == (0.5, 0.5)
    assert split.lr_range("base") == (0.125, 0.0625)
    assert param_groups.ParamGroups(assigned, {"head": 0.5, "base": 0.0}).lr_range("base") == (0.0, 0.0)


def test_an_unknown_group_is_named_with_a_suggestion():
    with refused("tune.lr", "'blok5'", "'block5'"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), RATES | {"blok5": 0.0})


def test_a_missing_rate_is_named():
    with refused("tune.lr", "base, block5"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), {"head": 1e-3})


@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_a_rate_below_zero_is_named(rate):
    with refused("tune.lr.block5", f" {rate}"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), RATES | {"block5": rate})


def test_a_phase_in_which_nothing_learns_is_named():
    with refused("'tune'", "tune.lr"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), dict.fromkeys(RATES, 0.0))
