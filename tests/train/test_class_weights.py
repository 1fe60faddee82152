import numpy as np
import pytest

from flaxtl.config import load_config
from flaxtl.errors import UserError
from flaxtl.train.metrics import class_weights

CLASSES = ("daisy", "roses", "tulips")
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2], np.int32)


def test_class_weights_none_gives_equal_weights():
    assert class_weights("none", CLASSES, LABELS) is None


def test_class_weights_balanced_gives_classes_equal_total():
    weights = class_weights("balanced", CLASSES, LABELS)
    assert weights == (10 / 18, 10 / 9, 10 / 3)
    sums = np.bincount(LABELS, np.array(weights)[LABELS])
    np.testing.assert_allclose(sums, 10 / 3, rtol=1e-15)  # and all together weigh as much as before


def test_class_weights_by_name_default_to_one():
    assert class_weights("{'tulips': 3, 'daisy': 0.5}", CLASSES, LABELS) == (0.5, 1.0, 3.0)


def test_class_weights_of_config_are_replaced_by_override(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'class_weights': {'tulips': 3}, 'frozen': {'lr': {'head': 1e-3}}})\n"
    )
    assert class_weights(load_config(str(file)).class_weights, CLASSES, LABELS) == (1.0, 1.0, 3.0)
    assert load_config(str(file), ["--config.class_weights=balanced"]).class_weights == "balanced"


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("balancd", "class_weights.*'balancd'.*'balanced'"),
        ("{'rose': 2.0}", "class_weights.*'rose'.*'roses'"),
        ("{'roses': -1.0}", r"class_weights.*'roses'.* -1\.0\b.*\b0\b"),
        ("{'roses': 1e999}", r"class_weights.*'roses'.*\binf\b"),
        ("{'roses': True}", r"class_weights.*'roses'.*\bTrue\b"),
        ("{'roses': '2'}", "class_weights.*'roses'.*'2'"),
        ("{'daisy': 0, 'roses': 0, 'tulips': 0}", r"class_weights(?!.*').*\b0\b"),
        ("{'roses': ", r"class_weights.*\bnone\b.*\bbalanced\b"),
        ("{1, 2}", r"class_weights.*\bnone\b.*\bbalanced\b"),
    ],
)
def test_class_weights_invalid_setting_is_rejected(setting, facts):
    with pytest.raises(UserError, match=facts):
        class_weights(setting, CLASSES, LABELS)
