"""Parameter groups: rules, partition, batch statistics, layer decay."""

import re

import pytest

from flaxtl.errors import UserError
from flaxtl.models.classifier import flatten_params, unflatten_params
from flaxtl.train import param_groups
from flaxtl.train.optimizers import layer_decay_scales

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


def test_unflatten_params_inverts_flatten_params():
    tree = {"backbone": {"a": {"kernel": 1, "bias": 2}}, "head": {"b": {"kernel": 3}}}
    flat = {"backbone/a/kernel": 1, "backbone/a/bias": 2, "head/b/kernel": 3}
    assert flatten_params(tree) == flat
    assert unflatten_params(flat) == tree


def test_assign_groups_first_matching_rule_wins():
    assert param_groups.assign_groups(PATHS, RULES) == dict(
        zip(PATHS, ["base", "block5", "block5", "head"], strict=True)
    )
    everything_first = (("all", ".*/kernel"), ("rest", ".*"))
    assert list(param_groups.assign_groups(PATHS, everything_first).values()) == ["all", "all", "rest", "all"]


def test_assign_groups_rule_must_match_whole_path():
    with refused("'backbone/block1_conv1/kernel'"):
        param_groups.assign_groups(PATHS, (("head", "head/.*"), ("base", "backbone")))


def test_assign_groups_unmatched_path_is_rejected():
    with refused("'head/out/kernel'"):
        param_groups.assign_groups(PATHS, RULES[1:])


def test_assign_groups_unused_second_rule_of_group_is_rejected():
    with refused("('head', 'haed/.*')"):
        param_groups.assign_groups(PATHS, (("head", "head/.*"), ("head", "haed/.*"), ("base", "backbone/.*")))


def test_assign_groups_unused_rule_is_rejected():
    with refused("('block6', 'backbone/block6_.*')"):
        param_groups.assign_groups(PATHS, (("block6", "backbone/block6_.*"), *RULES))


def test_assign_groups_shadowed_rule_is_rejected():
    with refused("('head', 'head/.*')"):
        param_groups.assign_groups(PATHS, (("all", ".*"), ("head", "head/.*")))


@pytest.mark.parametrize("rules", [(("head", "head/("),), ("head",), (("a", "b", "c"),), (("head", 5),)])
def test_assign_groups_invalid_rules_are_rejected(rules):
    with refused("regular expression"):
        param_groups.assign_groups(PATHS, rules)


def test_partition_and_labels_follow_the_rates():
    split = param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), RATES | {"block5": 1e-6})
    learning, _, frozen = split.partition(dict.fromkeys(PATHS, 7))
    assert sorted(learning) == sorted(PATHS[1:])
    assert list(frozen) == PATHS[:1]
    assert split.labels(learning) == dict(zip(PATHS[1:], ["block5", "block5", "head"], strict=True))


NORM = [f"backbone/norm/{leaf}" for leaf in ("scale", "bias", "mean", "var")]


def norm_split(rules, **rates):
    return param_groups.make_param_groups("tune", param_groups.assign_groups(NORM, rules), rates)


def test_partition_batch_stats_are_updated_but_not_trained():
    parts = norm_split((("all", ".*"),), all=1e-3).partition(dict.fromkeys(NORM, 7))
    assert [list(part) for part in parts] == [NORM[:2], NORM[2:], []]
    assert param_groups.layers_in_train_mode([*parts.params, *parts.batch_stats], parts.frozen) == {"norm"}
    parts = norm_split((("all", ".*/(scale|bias|mean)"), ("rest", ".*")), all=1e-3, rest=0.0).partition(
        dict.fromkeys(NORM)
    )
    assert [list(part) for part in parts] == [NORM[:2], NORM[2:3], NORM[3:]]


def test_layers_in_train_mode_excludes_norm_with_frozen_stats():
    parts = norm_split((("biases", ".*/bias"), ("rest", ".*")), biases=1e-3, rest=0.0).partition(dict.fromkeys(NORM))
    assert [list(part) for part in parts] == [NORM[1:2], [], [NORM[0], *NORM[2:]]]
    assert param_groups.layers_in_train_mode(parts.params, parts.frozen) == frozenset()
    assert param_groups.layers_in_train_mode([*parts.params, "head/out/bias"], [*parts.frozen, "head/out/kernel"]) == {
        "out"
    }


def test_make_param_groups_batch_stats_alone_are_rejected():
    with refused("'tune'", "tune.lr"):
        norm_split((("statistics", ".*/(mean|var)"), ("rest", ".*")), statistics=1e-3, rest=0.0)


LAYERS = ["block1_conv1", "block1_pool", "block5_conv1", "block5_pool"]  # of which two have parameters


def test_lr_range_includes_layer_decay():
    assigned = param_groups.assign_groups(PATHS, (("head", "head/.*"), ("base", "backbone/.*")))
    split = param_groups.ParamGroups(assigned, {"head": 0.5, "base": 0.25}, layer_decay_scales(PATHS, LAYERS, 0.5))
    assert split.lr_range("head") == (0.5, 0.5)
    assert split.lr_range("base") == (0.125, 0.0625)
    assert param_groups.ParamGroups(assigned, {"head": 0.5, "base": 0.0}).lr_range("base") == (0.0, 0.0)


def test_make_param_groups_unknown_group_suggests_similar():
    with refused("tune.lr", "'blok5'", "'block5'"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), RATES | {"blok5": 0.0})


def test_make_param_groups_missing_rate_is_rejected():
    with refused("tune.lr", "base, block5"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), {"head": 1e-3})


@pytest.mark.parametrize("rate", [-1e-3, float("nan")])
def test_make_param_groups_negative_or_nan_rate_is_rejected(rate):
    with refused("tune.lr.block5", f" {rate}"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), RATES | {"block5": rate})


def test_make_param_groups_all_frozen_is_rejected():
    with refused("'tune'", "tune.lr"):
        param_groups.make_param_groups("tune", param_groups.assign_groups(PATHS, RULES), dict.fromkeys(RATES, 0.0))


def test_partition_divides_by_group_and_merge_is_the_inverse():
    params = unflatten_params({path: index for index, path in enumerate(PATHS)})
    groups = param_groups.param_groups(params, RULES)
    assert groups["backbone"]["block5_conv1"] == {"kernel": "block5", "bias": "block5"}
    parts = param_groups.partition(params, groups)
    assert parts == {
        "base": {"backbone": {"block1_conv1": {"kernel": 0}}},
        "block5": {"backbone": {"block5_conv1": {"kernel": 1, "bias": 2}}},
        "head": {"head": {"out": {"kernel": 3}}},
    }
    assert param_groups.merge(dict(reversed(parts.items()))) == params
    del groups["head"]
    with refused("'head/out/kernel'"):
        param_groups.partition(params, groups)


def test_param_groups_of_a_single_section_are_rejected():
    params = unflatten_params(dict.fromkeys(PATHS, 0))
    groups = param_groups.param_groups(params, RULES)
    with refused("section -> layer -> leaf"):
        param_groups.param_groups(params["backbone"], RULES)
    with refused("section -> layer -> leaf"):
        param_groups.param_groups(3, RULES)
    with refused("section -> layer -> leaf"):
        param_groups.partition(params["backbone"], groups)
    with refused("section -> layer -> leaf"):
        param_groups.merge(params)  # without a group
