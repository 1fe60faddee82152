"""The demo: synthetic flowers, the built-in VGG16 backbone, three phases. Needs no downloads.

    flaxtl train --config=demo --workdir=runs/demo

Four augmented views of each training image are made once, and the outputs of the frozen layers for them are cached. The
epochs use one view after the other, again and again. With new augmented images in every epoch the frozen layers would
have to process them all, and on a CPU that takes most of the time.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.batch_size = 16

    c.data = ConfigDict()
    c.data.source = "synthetic"
    c.data.classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    c.data.height = c.data.width = 96

    c.model = dict(name="vgg16", output_layer="")
    c.weights = dict(path="builtin")
    c.head = dict(pooling="global_average", units=(128,), dropout=0.4)
    c.augmentation = dict(rotation=20.0, height_shift=0.1, width_shift=0.1, shear=0.2, zoom=0.2, horizontal_flip=True)
    c.optimizer = dict(name="nadam", b1=0.9, b2=0.99, eps=1e-7)
    c.feature_cache = dict(views=4)

    c.param_groups = (("head", "head/.*"), ("block5", "backbone/block5_.*"), ("base", "backbone/.*"))
    c.phases = ("frozen", "augmented", "finetune")
    c.frozen = dict(epochs=20, augment=False, lr=dict(head=1e-3, block5=0.0, base=0.0))
    c.augmented = dict(epochs=20, augment=True, lr=dict(head=5e-4, block5=0.0, base=0.0))
    c.finetune = dict(epochs=6, augment=True, lr=dict(head=1e-5, block5=1e-5, base=0.0))
    return c
