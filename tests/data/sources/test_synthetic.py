"""The synthetic flowers: reproducible, and written completely or not at all."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data.sources import synthetic
from flaxtl.errors import UserError


def files(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


def test_classes_are_the_five_flowers() -> None:
    assert synthetic.CLASSES == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@pytest.mark.parametrize("kind", synthetic.CLASSES)
def test_draw_image_depends_on_seed_only(kind: str) -> None:
    first, again, other = (
        synthetic.draw_image(kind, 3, 0, 64),
        synthetic.draw_image(kind, 3, 0, 64),
        synthetic.draw_image(kind, 4, 0, 64),
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [1, 33, 160])
def test_draw_image_has_requested_size(size: int) -> None:
    image = synthetic.draw_image("tulips", 0, 0, size)
    assert (image.mode, image.size) == ("RGB", (size, size))


def test_draw_image_larger_shows_same_flower() -> None:
    # Grain differs with the size, so the means of 8 x 8 areas are compared:
    # of two sizes of one image they agree, of two images they do not.
    def means(seed: int, size: int) -> np.ndarray:
        return np.asarray(synthetic.draw_image("roses", seed, 0, size).reduce(size // 8), dtype=np.float64)

    same = np.corrcoef(means(1, 64).ravel(), means(1, 128).ravel())[0, 1]
    other = np.corrcoef(means(1, 64).ravel(), means(2, 128).ravel())[0, 1]
    assert other < 0.6 < same


def test_generate_dataset_writes_all_classes(tmp_path: Path) -> None:
    directory = synthetic.generate_dataset(tmp_path / "new" / "synthetic", per_class=2, seed=5, size=32)
    assert directory == tmp_path / "new" / "synthetic"
    images = {f"{kind}/{kind}_{index:04d}.jpg" for kind in synthetic.CLASSES for index in range(2)}
    assert set(files(directory)) == images | {"dataset.json"}
    assert list(directory.parent.iterdir()) == [directory]
    with Image.open(directory / "roses" / "roses_0001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
    assert len(set(files(directory).values())) == 11


def test_generate_dataset_first_image_is_drawn_from_the_seed(tmp_path: Path) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, seed=5, size=32)
    synthetic.draw_image("daisy", 5, 0, 32).save(tmp_path / "daisy.jpg", quality=90)
    assert (directory / "daisy" / "daisy_0000.jpg").read_bytes() == (tmp_path / "daisy.jpg").read_bytes()


@pytest.mark.parametrize("code", [synthetic._PROCESS_CODE, "raise OSError"])
def test_generate_dataset_processes_draw_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    alone = files(synthetic.generate_dataset(tmp_path / "alone", per_class=3, seed=2, size=16))
    drawn, draw = [], synthetic.draw_image
    monkeypatch.setattr(synthetic, "draw_image", lambda *image: drawn.append(image) or draw(*image))
    monkeypatch.setattr(synthetic, "_IMAGES_PER_PROCESS", 5)
    monkeypatch.setattr(synthetic, "_PROCESS_CODE", code)
    monkeypatch.setattr(synthetic.os, "cpu_count", lambda: 2)
    assert files(synthetic.generate_dataset(tmp_path / "together", per_class=3, seed=2, size=16)) == alone
    assert len(drawn) == (10 if code != "raise OSError" else 15)  # of 3 images of a class, 2 are drawn here


def test_generate_dataset_is_deterministic_and_extensible(tmp_path: Path) -> None:
    one, two, long = (
        files(synthetic.generate_dataset(tmp_path / name, per_class=count, size=32))
        for name, count in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == two
    assert {name: long[name] for name in one if name != "dataset.json"} == {
        name: one[name] for name in one if name != "dataset.json"
    }


def test_generate_dataset_keeps_complete_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    before = files(directory)
    monkeypatch.setattr(synthetic, "draw_image", lambda *_: pytest.fail("drew again"))
    assert synthetic.generate_dataset(directory, per_class=1, size=32) == directory
    assert files(directory) == before


def test_generate_dataset_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, drawn = synthetic.draw_image, []

    def interrupted(kind: str, seed: int, index: int, size: int) -> Image.Image:
        drawn.append(kind)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(kind, seed, index, size)

    monkeypatch.setattr(synthetic, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    assert list(tmp_path.iterdir()) == []
    assert len(files(synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32))) == 6


def test_generate_dataset_accepts_empty_folder(tmp_path: Path) -> None:
    assert len(files(synthetic.generate_dataset(tmp_path, per_class=1, size=32))) == 6


@pytest.mark.parametrize("change", [{"per_class": 2}, {"seed": 1}, {"size": 33}])
def test_generate_dataset_never_overwrites_another(tmp_path: Path, change: dict[str, int]) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    before = files(directory)
    with pytest.raises(UserError, match=re.escape(str(directory))):
        synthetic.generate_dataset(directory, **{"per_class": 1, "seed": 0, "size": 32, **change})
    assert files(directory) == before


def test_generate_dataset_refuses_incomplete_or_other_folder(tmp_path: Path) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    (directory / "roses" / "roses_0000.jpg").unlink()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    for folder in (directory, tmp_path / "thesis"):
        with pytest.raises(UserError, match=re.escape(str(folder))):
            synthetic.generate_dataset(folder, per_class=1, size=32)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "irreplaceable"


def test_generate_dataset_not_writable_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # not even root can create a folder below a file
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/file/synthetic\b"):
        synthetic.generate_dataset(tmp_path / "file" / "synthetic", per_class=1, size=32)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/file(?!/)\b"):
        synthetic.generate_dataset(tmp_path / "file", per_class=1, size=32)


@pytest.mark.parametrize("numbers", [{"per_class": 0}, {"size": 0}, {"seed": -1}])
def test_generate_dataset_refuses_impossible_numbers(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"(?<![\w-]){next(iter(numbers.values()))}\b"):
        synthetic.generate_dataset(tmp_path / "synthetic", **numbers)
