"""Your own images: a folder with one subfolder per class.

    flaxtl train PATH

Usually, only the images and --config.model.name=NAME need to change; `flaxtl models` lists the models.
`top` is the last block of the model, such as block5 in VGG16 or conv5 in ResNet50; `flaxtl summary` shows its layers.
All other settings have the defaults of flaxtl/defaults.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.data = ConfigDict()
    c.data.source = "folder:images"  # images/CLASS/*.jpg, or images/{train,validation,test}/CLASS/*.jpg
    c.data.height = c.data.width = 200
    c.data.resize, c.data.crop_pct = "crop", 0.875  # keeps the aspect ratio; better than 1.0 on flowers

    c.model = dict(name="vgg16", output_layer="")
    c.weights = dict(path="imagenet")
    # Measured on flowers with 10 to 367 images a class: docs/configuration.md.
    c.head = dict(pooling="global_average", normalize="l2", units=(128,), dropout=0.4)
    c.augmentation = dict(rotation=30.0, height_shift=0.1, width_shift=0.1, zoom=0.2, horizontal_flip=True)

    c.phases = ("frozen", "augmented", "finetune")
    c.frozen = dict(epochs=30, min_steps=1000, augment=False, patience=8, lr=dict(head=1e-3, top=0.0, base=0.0))
    c.augmented = dict(epochs=20, augment=True, patience=6, lr=dict(head=5e-4, top=0.0, base=0.0))
    c.finetune = dict(epochs=20, augment=True, patience=6, lr=dict(head=1e-5, top=1e-5, base=0.0))
    return c
