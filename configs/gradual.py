"""Your own images, the base thawed block by block from the top (Howard and Ruder 2018, there for text).

    flaxtl train --config=configs/gradual.py --config.data.source=folder:PATH --workdir=runs/gradual

Each phase adds a block to what learns, lower ones at lower rates; a rate warms up, then falls to 0 over its phase.
What is left out here has the default in flaxtl/config.py.
For images unlike ImageNet's, which the top of the base says little about; else configs/folder.py is shorter.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.data = ConfigDict()
    c.data.source = "folder:images"  # images/CLASS/*.jpg, or images/{train,validation,test}/CLASS/*.jpg
    c.data.resize = "crop"  # keeps the images' proportions

    c.model = dict(name="vgg16")
    c.head = dict(pooling="global_average", units=(128,), dropout=0.4)
    c.augmentation = dict(rotation=30.0, height_shift=0.1, width_shift=0.1, zoom=0.2, horizontal_flip=True)

    c.param_groups = (
        ("head", "head/.*"),
        ("block5", "backbone/block5_.*"),
        ("block4", "backbone/block4_.*"),
        ("base", "backbone/.*"),
    )
    c.phases = ("frozen", "thaw5", "thaw4")
    c.frozen = dict(epochs=30, patience=8, lr=dict(head=1e-3, block5=0.0, block4=0.0, base=0.0))
    falling = dict(epochs=10, augment=True, schedule="linear", warmup_steps=20, layer_decay=0.8)
    c.thaw5 = dict(falling, lr=dict(head=3e-5, block5=3e-5, block4=0.0, base=0.0))
    c.thaw4 = dict(falling, lr=dict(head=2e-5, block5=2e-5, block4=2e-5, base=0.0))
    return c
