"""Your own images, with gradual unfreezing of the backbone from the top (Howard and Ruder 2018, for text).

    flaxtl train --config=gradual --config.data.source=folder:PATH --workdir=runs/gradual

Each phase unfreezes one more block, with lower learning rates for lower layers. A learning rate warms up, then falls
to 0 during its phase. With few images, min_steps gives the epochs more steps: the head needs about 1,000, and the
warm-up takes at most a tenth of a phase. All other settings have the defaults of flaxtl/defaults.py.
Use it for images that differ from ImageNet's; otherwise configs/folder.py is enough, and faster.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.data = ConfigDict()
    c.data.source = "folder:images"  # images/CLASS/*.jpg, or images/{train,validation,test}/CLASS/*.jpg
    c.data.resize = "crop"  # keeps the aspect ratio

    c.model = dict(name="vgg16")
    # Measured with configs/folder.py: docs/configuration.md.
    c.head = dict(pooling="global_average", normalize="l2", units=(128,), dropout=0.4)
    c.augmentation = dict(rotation=30.0, height_shift=0.1, width_shift=0.1, zoom=0.2, horizontal_flip=True)

    c.param_groups = (
        ("head", "head/.*"),
        ("block5", "backbone/block5_.*"),
        ("block4", "backbone/block4_.*"),
        ("base", "backbone/.*"),
    )
    c.phases = ("frozen", "thaw5", "thaw4")
    c.frozen = dict(epochs=30, min_steps=1000, patience=8, lr=dict(head=1e-3, block5=0.0, block4=0.0, base=0.0))
    falling = dict(epochs=10, min_steps=200, augment=True, schedule="linear", warmup_steps=20, layer_decay=0.5)
    c.thaw5 = dict(falling, lr=dict(head=3e-5, block5=3e-5, block4=0.0, base=0.0))
    c.thaw4 = dict(falling, lr=dict(head=2e-5, block5=2e-5, block4=2e-5, base=0.0))
    return c
