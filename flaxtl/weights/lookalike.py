"""Whose weights a file seems to hold, told from one layer name that no other network has."""

from collections.abc import Collection

# (telltale layer, network), the more telling first: VGG19 holds every layer of VGG16, ResNetV2 most names of ResNet.
# Layer names as in keras/src/applications.
_TELLTALES = (
    ("block3_conv4", "VGG19"),
    ("block5_conv3", "VGG16"),
    ("conv2_block1_preact_bn", "a ResNetV2"),
    ("conv2_block1_1_conv", "a ResNet or DenseNet"),
    ("block2_sepconv1", "Xception"),
    ("conv_dw_1", "MobileNet"),
    ("block_1_expand", "MobileNetV2"),
    ("block1a_dwconv", "an EfficientNet"),
    ("conv_7b", "InceptionResNetV2"),
    ("inception_3a_1x1", "GoogLeNet"),
    ("fc6", "AlexNet"),
)

_OLD_RESNET50 = "res2a_branch2a"


def outdated(layers: Collection[str]) -> str | None:
    """What is wrong with a file of the ResNet50 that Keras had first (keras_applications/resnet50.py); else None.

    Its file has the name of today's and arrays of the same shapes, but its batch norms another epsilon: put in today's
    network, it would give numbers that look right.
    """
    if _OLD_RESNET50 not in layers:
        return None
    return (
        f"holds Keras' old ResNet50 (layer {_OLD_RESNET50}, batch norms with epsilon 0.001), which is another network "
        "than today's of the same file name; take today's file, as weights.path=imagenet does"
    )


def seems_to_be(layers: Collection[str], expected: Collection[str]) -> str | None:
    """'this looks like VGG19: it holds block3_conv4', or that only the last layers, the top, are missing; else None."""
    for layer, network in _TELLTALES:
        if layer in layers and layer not in expected:
            return f"this looks like {network}: it holds {layer}"
        if layer in layers:
            break
    first, rest = list(expected)[: len(layers)], list(expected)[len(layers) :]
    if rest and layers and set(first) == set(layers):
        return f"nothing from layer {rest[0]} on is in it: this looks like the file without the top"
    return None
