import csv
from dataclasses import replace

import numpy as np
import pytest

from flaxtl.evaluation import label_issues
from flaxtl.evaluation.predictions import Predictions

CAT, DOG, OWL = range(3)


def make_predictions(*rows, classes=("cat", "dog", "owl")):
    """Predictions from (label, probabilities) of each image."""
    n = len(rows)
    labels = np.array([label for label, _ in rows], np.int64)
    probabilities = np.array([p for _, p in rows], np.float32).reshape(n, len(classes))
    return Predictions(tuple(f"/{i}.jpg" for i in range(n)), ("test",) * n, labels, probabilities, classes)


# thresholds: cat (0.75 + 0.25 + 0) / 3 = 1/3, dog (0.75 + 0.5 + 0.25) / 3 = 0.5, owl has no image
ROWS = (
    (CAT, (0.75, 0.25, 0.0)),
    (CAT, (0.25, 0.5, 0.25)),  # dog, at the threshold
    (CAT, (0.0, 0.75, 0.25)),  # dog, and cat is less probable still
    (DOG, (0.0, 0.75, 0.25)),
    (DOG, (0.5, 0.5, 0.0)),  # cat passes its threshold, but is not more probable than the label
    (DOG, (0.0, 0.25, 0.75)),  # owl, which no image is labeled as: it has no threshold
)


def test_class_thresholds_are_mean_label_probabilities():
    thresholds = label_issues.class_thresholds(make_predictions(*ROWS))
    np.testing.assert_array_equal(thresholds, [1 / 3, 0.5, np.nan])


def test_find_label_issues_most_suspicious_first():
    issues = label_issues.find_label_issues(make_predictions(*ROWS))
    assert issues.rows.tolist() == [2, 1]
    assert issues.suggested.tolist() == [DOG, DOG]
    assert issues.probability.tolist() == [0.75, 0.5]


def test_find_label_issues_are_sorted_by_probability_then_by_label():
    rows = [
        (CAT, (0.25, 0.5, 0.25)),
        (CAT, (0.125, 0.5, 0.375)),
        (CAT, (0.375, 0.625, 0.0)),
        (CAT, (1.0, 0.0, 0.0)),
        (DOG, (0.5, 0.5, 0.0)),
    ]
    issues = label_issues.find_label_issues(make_predictions(*rows))
    assert issues.probability.tolist() == [0.625, 0.5, 0.5]
    assert issues.rows.tolist() == [2, 1, 0]


def test_find_label_issues_below_threshold_not_suggested():
    confident_dog = (DOG, (0.0, 1.0, 0.0))
    assert label_issues.find_label_issues(make_predictions((CAT, (0.25, 0.75, 0.0)), confident_dog)).rows.tolist() == []


def test_find_label_issues_suggests_most_probable_candidate():
    rows = [(CAT, (0.125, 0.5, 0.375)), (DOG, (0.5, 0.5, 0.0)), (OWL, (0.75, 0.0, 0.25))]
    issues = label_issues.find_label_issues(make_predictions(*rows))
    # the cat: dog 0.5 >= 0.5 and owl 0.375 >= 0.25; the owl: cat 0.75 >= 0.125, but owl is more probable than cat above
    assert (issues.rows.tolist(), issues.suggested.tolist()) == ([2, 0], [CAT, DOG])


def test_find_label_issues_ignores_classes_below_threshold():
    rows = [(CAT, (0.0, 0.5625, 0.4375)), (DOG, (0.25, 0.75, 0.0)), (OWL, (0.5, 0.25, 0.25))]
    issues = label_issues.find_label_issues(make_predictions(*rows))
    suggested = dict(zip(issues.rows.tolist(), issues.suggested.tolist(), strict=True))
    assert suggested[0] == OWL  # the threshold of dog is 0.75, of owl 0.25


@pytest.mark.parametrize("rows", [(), ((CAT, (1.0, 0.0, 0.0)),), ((CAT, (np.nan, np.nan, np.nan)),)])
def test_label_issues_none_found_writes_header_only(tmp_path, rows):
    predictions = make_predictions(*rows)
    issues = label_issues.find_label_issues(predictions)
    assert (len(issues.rows), len(issues.suggested), len(issues.probability)) == (0, 0, 0)
    label_issues.write_label_issues(tmp_path / "x.csv", predictions, issues)
    assert (tmp_path / "x.csv").read_text() == "path,label,suggested_label,probability\n"


def test_find_label_issues_finds_planted_labels_only():
    """Of 600 correct predictions of confidence 0.7 to 1, 12 get another label: exactly these are found."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(3), 200)
    confidence = rng.uniform(0.7, 1.0, 600)
    probabilities = np.full((600, 3), ((1 - confidence) / 2)[:, None])
    probabilities[np.arange(600), true] = confidence
    planted = np.sort(rng.choice(np.flatnonzero(confidence > 0.9), 12, replace=False))
    labels = true.copy()
    labels[planted] = (true[planted] + 1) % 3
    issues = label_issues.find_label_issues(make_predictions(*zip(labels, probabilities, strict=True)))
    assert sorted(issues.rows.tolist()) == planted.tolist()
    assert issues.suggested.tolist() == true[issues.rows].tolist()
    assert (np.diff(issues.probability) <= 0).all()  # the label has what the other class lacks


@pytest.mark.parametrize(("num_wrong", "reliable"), [(3, True), (4, False)])
def test_are_reliable_from_85_percent_of_the_validation_images(num_wrong, reliable):
    predictions = make_predictions(*[(CAT, (0.0, 1.0, 0.0))] * num_wrong, *[(CAT, (1.0, 0.0, 0.0))] * (20 - num_wrong))
    assert label_issues.are_reliable(predictions) is reliable
    rest = make_predictions(*[(CAT, (0.0, 1.0, 0.0))] * 20)
    both = replace(
        predictions,
        paths=predictions.paths + rest.paths,
        splits=("validation",) * 20 + ("test",) * 20,
        labels=np.concatenate([predictions.labels, rest.labels]),
        probabilities=np.concatenate([predictions.probabilities, rest.probabilities]),
    )
    assert label_issues.are_reliable(both) is reliable


def test_write_label_issues_hostile_names_round_trip(tmp_path):
    classes = ("<script>,\r\n", '=cmd|"x"!A1')
    predictions = make_predictions((0, (0.25, 0.75)), (1, (0.25, 0.75)), classes=classes)
    predictions = Predictions(
        ("/a,b\r\udcff.jpg", "/b.jpg"), predictions.splits, predictions.labels, predictions.probabilities, classes
    )
    label_issues.write_label_issues(tmp_path / "x.csv", predictions, label_issues.find_label_issues(predictions))
    with (tmp_path / "x.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [list(label_issues.COLUMNS), ["/a,b\r\udcff.jpg", *classes, "0.75"]]
