import pytest

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, flatten_params
from flaxtl.models.flops import eval_step_flops, forward_flops, train_step_flops

FLOPS = {"a": 100, "b": 10, "c": 1}


@pytest.mark.parametrize(
    ("name", "multiply_adds"),  # with the output layer; of VGG16: 15,346,630,656 in convolutions, 123,633,664 above
    [("vgg16", 15_470_264_320), ("resnet50", 3_857_973_248), ("mobilenet", 568_740_352)],
)
def test_forward_flops_are_the_published_ones(name, multiply_adds):
    model = Classifier(registry.get_spec(name))
    shapes = flatten_params(classifier.param_shapes(model, 224, 224))
    flops = forward_flops(classifier.list_layers(model, 224, 224), shapes)
    assert sum(flops.values()) == 2 * multiply_adds


def test_train_step_flops_count_the_backward_pass_of_what_trains():
    assert train_step_flops(FLOPS, start_layer=None, cut_layer=None) == 3 * 111
    assert train_step_flops(FLOPS, start_layer=None, cut_layer="a") == 111 + 2 * 11
    assert train_step_flops(FLOPS, start_layer="b", cut_layer="b") == 3


def test_eval_step_flops_begin_above_the_start_layer():
    assert eval_step_flops(FLOPS, None) == 111
    assert eval_step_flops(FLOPS, "a") == 11
