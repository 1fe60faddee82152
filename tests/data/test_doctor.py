"""Issues that flaxtl doctor finds, by type, and that it changes no file."""

import hashlib
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data import doctor
from flaxtl.data.doctor import ISSUE_TYPES, check_dataset
from flaxtl.data.sources import csv_file, image_folder
from flaxtl.errors import UserError

ORIENTATION = 0x0112
EACH = 10


def image(number, side=48):
    """Smooth colored shapes: images of different numbers are not similar."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def fill(folder, first, n=EACH):
    folder.mkdir(parents=True)
    for number in range(first, first + n):
        image(number).save(folder / f"{number}.png")


@contextmanager
def bar(title, total):
    yield lambda done: None


def diagnosis_of(folder, near_duplicates=4):
    return check_dataset(image_folder.inspect_folder(folder), bar, near_duplicates)


def messages(diagnosis, root):
    """Return (type, paths relative to the root, message) of every issue."""
    return [
        (finding.kind, [path.relative_to(root).as_posix() for path in finding.paths], finding.message)
        for finding in diagnosis.issues
    ]


def assert_reported(diagnosis, root, *expected):
    """Assert that the issues are these (type, paths, pattern of the message), in this order."""
    found = messages(diagnosis, root)
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    for (*_, message), (*_, pattern) in zip(found, expected, strict=True):
        assert re.search(pattern, message), message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """ROOT/{plain,given}: two classes of 10 valid images, without and with defined splits."""
    root = tmp_path_factory.mktemp("whole").resolve()
    fill(root / "plain" / "ants", 0)
    fill(root / "plain" / "bees", 100)
    for number, (split, label) in enumerate(
        (split, label) for split in ("train", "validation") for label in ("ants", "bees")
    ):
        fill(root / "given" / split / label, 1000 + 100 * number)
    return root


@pytest.fixture
def plain(whole, tmp_path):
    return shutil.copytree(whole / "plain", tmp_path.resolve() / "plain")


@pytest.fixture
def given(whole, tmp_path):
    return shutil.copytree(whole / "given", tmp_path.resolve() / "given")


def test_check_dataset_without_issues_is_empty(whole):
    for name in ("plain", "given"):
        found = diagnosis_of(whole / name)
        assert found.issues == ()
        assert found.num_blocking == 0


def test_counts(whole):
    found = diagnosis_of(whole / "given")
    assert found.classes == {"ants": 20, "bees": 20}
    assert found.splits == {"train": 20, "validation": 20}
    assert found.counts["bees", "validation"] == 10
    assert diagnosis_of(whole / "plain").splits == {}
    assert diagnosis_of(whole / "plain").counts == {("ants", ""): 10, ("bees", ""): 10}


def missing(place):
    place.symlink_to(place.parent / "nowhere")


def truncated(place):
    content = (place.parent / "0.png").read_bytes()
    place.write_bytes(content[: len(content) // 2])


def oversized(place):
    """The header of a PPM that claims 40,000 x 40,000 pixels."""
    place.write_bytes(b"P6 40000 40000 255\n")


def rotated(place):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image(999).save(place, exif=exif)


def animated(place):
    image(999).save(place, save_all=True, append_images=[image(998), image(997)], lossless=True)


SAME_BYTES, SAME_LOOKS = r"^(?=.*\bbytes?\b)", r"^(?!.*\bbytes?\b)"

SINGLE = {
    "unreadable": ("x.jpg", missing, "(?i)no such file"),
    "empty": ("x.jpg", lambda place: place.write_bytes(b""), "(?i)empty"),
    "not-an-image": ("x.jpg", lambda place: place.write_text("gone"), "(?i)format"),
    "truncated": ("x.png", truncated, "image file is truncated"),
    "oversized": ("x.ppm", oversized, "110,000,000"),
    "unconvertible": (
        "x.tif",
        lambda place: Image.fromarray(np.zeros((40, 40), np.float32)).save(place),
        r"\bF\b.*\bRGB\b",
    ),
    "suffix": ("x.jpeg", lambda place: image(999).save(place, "PNG"), r"\.jpeg\b.*\bPNG\b"),
    "tiny": ("x.png", lambda place: image(999).resize((32, 31)).save(place), r"\b32\D+31\b"),
    "single-color": (
        "x.jpg",
        lambda place: Image.new("RGB", (40, 40), "teal").save(place),
        "(?i)colou?r",
    ),
    "mode": ("x.tif", lambda place: image(999).convert("CMYK").save(place), r"\bCMYK\b.*\bRGB\b"),
    "rotated": ("x.jpg", rotated, r"\bEXIF\b.*\b6\b"),
    "animated": ("x.webp", animated, r"(?i)\b3 frames\b"),
    "passed-over": ("x.txt", lambda place: place.write_text("notes"), "(?i)suffix|extension|file type"),
    "duplicate": (
        "x.png",
        lambda place: shutil.copy(place.parent / "0.png", place),
        SAME_BYTES + r".*\b2\b.*\bants\b",
    ),
    "near-duplicate": (
        "x.jpg",
        lambda place: image(0).save(place, quality=60),
        SAME_LOOKS + r".*\b2\b.*\bants\b",
    ),
}
"""type -> a file that is added to the ants, how, and what the message must contain."""


@pytest.mark.parametrize("kind", SINGLE)
def test_check_dataset_reports_issue_of_file(plain, kind):
    name, make, pattern = SINGLE[kind]
    make(plain / "ants" / name)
    paths = [f"ants/{name}"]
    if kind.endswith("duplicate"):
        paths = ["ants/0.png", *paths]
    assert_reported(diagnosis_of(plain), plain, (kind, paths, pattern))


def test_check_dataset_accepts_gray_and_mpo(plain):
    image(997).convert("L").save(plain / "ants" / "grey.png")
    image(999).save(plain / "ants" / "photograph.jpg", "MPO", save_all=True, append_images=[image(998)])
    assert diagnosis_of(plain).issues == ()


def test_check_dataset_single_colors_are_not_duplicates(plain):
    for colour in ("teal", "tomato"):
        Image.new("RGB", (40, 40), colour).save(plain / "ants" / f"{colour}.png")
    assert set(diagnosis_of(plain).by_kind) == {"single-color"}


def test_check_dataset_reports_label_conflict(plain):
    shutil.copy(plain / "ants" / "3.png", plain / "bees" / "z.png")
    image(4).save(plain / "bees" / "4.jpg", quality=60)
    assert_reported(
        diagnosis_of(plain),
        plain,
        ("label-conflict", ["ants/3.png", "bees/z.png"], SAME_BYTES + r".*\bants and bees\b"),
        ("label-conflict", ["ants/4.png", "bees/4.jpg"], SAME_LOOKS + r".*\bants and bees\b"),
    )


def test_check_dataset_reports_leak(given):
    shutil.copy(given / "train" / "ants" / "1003.png", given / "validation" / "ants" / "z.png")
    image(1004).save(given / "validation" / "ants" / "1004.jpg", quality=60)
    found = diagnosis_of(given)
    across = r".*\btrain and validation\b"
    assert_reported(
        found,
        given,
        ("leak", ["train/ants/1003.png", "validation/ants/z.png"], SAME_BYTES + across),
        ("near-leak", ["train/ants/1004.png", "validation/ants/1004.jpg"], SAME_LOOKS + across),
    )
    assert [finding.severity for finding in found.issues] == ["stops", "warns"]


def test_check_dataset_reports_leak_and_label_conflict(given):
    shutil.copy(given / "train" / "ants" / "1003.png", given / "validation" / "bees" / "z.png")
    found = diagnosis_of(given)
    assert [finding.kind for finding in found.issues] == ["leak", "label-conflict"]
    assert found.issues[0].paths == found.issues[1].paths


def test_check_dataset_reports_copies_once(plain):
    for name in "xyz":
        shutil.copy(plain / "ants" / "0.png", plain / "ants" / f"{name}.png")
    paths = ["ants/0.png", "ants/x.png", "ants/y.png", "ants/z.png"]
    assert_reported(diagnosis_of(plain), plain, ("duplicate", paths, SAME_BYTES + r".*\b4\b.*\bants\b"))


def test_check_dataset_names_first_labels_of_many(tmp_path):
    for label in "abcdefgh":
        (tmp_path / label).mkdir()
        image(0).save(tmp_path / label / "x.png")
    (finding,) = diagnosis_of(tmp_path).by_kind["label-conflict"]
    assert len(finding.paths) == 8
    assert re.search(SAME_BYTES + r".*\ba, b, c, d, e\b\D*\b3\b", finding.message)
    assert not re.search(r"\b[fgh]\b", finding.message)


def test_check_dataset_without_threshold_compares_bytes(plain):
    image(0).save(plain / "ants" / "x.jpg", quality=60)
    shutil.copy(plain / "ants" / "1.png", plain / "ants" / "y.png")
    assert set(diagnosis_of(plain, near_duplicates=-1).by_kind) == {"duplicate"}


def test_check_dataset_checks_threshold_before_reading(plain, monkeypatch):
    monkeypatch.setattr(doctor, "inspect_images", None)
    with pytest.raises(UserError, match="65"):
        diagnosis_of(plain, near_duplicates=65)


def test_check_dataset_reports_layout_problems(plain):
    image(999).save(plain / "loose.png")
    (plain / "cats" / "siamese.jpg").mkdir(parents=True)  # a folder
    found = diagnosis_of(plain)
    assert [finding.kind for finding in found.issues] == ["layout", "layout"]
    assert "loose.png" in found.issues[0].message
    assert f"{plain / 'cats'} contains no images" in found.issues[1].message
    assert found.num_blocking == 2


def test_check_dataset_reports_small_classes(plain):
    fill(plain / "cats", 200, n=2)
    fill(plain / "dogs", 300, n=9)
    found = diagnosis_of(plain)
    assert [(finding.kind, finding.severity) for finding in found.issues] == [
        ("too-small", "stops"),
        ("few", "warns"),
        ("few", "warns"),
    ]
    for finding, pattern in zip(found.issues, (r"'cats'", r"\bcats\D+2\b", r"\bdogs\D+9\b"), strict=True):
        assert re.search(pattern, finding.message)


def test_check_dataset_reports_classes_that_look_alike(plain):
    (plain / "Ants ").mkdir()
    shutil.move(plain / "ants" / "0.png", plain / "Ants " / "0.png")
    (issue,) = diagnosis_of(plain).by_kind["similar-classes"]
    assert issue.message == "separate classes: 'Ants ' / 'ants'"


def test_check_dataset_small_class_with_splits_is_warning(given):
    for split in ("train", "validation"):
        fill(given / split / "cats", 2000 if split == "train" else 2100, n=1)
    assert set(diagnosis_of(given).by_kind) == {"few"}


def test_check_dataset_class_too_small_for_validation_stops(given):
    (given / "validation").rename(given / "test")
    assert diagnosis_of(given).issues == ()  # validation is taken from train
    for split in ("train", "test"):
        fill(given / split / "cats", 2000 if split == "train" else 2100, n=1)
    found = diagnosis_of(given)
    assert set(found.by_kind) == {"too-small", "few"}
    assert found.by_kind["too-small"][0].message == (
        "The class 'cats' is too small: its 1 image(s) leave validation empty. Add images, or change the fractions."
    )


@pytest.mark.parametrize(("n", "kinds"), [(100, set()), (101, {"imbalance"})])
def test_check_dataset_reports_imbalance_above_ten(plain, n, kinds):
    fill(plain / "cats", 500, n=n)
    found = diagnosis_of(plain, near_duplicates=-1)
    assert set(found.by_kind) == kinds
    for finding in found.issues:
        assert re.search(r"\bcats\D+101\b.*\bbees\D+10\b", finding.message)


def test_check_dataset_reports_changed_files(plain):
    digest = hashlib.sha256((plain / "ants" / "0.png").read_bytes()).hexdigest()
    rows = [f"{path},{path.parent.name},{digest}" for path in sorted(plain.rglob("*.png"))]
    (plain / "list.csv").write_text("\n".join(("path,label,sha256", *rows)))
    found = check_dataset(csv_file.inspect_csv(plain / "list.csv"), bar)
    assert {finding.kind for finding in found.issues} == {"changed"}
    assert {finding.paths[0] for finding in found.issues} == {*plain.rglob("*.png")} - {plain / "ants" / "0.png"}


@pytest.mark.parametrize("content", [None, "README.txt"])
def test_check_dataset_without_images_reports_layout(tmp_path, content):
    if content:
        (tmp_path / content).write_text("nothing here")
    found = diagnosis_of(tmp_path)
    assert found.issues[0].kind == "layout"
    assert (found.num_blocking, found.classes) == (1, {})


def test_check_dataset_of_bad_images_only_reports_them(tmp_path):
    for label in ("ants", "bees"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpg").write_bytes(b"")
    assert set(diagnosis_of(tmp_path).by_kind) == {"empty", "few"}


def test_check_dataset_sorts_by_severity(plain):
    for name in ("passed-over", "tiny", "empty", "suffix"):
        SINGLE[name][1](plain / "ants" / SINGLE[name][0].replace("x", name))
    order = list(ISSUE_TYPES)
    found = [order.index(finding.kind) for finding in diagnosis_of(plain).issues]
    assert found == sorted(found)
    assert [ISSUE_TYPES[kind].blocking for kind in ISSUE_TYPES] == sorted(
        (kind.blocking for kind in ISSUE_TYPES.values()), reverse=True
    )


def test_as_json(given):
    (given / "train" / "ants" / "x.jpg").write_bytes(b"")
    found = json.loads(json.dumps(diagnosis_of(given).as_json("folder:given")))
    assert "empty" in found["findings"][0].pop("message")
    assert found == {
        "source": "folder:given",
        "images": 41,
        "classes": {"ants": 21, "bees": 20},
        "splits": {"train": 21, "validation": 20},
        "findings": [
            {
                "kind": "empty",
                "severity": "stops",
                "paths": [str(given / "train" / "ants" / "x.jpg")],
            }
        ],
        "stops": True,
    }


def test_check_dataset_changes_no_file(plain):
    for name, make, _ in SINGLE.values():
        place = plain / "ants" / name
        place.unlink(missing_ok=True)
        make(place)

    def state():
        files = sorted(path for path in plain.rglob("*") if path.is_file())
        return [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in files]

    before = state()
    assert diagnosis_of(plain).issues
    assert state() == before


@pytest.mark.slow
def test_check_dataset_of_real_flowers(shared):
    """The two identical pairs of shared/data/README.md, one a label conflict, and a near-duplicate across splits."""
    root = Path(shared).resolve() / "data" / "flowers"
    found = diagnosis_of(root)
    assert found.num_blocking == 0
    by_kind = found.by_kind
    train = root / "train"
    (conflict,) = by_kind["label-conflict"]
    assert conflict.paths == tuple(train / label / "15922772266_1167a06620.jpg" for label in ("roses", "tulips"))
    assert re.search(SAME_BYTES + r".*\broses and tulips\b", conflict.message)
    (copies,) = by_kind["duplicate"]
    assert copies.paths == tuple(
        train / "sunflowers" / name for name in ("15069459615_7e0fd61914_n.jpg", "15072973261_73e2912ef2_n.jpg")
    )
    assert re.search(SAME_BYTES + r".*\b2\b.*\bsunflowers\b", copies.message)
    across = {train / "daisy" / "10466290366_cc72e33532.jpg", root / "validation/daisy/10994032453_ac7f8d9e2e.jpg"}
    assert across in [set(finding.paths) for finding in by_kind["near-leak"]]
    assert by_kind.keys() == {"label-conflict", "duplicate", "near-leak", "near-duplicate"}
