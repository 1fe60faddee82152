import json
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from flaxtl.config import config_differences, config_from_json, config_to_json, flatten_config, load_config
from flaxtl.defaults import DEFAULTS, PHASE_DEFAULTS
from flaxtl.errors import UserError

SMALLEST = "c.frozen = dict(lr=dict(head=1e-3, base=0))"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a config file of the given lines and returns its path."""

    def writer(*lines, signature="", name="mine"):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # config_flags keeps the last config there
        file = tmp_path / f"{name}.py"
        body = "\n".join(f"    {line}" for line in ("c = ConfigDict()", *lines, "return c"))
        file.write_text(f"from ml_collections import ConfigDict\ndef get_config({signature}):\n{body}\n")
        return str(file)

    return writer


@pytest.fixture
def error_of(write):
    """Return a function that gives the error message, one line, for a config file of the given lines."""

    def load(*lines, overrides=()):
        with pytest.raises(UserError) as error:
            load_config(write(*lines), overrides)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    return load


def missing(facts, text):
    """Return those of the regular expressions that do not match the text."""
    return [fact for fact in facts if not re.search(fact, text)]


def test_load_config_fills_in_defaults(write):
    config = load_config(write(SMALLEST)).to_dict()
    frozen = config.pop("frozen")
    assert config == DEFAULTS.to_dict()
    assert frozen == {**PHASE_DEFAULTS.to_dict(), "lr": {"head": 1e-3, "base": 0.0}}


def test_load_config_keeps_values_of_the_file(write):
    config = load_config(
        write(
            "c.seed = 7",
            "c.data = dict(height=64)",
            "c.head = dict(units=[32, 16], dropout=0)",
            "c.phases = ['first', 'second']",
            "c.first = dict(epochs=1, lr=dict(head=1e-3, base=0.0))",
            "c.second = dict(augment=True, lr=dict(head=1e-4, base=1e-5))",
        )
    )
    assert config.seed == 7
    assert (config.data.height, config.data.width) == (64, 200)
    assert config.head.units == (32, 16)
    assert isinstance(config.head.dropout, float)
    assert config.phases == ("first", "second")
    assert (config.first.epochs, config.first.augment) == (1, False)
    assert (config.second.epochs, config.second.augment) == (10, True)


def test_load_config_does_not_share_defaults(write):
    first = load_config(write(SMALLEST, "c.data = dict(fractions=dict(train=0.8, validation=0.2))"))
    assert first.data.fractions.to_dict() == {"train": 0.8, "validation": 0.2}
    second = load_config(write(SMALLEST))
    assert second.data.fractions.to_dict() == {"train": 0.5, "validation": 0.2, "test": 0.3}


def test_load_config_replaces_the_optimizer_as_a_whole(write):
    config = load_config(write(SMALLEST, "c.optimizer = dict(name='sgd', momentum=0.9)"))
    assert config.optimizer.to_dict() == {"name": "sgd", "momentum": 0.9}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=3", 3),
        ("head.units=(256, 128)", (256, 128)),
        ("head.units=256", (256,)),
        ("head.units=()", ()),
        ("head.dropout=0", 0.0),
        ("frozen.lr.head=3e-6", 3e-6),
        ("frozen.lr.base=3e-6", 3e-6),  # the config has the integer 0 there
        ("frozen.augment=True", True),
        ("frozen.augment=false", False),
        ("data.source=folder:/a=b:c", "folder:/a=b:c"),
        ("data.classes=('rose', 'tulip')", ("rose", "tulip")),
        ("data.fractions.train=0.6", 0.6),  # the config has the integer 1 there
        ("model.output_layer=block3_pool", "block3_pool"),
        ("param_groups=(('head', 'head/.*'), ('base', '.*'))", (("head", "head/.*"), ("base", ".*"))),
    ],
)
def test_override_has_the_type_of_the_setting(write, override, expected):
    file = write(SMALLEST, "c.data = dict(fractions=dict(train=1, validation=0))")
    value = load_config(file, [f"--config.{override}"])
    for key in override.split("=")[0].split("."):
        value = value[key]
    assert value == expected
    assert type(value) is type(expected)


def test_override_of_the_optimizer_by_another_drops_other_arguments(write):
    file, kept = write(SMALLEST), {"name": "nadam", "b1": 0.5, "b2": 0.999, "eps": 1e-7}
    assert load_config(file, ["--config.optimizer.name=sgd"]).optimizer.to_dict() == {"name": "sgd"}
    for name in ([], ["--config.optimizer.name=nadam"]):
        assert load_config(file, [*name, "--config.optimizer.b1=0.5"]).optimizer.to_dict() == kept


def test_override_given_twice_uses_the_last(write):
    assert load_config(write(SMALLEST), ["--config.seed=1", "--config.batch_size=8", "--config.seed=2"]).seed == 2


TOP = "c.frozen = dict(lr=dict(head=1e-3, top=0.0, base=0))"


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["head.units=256", "head.units=64"], "head.units", (64,)),
        (["head.units=(256,128)", "seed=1", "head.units=(32,)"], "head.units", (32,)),
        (["head.units=256", "head.units="], "head.units", ()),
        (["data.classes=roses,daisy"], "data.classes", ("roses", "daisy")),
        (["data.classes=[roses]"], "data.classes", ("roses",)),
        (["data.classes=(roses, red rose)"], "data.classes", ("roses", "red rose")),
        (["data.classes=('a, b','c')"], "data.classes", ("a, b", "c")),
        (["data.classes=roses"], "data.classes", ("roses",)),
        (["phases=second,first"], "phases", ("second", "first")),
    ],
)
def test_override_of_a_tuple_is_a_list_of_names(write, overrides, key, expected):
    phases = "c.first = dict(lr=dict(head=1e-3))", "c.second = dict(lr=dict(head=1e-4))"
    file = write("c.phases = ('first', 'second')", *phases)
    values = dict(flatten_config(load_config(file, [f"--config.{override}" for override in overrides])))
    assert values[key] == expected


def test_override_of_the_last_blocks_own_name_replaces_top(write):
    file = write(TOP)
    assert load_config(file).frozen.lr.to_dict() == {"head": 1e-3, "top": 0.0, "base": 0.0}
    named = load_config(file, ["--config.frozen.lr.block5=3e-6"])
    with pytest.raises(UserError, match=r"frozen\.lr\.block5 and frozen\.lr\.top\b.*\bblock5\. Give one\b"):
        load_config(file, ["--config.frozen.lr.top=0.0", "--config.frozen.lr.block5=3e-6"])
    assert named.frozen.lr.to_dict() == {"head": 1e-3, "block5": 3e-6, "base": 0.0}
    assert config_from_json(config_to_json(named)) == named


@pytest.mark.parametrize("key", ["frozen.lr", "frzen.lr.block5", "frozen.lr.", "frozen.block5"])
def test_override_that_is_no_rate_of_the_last_block_is_refused(write, key):
    with pytest.raises(UserError):
        load_config(write(TOP), [f"--config.{key}=3e-6"])


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("sed=3", [r"\bsed\b.*\bseed\b"]),
        ("head.unit=3", [r"\bhead\.unit\b.*\bhead\.units\b"]),
        ("frozen.lr.haed=1", [r"\bfrozen\.lr\.haed\b.*\bfrozen\.lr\.head\b"]),
        ("lr=3", [r"'lr'\. Did you mean 'frozen\.lr\.head'\?"]),
        ("frozen.lr=3", [r"'frozen\.lr' is a section\b.*: frozen\.lr\.base or frozen\.lr\.head$"]),
        ("late.lr=1", [r"^Unknown phase 'late'\. Available: frozen$"]),
        ("frozn.epochs=3", [r"^Unknown phase 'frozn'\. Did you mean 'frozen'\?$"]),
        ("head=3", [r"'head' is a section\b.*: head\.dropout, head\.normalize, head\.pooling or head\.units$"]),
        ("seed", [r"--config\.seed(?!=)", r"--config\.seed=\S"]),
        ("phases=()", [r"\bphases\b", r"\bfrozen,finetune\b"]),
        ("seed=1.5", [r"--config\.seed=1\.5: '1\.5' is not a whole number, such as 0\."]),
        ("frozen.lr.head=fast", [r"'fast' is not a number"]),
        ("deterministic=maybe", [r"'maybe' is not true or false"]),
        ("head.units=64,x", [r"head\.units", r"'64'", r"whole numbers"]),
        ("phases=('frozn',)", [r"\bphase 'frozn'.*'frozen'"]),
        ("phases=('data',)", [r"\bphase 'data'.*\bfrozen\b"]),
    ],
)
def test_override_of_unknown_setting_is_refused(error_of, override, facts):
    assert missing(facts, error_of(SMALLEST, overrides=[f"--config.{override}"])) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch", "batch_size"),
        ("accumulate", "accum_steps"),
        ("groups", "param_groups"),
        ("data.filter", "data.interpolation"),
        ("model.stop", "model.output_layer"),
        ("features.views", "feature_cache.views"),
        ("features.directory", "feature_cache.dir"),
        ("frozen.metric", "frozen.monitor"),
    ],
)
def test_override_of_a_renamed_setting_names_the_new_one(error_of, old, new):
    assert f"'{old}'. Did you mean '{new}'?" in error_of(SMALLEST, overrides=[f"--config.{old}=1"])


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("frozen.lr.head=inf", [r"'frozen\.lr\.head' is inf\b"]),
        ("checkpoint.every_seconds=nan", [r"'checkpoint\.every_seconds' is nan\b"]),
        ("param_groups=head,base", [r"'param_groups' contains 'head'"]),
    ],
)
def test_override_with_an_impossible_value_is_refused(error_of, override, facts):
    assert missing(facts, error_of(SMALLEST, overrides=[f"--config.{override}"])) == []


@pytest.mark.parametrize("override", ["seed=many", "seed=1.5", "frozen.augment=perhaps", "head.dropout=x"])
def test_override_of_wrong_type_is_refused(error_of, override):
    assert f"--config.{override}" in error_of(SMALLEST, overrides=[f"--config.{override}"])


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("c.sed = 3", [r"\bsed\b.*\bseed\b"]),
        ("c.head = dict(unit=(3,))", [r"\bhead\.unit\b.*\bhead\.units\b"]),
        ("c.frozen.epoch = 3", [r"\bfrozen\.epoch\b.*\bfrozen\.epochs\b"]),
        ("c.batch_size = '32'", [r"\bbatch_size\b", r"'32'", r"(?<!')\b32\b"]),
        ("c.batch_size = 3.5", [r"\bbatch_size\b", r"\b3\.5\b", r"\b32\b"]),
        ("c.seed = dict(a=1)", [r"'seed' is \{'a': 1\}, which has the wrong type"]),
        ("c.data = dict(fractions=dict(train='half'))", [r"'data\.fractions' must give .*\bdict\(train=0\.5,"]),
        ("del c.frozen", [r"^Phase 'frozen' has no settings\. .*\bc\.frozen = dict\(lr="]),
        ("c.seed = True", [r"\bseed\b", r"\bTrue\b", r"\b0\b"]),
        ("c.head = dict(units=3)", [r"\bhead\.units\b", r"\b3\b", r"\(128,\)"]),
        ("c.dtype = 16", [r"\bdtype\b", r"\b16\b", r"'float32'"]),
        ("c.weights = 'imagenet'", [r"\bweights\b", r"(?<!: )'imagenet'", r"\{'path': 'imagenet'"]),
        ("c.frozen.lr = ConfigDict({'head': 'fast'})", [r"\bfrozen\.lr\b", r"\bdict\(head=1e-3\)"]),
        ("c.phases = 'frozen'", [r"\bphases\b", r"\bfrozen,finetune\b"]),
        ("c.phases = ()", [r"\bphases\b", r"\bfrozen,finetune\b"]),
        ("c.phases = ('frozn',)", [r"\bphase 'frozn'.*'frozen'"]),
        ("c.phases = ('late',)", [r"\bphase 'late'.*\bfrozen\b"]),
        ("c.phases = ('data',)", [r"\bphase\b", r"'data'", r"\bsetting\b"]),
        ("c.late = dict(lr=dict(head=1.0))", [r"\.late\b", r"\bphases\b"]),
    ],
)
def test_invalid_setting_is_refused(error_of, line, facts):
    assert missing(facts, error_of(SMALLEST, line)) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise ValueError('no such flower')", "no such flower"),
        ("{}['seed']", "'seed' (KeyError in line 4)"),
        ("import no_such_module", "No module named 'no_such_module' (ModuleNotFoundError in line 4)"),
        ("1 +", "invalid syntax (mine.py, line 4)"),
    ],
)
def test_broken_config_file_reports_its_last_line(error_of, line, reason):
    assert re.search(rf"/mine\.py\b.*{re.escape(reason)}$", error_of(line))


def test_config_file_without_get_config_is_refused(write, tmp_path):
    write()
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"empty\.py\b.*get_config"):
        load_config(str(file))


@pytest.mark.parametrize("result", ["None", "dict(seed=1)"])
def test_config_file_must_return_a_configdict(error_of, result):
    facts = [r"/mine\.py\b", r"\bConfigDict\b", r"\bget_config\b"]
    assert missing(facts, error_of(f"return {result}")) == []


@pytest.mark.parametrize("spec", ["nowhere/mine.py", "nowhere/mine.py:variant", "", "~/mine.py"])
def test_missing_config_file_is_named(spec, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # the user has no home folder: KeyError
    with pytest.raises(UserError, match=re.escape(f"'{spec.split(':')[0]}'") + r".*--config=demo\|"):
        load_config(spec)


@pytest.mark.parametrize("name", ["demo", "folder", "flowers_tuned", "flowers_vgg16:scratch", "gradual"])
def test_config_name_finds_a_config_of_flaxtl(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "finetune" in load_config(name).phases or name == "gradual"


def test_variant_is_passed_to_get_config(write):
    file = write(SMALLEST, "c.seed = {'': 1, 'two': 2}[variant]", signature="variant=''")
    assert load_config(file).seed == 1
    assert load_config(f"{file}:two").seed == 2
    with pytest.raises(UserError, match="three"):
        load_config(f"{file}:three")


@pytest.mark.parametrize("name", ["a:b.py", r"C:\x.py", "mine:two"])
def test_config_file_may_contain_colons(write, tmp_path, name):
    written = write(SMALLEST, "c.seed = {'': 1, 'two': 2}[variant]", signature="variant=''")
    file = Path(written).rename(tmp_path / name)
    assert load_config(str(file)).seed == 1
    assert load_config(f"{file}:two").seed == 2


def test_variant_of_a_config_without_variants_is_refused(write):
    with pytest.raises(UserError, match=r"mine\.py:two': it has no variants\. Leave out ':two'\."):
        load_config(write(SMALLEST) + ":two")


def test_loaded_config_is_locked(write):
    with pytest.raises(AttributeError, match="Did you mean"):
        load_config(write(SMALLEST)).sed = 1


def test_config_from_json_reverses_config_to_json(write):
    config = load_config(write(SMALLEST, "c.param_groups = (('head', 'head/.*'), ('base', '.*'))"))
    text = json.dumps(config_to_json(config))
    again = config_from_json(json.loads(text))
    assert config_to_json(again) == config_to_json(config)
    assert config_differences(json.loads(text), config_to_json(config)) == []
    assert [tuple(rule) for rule in again.param_groups] == [("head", "head/.*"), ("base", ".*")]
    assert again.frozen.lr.head == 1e-3


def test_config_differences_lists_settings_in_order():
    old = {"seed": 0, "data": {"source": "synthetic", "height": 200}, "frozen": {"epochs": 3, "lr": {}}}
    new = {"seed": 0, "data": {"source": "folder:x", "height": 96}, "frozen": {"lr": {"head": 0.1}, "augment": True}}
    differences = [re.fullmatch(r"(\S+): (.+) -> (.+)", line).groups() for line in config_differences(old, new)]
    absent = differences[2][2]
    assert differences == [
        ("data.source", "synthetic", "folder:x"),
        ("data.height", "200", "96"),
        ("frozen.epochs", "3", absent),
        ("frozen.lr", "{}", absent),
        ("frozen.lr.head", absent, "0.1"),
        ("frozen.augment", absent, "True"),
    ]


def test_config_differences_counts_an_absent_phase_once():
    old = {"phases": ["frozen"], "frozen": {"epochs": 3}}
    new = {"phases": ["frozen", "finetune"], "frozen": {"epochs": 3}, "finetune": {"epochs": 2, "patience": 4}}
    assert config_differences(old, new) == ["phases: ['frozen'] -> ['frozen', 'finetune']"]


def test_flatten_config_keeps_order_and_empty_sections():
    nested = ConfigDict({"b": {"y": 1, "x": {}}, "a": (2,)})
    assert sorted(flatten_config(nested)) == [("a", (2,)), ("b.x", ConfigDict()), ("b.y", 1)]
    assert list(flatten_config({"b": {"y": 1}, "a": 2})) == [("b.y", 1), ("a", 2)]


def test_override_of_phases_drops_settings_of_other_phases(write):
    phases = "c.first = dict(lr=dict(head=1e-3))", "c.second = dict(lr=dict(head=1e-4))"
    file = write("c.phases = ('first', 'second')", *phases)
    config = load_config(file, ["--config.phases=('second',)", "--config.second.epochs=3"])
    assert "first" not in config
    again = config_from_json(config_to_json(config))
    assert again == config
    assert again.second.epochs == 3


def test_override_adds_an_optimizer_argument(write):
    file = write(SMALLEST)
    overrides = [
        "--config.optimizer.name=adamw",
        "--config.optimizer.weight_decay=0.01",
        "--config.optimizer.nesterov=True",
    ]
    expected = {"name": "adamw", "weight_decay": 0.01, "nesterov": True}
    assert load_config(file, overrides).optimizer.to_dict() == expected
    for override in ("optimizer.weight_decay=abc", "optimizer.=3", "optimizer=3", "head.optimizer.x=1"):
        with pytest.raises(UserError):
            load_config(file, [f"--config.{override}"])


@pytest.mark.parametrize(
    ("line", "override", "name", "expected"),
    [
        ("", "lr=0.1", "lr", 0.1),  # not the settings of a phase: the optimizer refuses it, with a better sentence
        ("", "nesterov=true", "nesterov", True),
        ("", "mask=None", "mask", None),
        ("c.optimizer = dict(name='sgd', momentum=None)", "momentum=0.9", "momentum", 0.9),
    ],
)
def test_override_sets_any_optimizer_argument(write, line, override, name, expected):
    config = load_config(write(SMALLEST, line), [f"--config.optimizer.{override}"])
    assert config.optimizer[name] == expected
    assert config_from_json(config_to_json(config)) == config


def test_override_of_the_name_of_an_optimizer_without_one(write):
    file = write(SMALLEST, "c.optimizer = dict(b1=0.8)")
    assert load_config(file, ["--config.optimizer.name=adam"]).optimizer.to_dict() == {"name": "adam"}
