"""The course exercise that flaxtl is based on: 3,670 flower images, VGG16, three phases.

    flaxtl train --config=flowers_vgg16 --workdir=runs/flowers

Test accuracies of the exercise: frozen 85.41 %, augmented 88.29 %, finetune 92.61 %.

Variants:
  scratch: trains the augmented model from a new head for 250 epochs (the exercise: 88.38 %).
  smoke: runs two steps per epoch on small images, as a quick check; its results mean nothing.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.batch_size = 32

    c.data = ConfigDict()
    c.data.source = "tfds:tf_flowers"
    c.data.classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    c.data.height = c.data.width = 200
    c.data.resize = "squash"
    c.data.interpolation = "nearest"  # Keras' load_img
    c.data.fractions = dict(train=0.5, validation=0.2, test=0.3)

    c.model = dict(name="vgg16", output_layer="")
    c.weights = dict(path="imagenet")
    c.head = dict(pooling="average_2x2", units=(128,), dropout=0.4)
    c.augmentation = dict(rotation=30.0, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True)
    c.optimizer = dict(name="nadam", b1=0.9, b2=0.99, eps=1e-7)

    c.param_groups = (("head", "head/.*"), ("block5", "backbone/block5_.*"), ("base", "backbone/.*"))
    c.phases = ("frozen", "augmented", "finetune")
    c.frozen = dict(epochs=100, steps_per_epoch=20, augment=False, lr=dict(head=1e-3, block5=0.0, base=0.0))
    c.augmented = dict(epochs=100, steps_per_epoch=20, augment=True, lr=dict(head=1e-3, block5=0.0, base=0.0))
    c.finetune = dict(epochs=250, steps_per_epoch=20, augment=True, lr=dict(head=1e-6, block5=1e-6, base=0.0))

    if variant == "scratch":
        c.phases = ("augmented", "finetune")
        del c.frozen
        c.augmented.epochs = 250
    elif variant == "smoke":
        c.data.height = c.data.width = 64
        for phase in c.phases:
            c[phase].epochs, c[phase].steps_per_epoch = 2, 2
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}. Available: scratch, smoke")
    return c
