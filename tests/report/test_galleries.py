"""Galleries: which images are shown, and how."""

import base64
import io

import numpy as np
import pytest
from helpers.finished_run import CLASSES
from PIL import Image

from flaxtl.data.decode import Resize, decode, visible_region
from flaxtl.data.image_file import UnreadableError
from flaxtl.evaluation.run_files import read_run
from flaxtl.report import photos
from flaxtl.report.galleries import make_galleries
from flaxtl.report.photos import thumbnail_uri
from flaxtl.report.plots import heat_colors


def decoded(uri: str) -> Image.Image:
    prefix = "data:image/jpeg;base64,"
    assert uri.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))


def test_thumbnail_is_upright_and_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotated by 90 degrees
    Image.new("RGB", (800, 400)).save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail_uri(tmp_path / "turned.jpg", 100, 75)).size == (50, 100)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_thumbnail_of_every_mode_is_rgb_jpeg(tmp_path, mode):
    Image.new(mode, (30, 20)).save(tmp_path / "a.png")
    thumbnail = decoded(thumbnail_uri(tmp_path / "a.png", 100, 75))
    assert (thumbnail.size, thumbnail.mode) == ((30, 20), "RGB")


def test_thumbnail_transparent_pixels_are_white(tmp_path):
    image = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255, 255))  # an image without any opaque pixel keeps its colors
    image.save(tmp_path / "a.png")
    assert decoded(thumbnail_uri(tmp_path / "a.png", 100, 75)).getextrema() == ((255, 255),) * 3


def test_thumbnail_follows_the_bit_depth(tmp_path):
    Image.fromarray(np.full((8, 8), 2**10 - 1, np.uint16)).save(tmp_path / "a.png")
    assert decoded(thumbnail_uri(tmp_path / "a.png", 8, 75)).getextrema() == ((4, 4),) * 3
    assert decoded(thumbnail_uri(tmp_path / "a.png", 8, 75, bit_depth=10)).getextrema() == ((255, 255),) * 3


def test_thumbnail_of_broken_file_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    with pytest.raises(UnreadableError):
        thumbnail_uri(tmp_path / "a.tif", 100, 75)


def test_galleries_show_every_photo_once(finished):
    shown = make_galleries(read_run(finished))
    assert (shown.worst.name, shown.worst.num_correct, shown.worst.num_images) == ("daisy", 1, 4)
    names = [photo.name for photo in shown.worst.photos]
    assert names == ["0_6&<b>.png", "0_5&<b>.png", "0_7&<b>.png"]  # the largest loss first
    assert (shown.best.name, shown.best.num_correct, len(shown.best.photos)) == (CLASSES[1], 4, 4)
    assert [(pair.true, pair.predicted, pair.count, pair.photos) for pair in shown.pairs] == [
        ("daisy", CLASSES[1], 2, []),  # shown above
        ("daisy", "tulips", 1, []),
    ]
    assert shown.errors == shown.label_issues == []
    assert [photo.true for photo in shown.correct] == ["daisy", "$x_{", "tulips"]
    assert shown.heatmaps is None


def test_album_takes_each_photo_once_and_knows_its_shape(finished):
    predictions = read_run(finished).predictions
    album = photos.PhotoAlbum(predictions, 0, {2: 3}, None)
    first, second = album.take([2, 3, 4], 2)
    assert (first.name, first.aspect, first.suggested, first.problem) == ("0_5&<b>.png", 1.5, "tulips", "")
    assert (second.name, second.uri, second.suggested, second.problem) == ("0_6&<b>.png", "", "", "image not found")
    assert [photo.problem for photo in album.take([2, 3, 4, 0], 1)] == ["image cannot be read"]
    assert album.take([2, 3, 4], 9) == []


def test_overlay_heatmap_blends_colors_over_gray():
    image = Image.new("RGB", (40, 20), (250, 0, 0))
    heat = np.array([[0, 0, 0, 255], [0, 0, 0, 255]], np.uint8)
    blended = np.asarray(photos.overlay_heatmap(image, heat), float)
    gray = np.asarray(image.convert("L"), float)[0, 0]
    for column, value in ((0, 0), (39, 255)):
        expected = 0.4 * gray + 0.6 * heat_colors(np.array([value], np.uint8))[0]
        np.testing.assert_allclose(blended[10, column], expected, atol=1)  # integer gray levels


def test_heat_colors_brightness_rises():
    colors = heat_colors(np.arange(256, dtype=np.uint8)).astype(float)
    brightness = colors @ (0.2126, 0.7152, 0.0722)
    assert np.diff(brightness).min() > -0.5  # rounded to integer levels
    assert brightness[-1] - brightness[0] > 200


@pytest.mark.parametrize(
    ("peak", "location"),
    [
        ((0, 0), "the upper left"),
        ((0, 5), "the top"),
        ((5, 5), "the center"),
        ((6, 11), "the right"),
        ((11, 11), "the lower right"),
    ],
)
def test_peak_location_by_thirds(peak, location):
    heatmap = np.zeros((12, 12), np.uint8)
    assert photos.peak_location(heatmap) == ""
    heatmap[peak] = 255
    assert photos.peak_location(heatmap) == location


@pytest.mark.parametrize("policy", ["squash", "crop"])
@pytest.mark.parametrize("size", [(160, 60), (60, 161)])
def test_seen_part_matches_decoded_image(tmp_path, policy, size):
    """Red rises to the right, green to the bottom: the displayed part and the model's input agree everywhere."""
    right, down = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    ramps = Image.fromarray(np.dstack([right, down, 0 * right]).astype(np.uint8))
    ramps.save(tmp_path / "ramps.png")
    resize = Resize(48, 48, policy)
    part = visible_region(ramps, resize)
    # the scaled sides are whole pixels, so a square of them may be a pixel longer than wide in the file
    assert (abs(part.width - part.height) <= 1) is (policy == "crop")
    decoded = decode(tmp_path / "ramps.png", resize).astype(float)
    # the crop is at integer pixels of the file, up to half a pixel off: 255 / 60 / 2 levels, plus one for rounding
    np.testing.assert_allclose(np.asarray(part.resize((48, 48)), float), decoded, rtol=0, atol=3.2)
