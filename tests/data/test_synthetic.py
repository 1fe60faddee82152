"""The drawn flowers: the same every time, whole or not there at all."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data.sources import synthetic
from flaxtl.errors import UserError


def files(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


def test_the_classes_are_the_five_flowers() -> None:
    assert synthetic.CLASSES == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@pytest.mark.parametrize("kind", synthetic.CLASSES)
def test_a_image_depends_on_its_seed_alone(kind: str) -> None:
    first, again, other = (
        synthetic.draw_flower(kind, 3, 64),
        synthetic.draw_flower(kind, 3, 64),
        synthetic.draw_flower(kind, 4, 64),
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [1, 33, 160])
def test_a_image_has_the_size_asked_for(size: int) -> None:
    image = synthetic.draw_flower("tulips", 0, size)
    assert (image.mode, image.size) == ("RGB", (size, size))


def test_a_larger_image_shows_the_same_flower() -> None:
    # Grain differs with the size, so the means of 8 x 8 areas are compared:
    # of two sizes of one image they agree, of two images they do not.
    def means(seed: int, size: int) -> np.ndarray:
        return np.asarray(synthetic.draw_flower("roses", seed, size).reduce(size // 8), dtype=np.float64)

    same = np.corrcoef(means(1, 64).ravel(), means(1, 128).ravel())[0, 1]
    other = np.corrcoef(means(1, 64).ravel(), means(2, 128).ravel())[0, 1]
    assert other < 0.6 < same


def test_an_unknown_flower_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match=r"'tulip'.*'tulips'"):
        synthetic.draw_flower("tulip", 0)


def test_planting_writes_every_class_in_full(tmp_path: Path) -> None:
    directory = synthetic.generate_dataset(tmp_path / "new" / "synthetic", per_class=2, seed=5, size=32)
    assert directory == tmp_path / "new" / "synthetic"
    images = {f"{kind}/{kind}_{index:04d}.jpg" for kind in synthetic.CLASSES for index in range(2)}
    assert set(files(directory)) == images | {"garden.json"}
    assert list(directory.parent.iterdir()) == [directory]
    with Image.open(directory / "roses" / "roses_0001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
    assert len(set(files(directory).values())) == 11


def test_the_first_image_of_a_garden_is_the_drawn_one(tmp_path: Path) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, seed=5, size=32)
    synthetic.draw_flower("daisy", 5, 32).save(tmp_path / "daisy.jpg", quality=90)
    assert (directory / "daisy" / "daisy_0000.jpg").read_bytes() == (tmp_path / "daisy.jpg").read_bytes()


def test_gardens_of_the_same_numbers_are_the_same_and_a_longer_one_begins_alike(tmp_path: Path) -> None:
    one, two, long = (
        files(synthetic.generate_dataset(tmp_path / name, per_class=count, size=32))
        for name, count in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == two
    assert {name: long[name] for name in one if name != "garden.json"} == {
        name: one[name] for name in one if name != "garden.json"
    }


def test_a_whole_garden_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    before = files(directory)
    monkeypatch.setattr(synthetic, "_image", lambda *_: pytest.fail("drew again"))
    assert synthetic.generate_dataset(directory, per_class=1, size=32) == directory
    assert files(directory) == before


def test_an_interrupted_planting_leaves_nothing_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = synthetic._image, []

    def interrupted(kind: str, seed: int, index: int, size: int) -> Image.Image:
        drawn.append(kind)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(kind, seed, index, size)

    monkeypatch.setattr(synthetic, "_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    assert list(tmp_path.iterdir()) == []
    assert len(files(synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32))) == 6


def test_an_empty_folder_may_be_planted(tmp_path: Path) -> None:
    assert len(files(synthetic.generate_dataset(tmp_path, per_class=1, size=32))) == 6


@pytest.mark.parametrize("change", [{"per_class": 2}, {"seed": 1}, {"size": 33}])
def test_another_garden_is_never_overwritten(tmp_path: Path, change: dict[str, int]) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    before = files(directory)
    with pytest.raises(UserError, match=re.escape(str(directory))):
        synthetic.generate_dataset(directory, **{"per_class": 1, "seed": 0, "size": 32, **change})
    assert files(directory) == before


def test_a_garden_that_lost_a_image_or_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    directory = synthetic.generate_dataset(tmp_path / "synthetic", per_class=1, size=32)
    (directory / "roses" / "roses_0000.jpg").unlink()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    for folder in (directory, tmp_path / "thesis"):
        with pytest.raises(UserError, match=re.escape(str(folder))):
            synthetic.generate_dataset(folder, per_class=1, size=32)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "irreplaceable"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # beneath a file not even root can make a folder
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/file/synthetic\b"):
        synthetic.generate_dataset(tmp_path / "file" / "synthetic", per_class=1, size=32)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/file(?!/)\b"):
        synthetic.generate_dataset(tmp_path / "file", per_class=1, size=32)


@pytest.mark.parametrize("numbers", [{"per_class": 0}, {"size": 0}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"(?<![\w-]){next(iter(numbers.values()))}\b"):
        synthetic.generate_dataset(tmp_path / "synthetic", **numbers)
