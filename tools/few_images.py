"""Heads on few images: a linear probe, flaxtl's former default head and that of configs/folder.py, as a table.

    python tools/few_images.py --images=FOLDER --weights=FILE [--sizes 96 128 200] [--cache=FOLDER]

FOLDER has train/CLASS/* and validation/CLASS/*, FILE the weights of VGG16. Of the training images, n of each class are
drawn; 2 of 7 of them choose the regularization of the probe and stop the heads early, the others train. The images of
validation/ only measure. Needs scikit-learn.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import normalize

import flaxtl
from flaxtl.data.device_dataset import put_dataset
from flaxtl.data.loaders import DeviceLoader
from flaxtl.data.sampler import EpochSampler
from flaxtl.models import classifier
from flaxtl.parallel import devices
from flaxtl.train.eval_loop import EvalStep, evaluate_metrics
from flaxtl.train.eval_steps import make_eval_step
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import Phase, build_phases
from flaxtl.train.setup import ModelInfo, build_model
from flaxtl.train.standardization import feature_statistics
from flaxtl.train.train_step import MultiStep, StepConfig, TrainState, make_multi_step

SIZES = (96, 128, 200)

NUM_IMAGES = (10, 20, 50, 100, 367)
"""Images of each class. A class with fewer takes part with all."""

SEEDS = (0, 1, 2)
"""Of the drawn images, the initialization and the order."""

VALIDATION_FRACTION = 2 / 7
"""Of the drawn images, as in the default `data.fractions`: 0.2 / (0.5 + 0.2)."""

STRENGTHS = tuple(10.0**power for power in range(-1, 5))
"""Values of C of the logistic regression, from strong to weak regularization."""

FORMER_HEAD = (
    *("head.normalize=none", "head.units=(128,)", "head.dropout=0.4", "optimizer.name=nadam", "label_smoothing=0.0"),
    *("frozen.epochs=30", "frozen.min_steps=0", "frozen.patience=8", "frozen.lr.head=1e-3"),
)
"""Settings of the frozen phase of configs/folder.py before heads could normalize."""

FEATURES = 512
"""Channels of VGG16's last layer."""


class Part(NamedTuple):
    """Features, float32 [n, 512], and labels, int32 [n]."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]

    def take(self, indices: npt.NDArray[np.int64]) -> "Part":
        """Return the examples at `indices`."""
        return Part(self.features[indices], self.labels[indices])


class Score(NamedTuple):
    """Accuracy on the drawn validation images, which choices may use, and on the measured ones, with their loss."""

    chosen_by: float
    accuracy: float
    loss: float


Method = Callable[[Part, Part, Part, int], Score]
"""(train, validation, measured, seed) -> score."""


def extract(images: Path, weights: Path, size: int, crop_pct: float, cache_dir: Path) -> tuple[Part, Part]:
    """Return the globally averaged features of train/ and validation/, from `cache_dir` if it has them."""
    paths = {split: sorted((images / split).glob("*/*")) for split in ("train", "validation")}
    classes = sorted({path.parent.name for path in paths["train"]})
    file = cache_dir / f"{size}-{crop_pct}.npy"
    if not file.exists():
        model, variables = flaxtl.create_model("vgg16", weights=weights, input_size=size)
        pixels = flaxtl.load_images([*paths["train"], *paths["validation"]], size, crop_pct=crop_pct)
        cache_dir.mkdir(parents=True, exist_ok=True)
        np.save(file, flaxtl.extract_features(model, variables, pixels))
    features, first = np.load(file), len(paths["train"])
    labels = [np.array([classes.index(path.parent.name) for path in files], np.int32) for files in paths.values()]
    return Part(features[:first], labels[0]), Part(features[first:], labels[1])


def draw(labels: npt.NDArray[np.int32], n: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices of n random examples of each class (or all), divided into training and validation."""
    train, validation = [], []
    for label in np.unique(labels).tolist():
        drawn = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:n]
        num_validation = round(VALIDATION_FRACTION * len(drawn))
        validation.append(drawn[:num_validation])
        train.append(drawn[num_validation:])
    return np.concatenate(train), np.concatenate(validation)


def linear_probe(train: Part, validation: Part, measured: Part, seed: int) -> Score:
    """Logistic regression on features of length 1, with the C of the lowest validation loss."""
    x, x_validation, x_measured = (normalize(part.features) for part in (train, validation, measured))
    models = [LogisticRegression(C=c, max_iter=5000).fit(x, train.labels) for c in STRENGTHS]
    best = min(models, key=lambda model: log_loss(validation.labels, model.predict_proba(x_validation)))
    return Score(
        best.score(x_validation, validation.labels),
        best.score(x_measured, measured.labels),
        log_loss(measured.labels, best.predict_proba(x_measured)),
    )


class Program(NamedTuple):
    """The frozen phase of configs/folder.py, with its compiled steps."""

    config: ConfigDict
    info: ModelInfo
    phase: Phase
    cfg: StepConfig
    train: MultiStep
    evaluate: EvalStep


@cache
def compile_head(overrides: tuple[str, ...], num_classes: int, num_train: int) -> Program:
    """Return the steps for a number of training images; they do not depend on the seed or the size of the images."""
    config = flaxtl.load_config("folder", "data.height=32", "data.width=32", *overrides)
    info, mesh = build_model(config, num_classes), devices.make_mesh(1)
    phase = build_phases(config, info.model, info.layers, info.groups, num_train)[0]
    optimizer = phase_optimizer(config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps)
    cfg = StepConfig(
        info.model, optimizer, mesh, seed=0, start_layer=phase.cut_layer, label_smoothing=config.label_smoothing
    )
    sharding = loader(Part(np.zeros((1, FEATURES), np.float32), np.zeros(1, np.int32))).sharding(mesh)
    evaluate = make_eval_step(info.model, mesh, phase.cut_layer, sharding)
    return Program(config, info, phase, cfg, make_multi_step(cfg, sharding), evaluate)


def loader(part: Part) -> DeviceLoader:
    """Return features as the outputs of a last layer of 1x1 pixels."""
    return DeviceLoader(put_dataset(part.features.reshape(-1, 1, 1, FEATURES), part.labels, devices.make_mesh(1)))


def initial_state(program: Program, train: DeviceLoader, seed: int) -> TrainState:
    """Return the state before the first step, with a new head."""
    _, info, phase, cfg, _, _ = program
    params = classifier.flatten_params(classifier.init_params(info.model, 32, 32, jax.random.key(seed), head_only=True))
    if program.config.head.normalize == "standardize":
        params |= feature_statistics(info.model, cfg.mesh, params, train, phase.cut_layer, program.config.batch_size)
    trainable, batch_stats, _ = phase.param_groups.partition(params)
    state = TrainState.create(0, trainable, batch_stats, cfg.optimizer.init(trainable), info.model.head.num_classes)
    return devices.replicate(state, cfg.mesh)


def trained_head(overrides: Sequence[str], train: Part, validation: Part, measured: Part, seed: int) -> Score:
    """Train a head as the frozen phase does, with early stopping."""
    program = compile_head(tuple(overrides), len(np.unique(train.labels)), len(train.labels))
    phase, batch_size = program.phase, program.config.batch_size
    train_loader, *eval_loaders = map(loader, (train, validation, measured))
    sampler, steps = EpochSampler(seed, batch_size, len(train.labels)), phase.steps_per_epoch
    evaluate = partial(evaluate_metrics, program.evaluate, batch_size=batch_size)
    state = initial_state(program, train_loader, seed)
    best, best_epoch, params = None, 0, state.eval_params
    for epoch in range(phase.epochs):
        batches = train_loader.stacked_batches(sampler, epoch * steps, (epoch + 1) * steps, steps)
        state = program.train(state, {}, batches, np.int32(0), np.int32(steps))
        loss = evaluate(state.eval_params, eval_loaders[0]).loss
        if phase.is_improvement(loss, best):
            best, best_epoch, params = loss, epoch, jax.tree.map(jnp.copy, state.eval_params)
        elif epoch - best_epoch >= phase.patience > 0:
            break
    validated, result = (evaluate(params, part) for part in eval_loaders)
    return Score(validated.accuracy, result.accuracy, result.loss)


METHODS: dict[str, Method] = {
    "linear probe": linear_probe,
    "former head": partial(trained_head, FORMER_HEAD),
    "head of folder": partial(trained_head, ()),
}


def scores(method: Method, train: Part, measured: Part, n: int) -> npt.NDArray[np.float64]:
    """Return the scores of a method on n images of each class, [seeds, 3]."""
    rows = []
    for seed in SEEDS:
        chosen, validation = draw(train.labels, n, seed)
        rows.append(method(train.take(chosen), train.take(validation), measured, seed))
    return np.array(rows)


def main() -> None:
    """Print a Markdown table: mean accuracy on the measured images, in percent, and the standard deviation of seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with train/CLASS/* and validation/CLASS/*")
    parser.add_argument("--weights", type=Path, required=True, help="file with the weights of VGG16")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="heights and widths of the images")
    parser.add_argument("--crop-pct", type=float, default=0.875, help="data.crop_pct (default: %(default)g)")
    parser.add_argument("--cache", type=Path, default=Path("runs/few_images"), help="where features are kept")
    args = parser.parse_args()
    columns = ("size", "images a class", *METHODS)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for size in args.sizes:
        train, measured = extract(args.images, args.weights, size, args.crop_pct, args.cache)
        for n in NUM_IMAGES:
            cells = []
            for method in METHODS.values():
                values = scores(method, train, measured, n)
                cells.append(f"{values[:, 1].mean():.1%} ± {values[:, 1].std(ddof=1):.1%}, {values[:, 2].mean():.2f}")
            print("| " + " | ".join((str(size), str(n), *cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
