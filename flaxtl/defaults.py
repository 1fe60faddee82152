"""Every setting of a config: its default, and a comment that the configuration reference shows as its meaning."""

from ml_collections import ConfigDict

DEFAULTS = ConfigDict(
    {
        "seed": 0,  # random seed of the split, the order of images, augmentation, dropout and the head's initialization
        "batch_size": 32,  # images per step, over all devices
        "accum_steps": 1,  # gradient accumulation: equal parts of a batch that run one after the other, to save memory
        "class_weights": "none",  # or balanced; or loss weights by class name: {'daisy': 2.0}
        "label_smoothing": 0.0,  # fraction of the target probability that is spread evenly over all classes
        "deterministic": False,  # bit-identical results in every run on a GPU, with slower kernels
        "dtype": "float32",  # or bfloat16: dtype of the layers; parameters, last layer and loss are always float32
        "precision": "default",  # or high, highest: by default, float32 on TPU multiplies in bfloat16, on GPU in TF32
        "data": {
            "source": "synthetic",  # folder:PATH, archive:FILE, csv:FILE, hf:ORG/NAME, tfds:NAME or synthetic
            "classes": (),  # expected class names, sorted; () accepts any
            "height": 200,  # input height of the model, in pixels
            "width": 200,  # input width of the model, in pixels; may differ from the height
            "resize": "squash",  # changes the aspect ratio; or crop: resize the shorter side, then crop the center
            "crop_pct": 0.875,  # resize=crop: size of the crop relative to the resized image; 1.0 crops as Keras does
            "interpolation": "bilinear",  # used by the resize: nearest, bilinear, bicubic, lanczos, box or hamming
            "bit_depth": 0,  # bits that the values of 16-bit images use: 8 to 16; 0: all 16
            "sampling": "shuffled",  # or balanced: every class equally often
            "fractions": {"train": 0.5, "validation": 0.2, "test": 0.3},  # share of each split, if the source has none
            "near_duplicates": 4,  # maximum bits (of 64) between perceptual hashes of duplicates; -1: equal files only
            "allow_leaks": False,  # allow the same image in two of the given splits
            "on_error": "fail",  # or skip: train without the images that cannot be read
            "pipeline": "auto",  # or resident: images in device memory; or stream: from a file
            "loader": "decoded",  # or tfdata: files (of tfds:NAME: TFDS' own) are decoded in each epoch, never stored
            "augment_on": "device",  # or host: streamed images are augmented by tf.data, before they are sent
        },
        "weights": {
            "path": "imagenet",  # backbone weights: imagenet, builtin, random, hf:ORG/REPO[/FILE][@REVISION] or a file
            "skip_layers": "",  # regular expression for layers of the file that are left out, such as another head
        },
        "model": {
            "name": "vgg16",  # a model that `flaxtl models` lists
            "output_layer": "",  # last layer of the backbone; '' for the whole backbone
        },
        "head": {
            "pooling": "average_2x2",  # or global_average, global_max, none
            "units": (128,),  # width of each hidden layer; () for none
            "dropout": 0.4,  # dropout rate after each hidden layer; without hidden layers, of the features
            "normalize": "none",  # or, for the features: l2, layer_norm (per image), standardize (fixed) or batch_norm
        },
        "augmentation": {
            "rotation": 0.0,  # maximum angle, in degrees
            "height_shift": 0.0,  # maximum vertical shift, as a fraction of the height
            "width_shift": 0.0,  # maximum horizontal shift, as a fraction of the width
            "shear": 0.0,  # maximum angle, in degrees
            "zoom": 0.0,  # factors from 1 - zoom to 1 + zoom
            "horizontal_flip": False,  # flip left to right, with probability 1/2
            "vertical_flip": False,  # flip top to bottom, with probability 1/2
            "fill": "nearest",  # or constant, reflect, wrap: values of pixels outside the image
            "cval": 0.0,  # pixel value for fill=constant, 0 to 255
            "brightness": 0.0,  # factors from 1 - brightness to 1 + brightness
            "channel_shift": 0.0,  # maximum shift of the values of a color channel, of 255
            "contrast": 0.0,  # factors from 1 - contrast to 1 + contrast
            "saturation": 0.0,  # factors from 1 - saturation to 1 + saturation
            "hue": 0.0,  # maximum shift, as a fraction of the color circle, at most 0.5
            "crop": 0.0,  # random resized crop: minimum fraction of the area; 0 disables
            "randaugment": 0,  # RandAugment: number of operations per image; 0 disables
            "magnitude": 9.0,  # RandAugment: strength of the operations, 0 to 10
            "erasing": 0.0,  # random erasing: probability of a covered box
            "mixup": 0.0,  # alpha of the Beta distribution of mixing weights; 0 disables
            "cutmix": 0.0,  # the same for CutMix, which pastes a box of another image
        },
        "optimizer": {  # any other argument of the optimizer can be added
            "name": "nadam",  # as in Keras; or Optax' adabelief, adam, adamw, lamb, lion, radam, rmsprop, sgd
            "b1": 0.9,  # decay of the running mean of gradients
            "b2": 0.999,  # decay of the running mean of squared gradients
            "eps": 1e-7,  # added to the square root of that mean; without a value, another optimizer has Optax' default
        },
        "param_groups": (),  # pairs (name, regular expression), the first match wins; () uses the model's own groups
        "phases": ("frozen",),  # phase names, in order; each phase has its own settings
        "feature_cache": {
            "views": 0,  # augmented views of each image whose frozen features are cached; 0: new views in every step
            "compute_dtype": "",  # of frozen layers while features are computed: float32 or bfloat16; '' as dtype
            "dir": "",  # where features of frozen layers are cached; '' for the run directory
        },
        "checkpoint": {
            "every_seconds": 60.0,  # time between checkpoints; also saved when a phase ends or the run is stopped
        },
    }
)

PHASE_DEFAULTS = ConfigDict(
    {
        "epochs": 10,  # maximum; early stopping (patience) may end the phase sooner
        "steps_per_epoch": 0,  # 0: full batches until every training image was used, or more for min_steps
        "min_steps": 0,  # minimum of all epochs together, if steps_per_epoch is 0: with few images, epochs get longer
        "augment": False,  # augment the training images
        "lr": {},  # learning rate of each parameter group, 0.0 if frozen; `top` is the backbone's last block
        "schedule": "constant",  # or cosine, linear: down to 0; step: times 0.1 at 1/2 and 3/4 of the steps; or plateau
        "plateau_factor": 0.1,  # in (0, 1): multiplies the learning rate at every plateau
        "plateau_patience": 10,  # epochs without improvement that make a plateau
        "warmup_steps": 0,  # steps of linear warmup from 0, before the schedule
        "layer_decay": 1.0,  # in (0, 1]: the k-th block below the head trains at its group's rate times layer_decay**k
        "clip_norm": 0.0,  # maximum norm of all gradients together, as Keras' global_clipnorm; 0 disables
        "ema": 0.0,  # EMA decay of the weights, in [0, 1); 0 disables. The EMA weights are validated and saved
        "monitor": "validation_loss",  # the metric of early stopping and schedule=plateau
        "patience": 0,  # early stopping: epochs without improvement; 0 disables, and the last weights are kept
    }
)

LAST_BLOCK = "top"
"""In a phase's `lr`: the last block of any backbone, the group block5 in VGG16 or conv5 in ResNet50."""

ATOMIC_SETTINGS = frozenset({"optimizer", "data.fractions"})
"""Sections that a config file replaces as a whole; all others are merged key by key."""
