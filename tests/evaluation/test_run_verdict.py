"""The verdict on a run directory: its findings in order, and one next command."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
from helpers import finished_run

from flaxtl.evaluation import verdicts
from flaxtl.evaluation.predictions import write_predictions
from flaxtl.evaluation.run_files import read_run
from flaxtl.evaluation.run_verdict import run_verdict


@pytest.fixture
def workdir(tmp_path):
    """A finished run named as most are."""
    return finished_run.write_run(tmp_path).rename(tmp_path / "run")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def write_losses(workdir, losses, phase="finetune"):
    """Replace the validation losses of a phase; it has one epoch for each, as planned."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    changed = [lines[-1] | {"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate(losses, start=1)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    summary, config = (json.loads((workdir / name).read_text()) for name in ("summary.json", "config.json"))
    summary["phases"][phase]["epochs"] = config[phase]["epochs"] = len(losses)
    (workdir / "summary.json").write_text(json.dumps(summary))
    (workdir / "config.json").write_text(json.dumps(config))


def change_config(workdir, **sections):
    """Change settings of some sections, and those outside of any."""
    config = json.loads((workdir / "config.json").read_text())
    merged = {key: config.get(key, {}) | value if isinstance(value, dict) else value for key, value in sections.items()}
    change(workdir / "config.json", **merged)


def overfit(workdir, augment):
    summary, config = (json.loads((workdir / name).read_text()) for name in ("summary.json", "config.json"))
    summary["phases"]["finetune"] |= {
        "train": {"accuracy": 0.99, "loss": 0.1, "n": 200},
        "validation": {"accuracy": 0.75, "loss": 0.9, "n": 80},
    }
    config["finetune"]["augment"] = augment
    (workdir / "summary.json").write_text(json.dumps(summary))
    (workdir / "config.json").write_text(json.dumps(config))


def undertrain(workdir, loss=1.3, steps=3):
    """Give the phases few steps, and the last one a training loss near that of guessing 4 classes, ln 4 = 1.39."""
    summary = json.loads((workdir / "summary.json").read_text())
    for phase in summary["phases"].values():
        phase["steps"] = steps
    summary["phases"]["finetune"]["train"]["loss"] = loss
    (workdir / "summary.json").write_text(json.dumps(summary))


def predict(workdir, num_correct):
    """Let the first `num_correct` of the 16 test images be predicted as their class, the others as the next one."""
    tested = read_run(workdir).predictions.of_split("test")
    labels = tested.labels + (np.arange(16) >= num_correct)
    probabilities = np.eye(4, dtype="float32")[labels % 4]
    write_predictions(workdir / "predictions.csv", replace(tested, probabilities=probabilities))


def next_step(workdir):
    verdict = run_verdict(read_run(workdir))
    return verdict.advice, verdict.command.replace(str(workdir), "DIR")


def test_run_verdict_finished_run_has_result_findings_and_command(workdir):
    verdict = run_verdict(read_run(workdir))
    assert verdict.result == "81 % of 16 test images are classified correctly (95 % interval 57 to 93 %)."
    assert verdict.findings == (
        "16 test images are too few for a precise figure: the accuracy may be anything from 57 to 93 %. About 290 "
        "test images would give ± 5 points.",
        "Weakest class: daisy, 1 of 4 images recognized; on so few images this may be chance.",
        "Most frequent error: daisy predicted as <script>alert(1)</script>, 2 of 4 images.",
    )
    assert next_step(workdir) == (
        "Measure the accuracy on all images, by cross-validation.",
        "flaxtl sweep --config=a.py --config.data.source=folder:/p --kfold=5 --workdir=DIR-sweep",
    )


def test_run_verdict_without_predictions_is_none(workdir):
    (workdir / "predictions.csv").unlink()
    assert run_verdict(read_run(workdir)) is None


def test_run_verdict_without_manifest_suggests_no_cross_validation(workdir):
    (workdir / "manifest.csv").unlink()
    assert next_step(workdir) == ("Classify new images.", "flaxtl predict --workdir=DIR --input PATH")


def test_run_verdict_falling_loss_doubles_the_epochs(workdir):
    write_losses(workdir, [1.0, 0.8, 0.6])
    assert run_verdict(read_run(workdir)).findings[0].startswith("Phase finetune ended too early")
    (workdir.with_name("run-2")).mkdir()
    assert next_step(workdir) == (
        "Train longer.",
        "flaxtl train --config=a.py --config.finetune.epochs=6 --workdir=DIR-3",
    )


def test_run_verdict_rising_loss_adds_early_stopping(workdir):
    write_losses(workdir, [1.0, 0.8, 0.9])
    assert next_step(workdir) == (
        "Keep the weights of the best epoch.",
        "flaxtl train --config=a.py --config.finetune.patience=5 --workdir=DIR-2",
    )


@pytest.mark.parametrize(
    ("augment", "advice", "command"),
    [
        (
            False,
            "Augment the training images.",
            "flaxtl train --config=a.py --config.finetune.augment=true --config.augmentation.horizontal_flip=true "
            "--config.augmentation.zoom=0.2 --workdir=DIR-2",
        ),
        (
            True,
            "Add training images, or find out whether mixup helps.",
            "flaxtl sweep --config=a.py --config.data.source=folder:/p --grid=config.augmentation.mixup=0.0,0.2 "
            "--workdir=DIR-sweep",
        ),
    ],
)
def test_run_verdict_overfitting_suggests_augmentation(workdir, augment, advice, command):
    overfit(workdir, augment)
    assert run_verdict(read_run(workdir)).findings[0].startswith("Overfitting in phase finetune: 99 % of the training")
    assert next_step(workdir) == (advice, command)


@pytest.mark.parametrize("augmentation", [{"randaugment": 2}, {"shear": 0.1}, {"brightness": 0.2}, {"mixup": 0.2}])
def test_run_verdict_enables_the_augmentation_of_the_config(workdir, augmentation):
    overfit(workdir, augment=False)
    change_config(workdir, augmentation=augmentation)
    command = "flaxtl train --config=a.py --config.finetune.augment=true --workdir=DIR-2"
    assert next_step(workdir) == ("Augment the training images.", command)


def test_run_verdict_augmentation_runs_the_cached_layers(workdir):
    overfit(workdir, augment=False)  # 200 images in each of 3 epochs; 20 have cached features
    layers = json.loads((workdir / "layers.json").read_text())
    (workdir / "layers.json").write_text(json.dumps([layers[0] | {"trained_in": []}, *layers]))
    assert run_verdict(read_run(workdir)).advice == (
        "Augment the training images. Each step then runs the frozen layers, too: on 600 images in all instead of 20."
    )


def test_run_verdict_command_replaces_settings_given_before(workdir):
    write_losses(workdir, [1.0, 0.8, 0.6])
    change(workdir / "summary.json", command="flaxtl train photos --config a.py --config.finetune.epochs=3 --workdir x")
    assert next_step(workdir)[1] == "flaxtl train photos --config=a.py --config.finetune.epochs=6 --workdir=DIR-2"


def test_run_verdict_run_started_from_python_gives_settings(workdir):
    change(workdir / "summary.json", command="flaxtl.train")
    assert next_step(workdir) == ("Classify new images.", "flaxtl predict --workdir=DIR --input PATH")
    write_losses(workdir, [1.0, 0.8, 0.6])
    assert next_step(workdir)[1] == "config.finetune.epochs = 6"


def test_run_verdict_min_steps_are_doubled_with_the_epochs(workdir):
    write_losses(workdir, [1.0, 0.8, 0.6])
    change_config(workdir, finetune={"min_steps": 1000})
    assert "--config.finetune.epochs=6 --config.finetune.min_steps=2000 " in next_step(workdir)[1]


def test_run_verdict_overfitting_last_phase_adds_augmentation(workdir):
    overfit(workdir, augment=False)
    change_config(workdir, frozen={"augment": True})
    assert "--config.finetune.augment=true " in next_step(workdir)[1]


def test_run_verdict_mixup_is_not_suggested_for_single_images(workdir):
    overfit(workdir, augment=True)
    change_config(workdir, batch_size=1)
    assert "--kfold=5" in next_step(workdir)[1]


def test_run_verdict_sweep_gives_each_setting_once(workdir):
    overfit(workdir, augment=True)
    settings = "--config.data.source=folder:/p --config.augmentation.mixup=0"
    change(workdir / "summary.json", command=f"flaxtl train --config=a.py {settings}")
    assert next_step(workdir)[1] == (
        "flaxtl sweep --config=a.py --config.data.source=folder:/p --grid=config.augmentation.mixup=0.0,0.2 "
        "--workdir=DIR-sweep"
    )


@pytest.mark.parametrize(("size", "option"), [(3, "--kfold=3"), (1, "predict")])
def test_run_verdict_small_class_gets_fewer_folds_or_none(workdir, size, option):
    header, *rows = (workdir / "manifest.csv").read_text().splitlines()
    development = [row for row in rows if ",daisy," in row and ",test," not in row]
    kept = [row for row in rows if row not in development[size:]]
    (workdir / "manifest.csv").write_text("\n".join([header, *kept]) + "\n")
    assert option in next_step(workdir)[1]


def test_run_verdict_command_with_spaces_keeps_them(workdir):
    spaced = workdir.rename(workdir.with_name("my run"))
    write_losses(spaced, [1.0, 0.8, 0.6])
    change(spaced / "summary.json", command="flaxtl train 'my photos' --workdir='my run'")
    assert shlex.split(run_verdict(read_run(spaced)).command) == [
        "flaxtl", "train", "my photos", "--config.finetune.epochs=6", f"--workdir={spaced}-2"
    ]  # fmt: skip


def test_run_verdict_guessing_on_records_in_place_says_what_doctor_writes(workdir, monkeypatch):
    monkeypatch.setattr(verdicts, "describe_guessing", lambda *_: "Guessing.")
    change_config(workdir, data={"source": "tfds:tf_flowers", "loader": "tfdata"})
    assert next_step(workdir) == (
        "Check the images and their labels. This first writes them to the cache.",
        "flaxtl doctor --data=tfds:tf_flowers",
    )


def test_run_verdict_guessing_says_check_the_images(workdir):
    predict(workdir, num_correct=4)
    assert run_verdict(read_run(workdir)).findings[0].startswith("No better than guessing: predicting daisy")
    assert next_step(workdir) == ("Check the images and their labels.", "flaxtl doctor --data=folder:/p")


def test_run_verdict_possible_guessing_says_cross_validate(workdir):
    predict(workdir, num_correct=6)
    overfit(workdir, augment=True)
    change_config(workdir, batch_size=1)  # mixup is not suggested
    overfitting, possible, few, *_ = run_verdict(read_run(workdir)).findings
    assert overfitting.startswith("Overfitting")
    assert possible.startswith("16 test images do not show that the model is better than guessing: predicting daisy")
    assert few.startswith("16 test images are too few")
    assert next_step(workdir)[0] == "Measure the accuracy on all images, by cross-validation."


def test_run_verdict_untrained_model_gets_1000_steps(workdir):
    undertrain(workdir)
    predict(workdir, num_correct=4)
    write_losses(workdir, [1.5, 1.4, 1.3])  # still falling
    guessing, untrained, falling, *_ = run_verdict(read_run(workdir)).findings
    assert guessing.startswith("No better than guessing")
    assert untrained == (
        "The model has hardly trained in 6 steps: its training loss is 1.30, and guessing by class frequencies would "
        "give 1.39."
    )
    assert falling.startswith("Phase finetune ended too early")
    assert next_step(workdir) == (
        "Train longer.",
        "flaxtl train --config=a.py --config.frozen.min_steps=1000 --workdir=DIR-2",
    )


def test_run_verdict_untrained_model_does_not_overfit(workdir):
    overfit(workdir, augment=False)
    undertrain(workdir)
    untrained, few, *_ = run_verdict(read_run(workdir)).findings
    assert untrained.startswith("The model has hardly trained")
    assert few.startswith("16 test images are too few")


def test_run_verdict_untrained_with_steps_per_epoch_doubles_the_epochs(workdir):
    undertrain(workdir)
    change_config(workdir, frozen={"steps_per_epoch": 1})
    assert next_step(workdir)[1] == "flaxtl train --config=a.py --config.frozen.epochs=4 --workdir=DIR-2"


def test_run_verdict_untrained_skips_a_phase_that_stopped_early(workdir):
    undertrain(workdir)
    change_config(workdir, frozen={"epochs": 9, "patience": 2})
    assert next_step(workdir)[1] == "flaxtl train --config=a.py --config.finetune.min_steps=1000 --workdir=DIR-2"


@pytest.mark.parametrize(
    ("settings", "loss", "steps"),
    [
        ({"augmentation": {"mixup": 0.2}}, 1.3, 3),  # mixed labels keep the loss high
        ({"augmentation": {"cutmix": 1.0}}, 1.3, 3),
        ({"finetune": {"epochs": 4, "patience": 2}}, 1.3, 3),  # stopped early
        ({}, 1.3, 500),  # of two phases
        ({}, 1.1, 3),
    ],
)
def test_run_verdict_trained_model_is_not_untrained(workdir, settings, loss, steps):
    undertrain(workdir, loss, steps)
    change_config(workdir, **settings)
    assert next_step(workdir)[0] == "Measure the accuracy on all images, by cross-validation."


@pytest.mark.parametrize(
    ("settings", "guessing_loss"),
    [({}, "0.56"), ({"data": {"sampling": "balanced"}}, "0.69"), ({"class_weights": "balanced"}, "0.69")],
)
def test_run_verdict_guessing_loss_follows_class_frequencies(workdir, settings, guessing_loss):
    undertrain(workdir)
    change_config(workdir, **settings)
    header, *rows = (workdir / "manifest.csv").read_text().splitlines()
    names = ("daisy", "daisy", "daisy", "tulips")  # an entropy of 0.56 nats
    kept = [row for row in rows if ",train," not in row]
    kept += [f"/{number}.png,{name},train,{'0' * 64}" for number, name in enumerate(names)]
    (workdir / "manifest.csv").write_text("\n".join([header, *kept]) + "\n")
    (untrained,) = [text for text in run_verdict(read_run(workdir)).findings if "hardly trained" in text]
    assert untrained.endswith(f"frequencies would give {guessing_loss}.")
