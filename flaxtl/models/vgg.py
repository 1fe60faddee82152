"""VGG16 and VGG19: Simonyan and Zisserman 2014, arXiv:1409.1556, configurations D and E.

Layer by layer as in Keras' vgg16.py and vgg19.py.
"""

from flaxtl.models.net import Net, Value

WIDTHS = (64, 128, 256, 512, 512)


def vgg(net: Net, x: Value, *, depths: tuple[int, ...], top: bool) -> Value:
    """Five blocks of 3x3 convolutions, each halved by a pool; with `top` the 1,000-class ImageNet classifier."""
    for block, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
        for layer in range(1, depth + 1):
            x = net.conv(x, width, 3, act="relu", name=f"block{block}_conv{layer}")
        x = net.max_pool(x, 2, name=f"block{block}_pool")
    if top:
        x = net.flatten(x, name="flatten")
        x = net.dense(x, 4096, act="relu", name="fc1")
        x = net.dense(x, 4096, act="relu", name="fc2")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def vgg16(net: Net, x: Value, top: bool) -> Value:
    """16 layers with weights; the base has 13."""
    return vgg(net, x, depths=(2, 2, 3, 3, 3), top=top)


def vgg19(net: Net, x: Value, top: bool) -> Value:
    """19 layers with weights; the base has 16."""
    return vgg(net, x, depths=(2, 2, 4, 4, 4), top=top)
