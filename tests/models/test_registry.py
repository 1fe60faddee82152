"""The registry, compared with Keras' own source."""

import inspect
import re
from functools import partial

import keras
import pytest
from helpers import keras_zoo

from flaxtl.errors import UserError
from flaxtl.models import vit
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.models.registry import FAMILIES, MODELS, canonical_name, get_spec
from flaxtl.pretrained.backbone import expected_shapes


class _DownloadError(Exception):
    """Raised instead of downloading."""


def keras_weights_file(name, monkeypatch, **settings):
    """Return the (file name, URL, hash) that Keras downloads."""

    def get_file(fname, origin, *, file_hash="", **_):
        raise _DownloadError(fname, origin, file_hash or "")

    keras_zoo.without_initializers(monkeypatch)
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", get_file)
    with pytest.raises(_DownloadError) as error:
        keras_zoo.KERAS_MODELS[name](weights="imagenet", **settings)
    return error.value.args


FAST = "mobilenet_025"
FIRST = [family.MODELS[0].name for family in FAMILIES]
OTHERS = [name for name in keras_zoo.KERAS_MODELS if name != FAST]


@pytest.mark.parametrize(
    "name", [FAST, *(pytest.param(name, marks=pytest.mark.exhaustive("networks")) for name in OTHERS)]
)
def test_weights_files_are_those_of_keras(name, monkeypatch):
    spec = get_spec(name)
    assert keras_weights_file(name, monkeypatch) == tuple(vars(spec.weights).values())
    shape = (spec.input_size, spec.input_size, 3)
    no_top = keras_weights_file(name, monkeypatch, include_top=False, input_shape=shape)
    assert no_top == tuple(vars(spec.weights_no_top).values())


@pytest.mark.parametrize("name", keras_zoo.KERAS_MODELS)
def test_min_input_size_is_that_of_keras(name):
    side = get_spec(name).min_input_size
    with pytest.raises(ValueError, match=f"at least {side}x{side}"):
        keras_zoo.KERAS_MODELS[name](weights=None, include_top=False, input_shape=(side - 1, side - 1, 3))


def test_registry_has_every_keras_model():
    assert MODELS.keys() == keras_zoo.KERAS_MODELS.keys() | {"alexnet", "googlenet"} | {
        spec.name for spec in vit.MODELS
    }
    builders = {name for name, member in vars(keras.applications).items() if inspect.isfunction(member)}
    assert len(builders) >= 39
    assert {get_spec(name).name for name in builders} <= keras_zoo.KERAS_MODELS.keys()


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_spec_is_complete(spec):
    assert spec.preprocessing in PREPROCESSING
    assert 0 < spec.num_params_no_top < spec.num_params
    assert 50 < spec.top1 < (spec.top5 or 99) < 100
    assert spec.license
    assert spec.paper.startswith(("arXiv:", "doi:"))
    assert spec.groups[0][0] == "head"


@pytest.mark.parametrize(
    "name",
    [
        FAST,
        *(pytest.param(name, marks=pytest.mark.slow) for name in FIRST),
        *(
            pytest.param(name, marks=pytest.mark.exhaustive("networks"))
            for name in MODELS
            if name not in (FAST, *FIRST)
        ),
    ],
)
def test_num_params_are_those_of_the_network(name):
    """The layers and parameters are compared with Keras in test_keras_parity.py."""
    spec = get_spec(name)
    extra = 7 if keras_zoo.family(name) == "efficientnet" else 0  # of Keras' Normalization layer
    assert keras_zoo.count_params(name, include_top=True) + extra == spec.num_params
    assert keras_zoo.count_params(name, include_top=False) + extra == spec.num_params_no_top


TOPS = {
    "mobilenet_100": "conv_pw_11_relu",
    "mobilenet_v2_100": "block_12_add",
    "mobilenet_v3_small_100": "expanded_conv_7_add",
    "mobilenet_v3_large_100": "expanded_conv_11_project_bn",
    "xception": "add_10",
    "efficientnet_b0": "block6d_add",
    "inception_v3": "mixed8",
    "inception_resnet_v2": "mixed_7a",
    "convnext_tiny": "convnext_tiny_downsampling_conv_2",
    "vit_tiny_patch16_224": "encoderblock_10_output",
}
"""Network -> last layer below its last block."""


@pytest.mark.parametrize(
    "name", [name if name == "mobilenet_100" else pytest.param(name, marks=pytest.mark.slow) for name in TOPS]
)
def test_last_block_is_everything_above_a_layer(name):
    spec, head = get_spec(name), Head(2, "global_average")
    layers = expected_shapes(Classifier(spec, head)).keys()
    above = layers - expected_shapes(Classifier(spec, head, output_layer=TOPS[name])).keys()
    rule = dict(spec.groups)[spec.last_block]
    assert {layer for layer in layers if re.fullmatch(rule, f"backbone/{layer}/kernel")} == above


def test_names_are_snake_case():
    assert [name for name in MODELS if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)] == []


SPELLINGS = {
    "vgg16": "VGG16 VGG-16 Vgg_16",
    "resnet50_v2": "ResNet50V2 resnet50v2 resnet-50-v2",
    "mobilenet_025": "mobilenet_0.25 MobileNet-0.25 mobilenet025",
    "mobilenet_050": "mobilenet_0.50 mobilenet_0.5",
    "mobilenet_100": "MobileNet mobilenet mobilenet_1.0",
    "mobilenet_v2_035": "mobilenet_v2_0.35 mobilenetv2-0.35 mobilenetv2_035",
    "mobilenet_v2_100": "MobileNetV2 mobilenet_v2 mobilenet_v2_1.0 mobilenetv2_100",
    "mobilenet_v2_140": "mobilenet_v2_1.4 MobileNetV2_1.4",
    "mobilenet_v3_small_100": "MobileNetV3Small mobilenet_v3_small tf_mobilenetv3_small_100",
    "nasnet_large": "NASNetLarge",
    "inception_resnet_v2": "InceptionResNetV2",
    "efficientnet_b0": "EfficientNetB0 efficientnetb0 EfficientNet-B0 tf_efficientnet_b0",
    "efficientnet_v2_b3": "EfficientNetV2B3 efficientnetv2-b3 tf_efficientnetv2_b3",
    "efficientnet_v2_s": "EfficientNetV2S efficientnetv2-s",
}
"""Model -> spellings: of earlier versions, of Keras, of timm, and mixtures."""


@pytest.mark.parametrize("name", SPELLINGS)
def test_get_spec_accepts_other_spellings(name):
    assert {get_spec(spelling).name for spelling in SPELLINGS[name].split()} == {name}


def test_get_spec_accepts_the_names_of_keras_functions():
    for name, build in keras_zoo.KERAS_MODELS.items():
        if not isinstance(build, partial):  # of a width other than 1
            assert get_spec(build.__name__).name == name


def test_canonical_name_of_unknown_model_is_unchanged():
    assert canonical_name("MobileNet") == "mobilenet_100"
    assert canonical_name("MobileNet_2") == "MobileNet_2"


def test_get_spec_of_unknown_name_suggests():
    with pytest.raises(UserError, match=r"'vgg'.*'vgg1[69]'"):
        get_spec("vgg")
    with pytest.raises(UserError, match=r"'EfficentNetB0'.*'efficientnet_b0'"):
        get_spec("EfficentNetB0")
