"""Whose weights a file seems to hold, told from one layer name that no other network has."""

from collections.abc import Collection

# (telltale layer, network), the more telling first: VGG19 holds every layer of VGG16, ResNetV2 most names of ResNet.
# Layer names as in keras/src/applications; `res2a_branch2a` is the ResNet50 of keras-applications before 2018.
_TELLTALES = (
    ("block3_conv4", "VGG19"),
    ("block5_conv3", "VGG16"),
    ("res2a_branch2a", "the old ResNet50"),
    ("conv2_block1_preact_bn", "a ResNetV2"),
    ("conv2_block1_1_conv", "a ResNet or DenseNet"),
    ("block2_sepconv1", "Xception"),
    ("conv_dw_1", "MobileNet"),
    ("block_1_expand", "MobileNetV2"),
    ("block1a_dwconv", "an EfficientNet"),
    ("conv_7b", "InceptionResNetV2"),
)


def seems_to_be(layers: Collection[str], expected: Collection[str]) -> str | None:
    """'this looks like VGG19: it holds block3_conv4', or None where the file shows nothing that was not expected."""
    for layer, network in _TELLTALES:
        if layer in layers:
            return None if layer in expected else f"this looks like {network}: it holds {layer}"
    return None
