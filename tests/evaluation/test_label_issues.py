import csv

import numpy as np
import pytest

from flaxtl.evaluation import label_issues
from flaxtl.evaluation.predictions import Predictions

CAT, DOG, OWL = range(3)


def predictions(*rows, classes=("cat", "dog", "owl")):
    """(label, probabilities) of each image."""
    n = len(rows)
    labels = np.array([label for label, _ in rows], np.int64)
    probabilities = np.array([p for _, p in rows], np.float32).reshape(n, len(classes))
    return Predictions(tuple(f"/{i}.jpg" for i in range(n)), ("test",) * n, labels, probabilities, classes)


# self-confidence: cat (0.75 + 0.25 + 0) / 3 = 1/3, dog (0.75 + 0.5 + 0.25) / 3 = 0.5, owl has no image
ROWS = (
    (CAT, (0.75, 0.25, 0.0)),
    (CAT, (0.25, 0.5, 0.25)),  # dog, at the threshold
    (CAT, (0.0, 0.75, 0.25)),  # dog, and cat is less probable still
    (DOG, (0.0, 0.75, 0.25)),
    (DOG, (0.5, 0.5, 0.0)),  # cat passes its threshold, but is not more probable than the label
    (DOG, (0.0, 0.25, 0.75)),  # owl, which nothing is labelled as: no one knows how sure it should be
)


def test_self_confidence():
    found = label_issues.class_thresholds(predictions(*ROWS))
    np.testing.assert_array_equal(found, [1 / 3, 0.5, np.nan])


def test_find():
    found = label_issues.find_label_issues(predictions(*ROWS))
    assert found.rows.tolist() == [2, 1]
    assert found.suggested.tolist() == [DOG, DOG]
    assert found.probability.tolist() == [0.75, 0.5]


def test_a_class_that_is_not_sure_is_not_suggested():
    sure_dog = (DOG, (0.0, 1.0, 0.0))
    assert label_issues.find_label_issues(predictions((CAT, (0.25, 0.75, 0.0)), sure_dog)).rows.tolist() == []


def test_of_several_sure_classes_the_most_probable_is_suggested():
    rows = [(CAT, (0.125, 0.5, 0.375)), (DOG, (0.5, 0.5, 0.0)), (OWL, (0.75, 0.0, 0.25))]
    found = label_issues.find_label_issues(predictions(*rows))
    # the cat: dog 0.5 >= 0.5 and owl 0.375 >= 0.25; the owl: cat 0.75 >= 0.125, but owl is more probable than cat above
    assert (found.rows.tolist(), found.suggested.tolist()) == ([0, 2], [DOG, CAT])


def test_the_most_probable_class_need_not_be_the_suggested_one():
    rows = [(CAT, (0.0, 0.5625, 0.4375)), (DOG, (0.25, 0.75, 0.0)), (OWL, (0.5, 0.25, 0.25))]
    found = label_issues.find_label_issues(predictions(*rows))
    suggested = dict(zip(found.rows.tolist(), found.suggested.tolist(), strict=True))
    assert suggested[0] == OWL  # dogs are 0.75 sure of themselves, owls 0.25


@pytest.mark.parametrize("rows", [(), ((CAT, (1.0, 0.0, 0.0)),), ((CAT, (np.nan, np.nan, np.nan)),)])
def test_nothing_to_find(tmp_path, rows):
    made = predictions(*rows)
    found = label_issues.find_label_issues(made)
    assert (len(found.rows), len(found.suggested), len(found.probability)) == (0, 0, 0)
    label_issues.write_label_issues(tmp_path / "x.csv", made, found)
    assert (tmp_path / "x.csv").read_text() == "path,label,suggested_label,probability\n"


def test_a_planted_label_is_found():
    """Of 600 answers 0.7 to 1 sure and right, 12 get another label; those 12 are found, and nothing else."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(3), 200)
    sure = rng.uniform(0.7, 1.0, 600)
    probabilities = np.full((600, 3), ((1 - sure) / 2)[:, None])
    probabilities[np.arange(600), true] = sure
    planted = np.sort(rng.choice(np.flatnonzero(sure > 0.9), 12, replace=False))
    labels = true.copy()
    labels[planted] = (true[planted] + 1) % 3
    found = label_issues.find_label_issues(predictions(*zip(labels, probabilities, strict=True)))
    assert sorted(found.rows.tolist()) == planted.tolist()
    assert found.suggested.tolist() == true[found.rows].tolist()
    assert (np.diff(found.probability) <= 0).all()  # what one class has more, the label has less


def test_the_file_reads_back_whatever_the_names(tmp_path):
    classes = ("<script>,\r\n", '=cmd|"x"!A1')
    made = predictions((0, (0.25, 0.75)), (1, (0.25, 0.75)), classes=classes)
    made = Predictions(("/a,b\r\udcff.jpg", "/b.jpg"), made.splits, made.labels, made.probabilities, classes)
    label_issues.write_label_issues(tmp_path / "x.csv", made, label_issues.find_label_issues(made))
    with (tmp_path / "x.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [list(label_issues.COLUMNS), ["/a,b\r\udcff.jpg", *classes, "0.75"]]
