"""The images and the network of `flowers_vgg16`, with today's methods: one phase of six epochs.

    flaxtl train --config=flowers_tuned --workdir=runs/flowers_tuned

Differs from the exercise in: images of 224x224, the size that VGG16 was trained with, resized with bicubic
interpolation; features averaged over positions and normalized per image, and no hidden layer; block5 trains together
with the head, with AdamW and a learning rate that warms up and falls to 0; label smoothing; bfloat16. Six augmented
views of each image are cached.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.batch_size = 32
    c.dtype = "bfloat16"
    c.label_smoothing = 0.1

    c.data = ConfigDict()
    c.data.source = "tfds:tf_flowers"
    c.data.classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    c.data.height = c.data.width = 224
    c.data.resize = "squash"
    c.data.interpolation = "bicubic"
    c.data.fractions = dict(train=0.5, validation=0.2, test=0.3)

    c.model = dict(name="vgg16")
    c.weights = dict(path="imagenet")
    c.head = dict(pooling="global_average", units=(), dropout=0.0, normalize="layer_norm")
    c.augmentation = dict(rotation=25.0, height_shift=0.1, width_shift=0.1, zoom=0.2, horizontal_flip=True)
    c.optimizer = dict(name="adamw", weight_decay=1e-2)
    c.feature_cache = dict(views=6)

    c.param_groups = (("head", "head/.*"), ("block5", "backbone/block5_.*"), ("base", "backbone/.*"))
    c.phases = ("finetune",)
    c.finetune = dict(
        epochs=6,
        augment=True,
        schedule="cosine",
        warmup_steps=60,
        lr=dict(head=2e-3, block5=3e-4, base=0.0),
    )
    return c
