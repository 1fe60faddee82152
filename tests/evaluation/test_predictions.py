import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flaxtl import console
from flaxtl.errors import UserError
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.evaluation.predictions import Predictions

COLUMNS = "path,split,label,prediction,confidence"
HEADER = f"{COLUMNS},cat,dog\n"


@pytest.fixture
def predictions():
    return Predictions(
        paths=("/data/a,b.jpg", '/data/say "cheese"\n.jpg', "/data/\udcff.jpg"),  # comma, quotes, line end, not UTF-8
        splits=("validation", "test", "test"),
        labels=np.array([0, 2, 1]),
        # 1/3 has no short decimal; 1e-38 is written with an exponent; the last row has two equal maxima
        probabilities=np.array([[1 / 3, 2 / 3, 0], [1, 1e-38, 0], [0.25, 0.375, 0.375]], np.float32),
        classes=("<script>", "Löwe, groß", "label"),
    )


def test_predictions_csv_round_trip_is_bit_exact(tmp_path, predictions):
    predictions_file.write_predictions(tmp_path / "predictions.csv", predictions)
    back = predictions_file.read_predictions(tmp_path / "predictions.csv")
    assert (back.paths, back.splits, back.classes) == (predictions.paths, predictions.splits, predictions.classes)
    assert back.labels.tolist() == [0, 2, 1]
    assert back.probabilities.dtype == np.float32
    assert back.probabilities.tobytes() == predictions.probabilities.tobytes()


def test_predictions_csv_keeps_the_logarithm_of_underflowed_probabilities(tmp_path, predictions):
    """float32 ends at exp(-103), float64 at exp(-745)."""
    log_softmax = np.array([[-0.4, -200.46, -1.1], [0, -87.5, -12345.6], [-1.1, -0.4, -1e30]], np.float32)
    stored = replace(predictions, probabilities=np.exp(log_softmax), log_softmax=log_softmax)
    predictions_file.write_predictions(tmp_path / "predictions.csv", stored)
    back = predictions_file.read_predictions(tmp_path / "predictions.csv")
    np.testing.assert_array_equal(np.float32(back.log_probabilities[:2]), np.float32(stored.log_probabilities[:2]))
    assert back.log_probabilities[2, 2] == pytest.approx(-1e30, rel=1e-7)
    assert back.probabilities[0].tolist() == [*stored.probabilities[0, :1], 0, stored.probabilities[0, 2]]
    cells = (tmp_path / "predictions.csv").read_text(errors="surrogateescape").split(",")
    assert np.float32(math.log(float(next(cell for cell in cells if "e-88" in cell)))) == np.float32(-200.46)


def test_write_predictions_file_format(tmp_path):
    path = tmp_path / "predictions.csv"
    probabilities = np.array([[0.25, 0.75]], np.float32)
    predictions_file.write_predictions(
        path, Predictions(("x.jpg",), ("test",), np.array([0]), probabilities, ("cat", "dog"))
    )
    assert path.read_text() == HEADER + "x.jpg,test,cat,dog,0.75,0.25,0.75\n"


def test_predictions_predicted_class_and_confidence(predictions):
    assert predictions.predicted.tolist() == [1, 0, 1]
    assert predictions.confidence.dtype == np.float32
    assert predictions.confidence.tolist() == [np.float32(2 / 3), 1.0, 0.375]


def test_predictions_values_of_images_are_computed_once(predictions, monkeypatch):
    """The report asks for them photo by photo, and with thousands of classes each takes a pass over all columns."""
    shapes = []
    log = predictions_file.classification.log_probabilities
    monkeypatch.setattr(
        predictions_file.classification, "log_probabilities", lambda p, logs: shapes.append(p.shape) or log(p, logs)
    )
    for name in ("predicted", "confidence", "losses"):
        assert getattr(predictions, name) is getattr(predictions, name)
    assert shapes == [(3,)]  # of the labels only


def test_predictions_unknown_labels_are_not_counted(predictions):
    assert predictions.correct.tolist() == [False, False, True]
    assert predictions.confusion_matrix.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    partly = replace(predictions, labels=np.array([0, predictions_file.UNLABELED, 1]))
    for name in ("correct", "confusion_matrix", "losses", "error_rows"):
        with pytest.raises(UserError, match=r'true class of /data/say "cheese"\n\.jpg is unknown'):
            getattr(partly, name)


def test_of_split_keeps_rows_of_one_split(predictions):
    test = predictions.of_split("test")
    assert test.paths == predictions.paths[1:]
    assert test.splits == ("test", "test")
    assert test.labels.tolist() == [2, 1]
    assert test.probabilities.tolist() == predictions.probabilities[1:].tolist()
    with pytest.raises(UserError, match=r"split 'tset'.*'test'"):
        predictions.of_split("tset")


def test_predictions_error_rows_are_sorted_largest_loss_first():
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [1.0, 0.0]], np.float32)
    plain = Predictions(tuple("abcd"), ("test",) * 4, np.zeros(4, np.int64), probabilities, ("cat", "dog"))
    # exact: the probabilities are powers of two, and the logarithm is taken in float64
    assert plain.losses.tolist() == [-np.log(0.5), -np.log(0.25), -np.log(2.0**-126), 0]
    assert plain.error_rows.tolist() == [2, 1]
    assert replace(plain, log_softmax=np.float32([[-1, -1], [-2, 0], [-100, 0], [0, -200]])).losses[2] == 100
    assert plain.take([]).error_rows.tolist() == []


def test_predictions_csv_without_rows_round_trip(tmp_path, predictions):
    predictions_file.write_predictions(tmp_path / "none.csv", predictions.take([]))
    assert predictions_file.read_predictions(tmp_path / "none.csv").probabilities.shape == (0, 3)


def test_write_predictions_failure_keeps_old_file(tmp_path, predictions):
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    no_such_class = Predictions(("x",), ("test",), np.array([7]), np.ones((1, 1), np.float32), ("only",))
    with pytest.raises(IndexError):
        predictions_file.write_predictions(path, no_such_class)
    assert path.read_text() == "old"


def test_write_predictions_refuses_unknown_labels(tmp_path, predictions):
    unlabeled = replace(predictions, labels=np.full(3, predictions_file.UNLABELED))
    with pytest.raises(UserError, match=r"true class of /data/a,b\.jpg is unknown"):
        predictions_file.write_predictions(tmp_path / "predictions.csv", unlabeled)
    assert list(tmp_path.iterdir()) == []


def test_predictions_inconsistent_shapes_raise():
    with pytest.raises(ValueError, match=r"\b2 paths\b"):
        Predictions(("a", "b"), ("test", "test"), np.array([0]), np.ones((2, 1), np.float32), ("c",))


def test_read_predictions_missing_file_names_command(tmp_path):
    with pytest.raises(UserError, match=r"(?=.*/gone\.csv\b)(?=.*\bflaxtl train\b)"):
        predictions_file.read_predictions(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", COLUMNS),
        (b"name,age\nbob,3\n", COLUMNS),
        (HEADER[:-9].encode() + b"\n", rf"(?i){COLUMNS}.*\bclass"),
        (HEADER.encode() + b"x,test,cat,dog,0.7,0.3\n", r"\bline 2\b.*\b6\b.*\b7\b"),
        (HEADER.encode() + b"x,test,cow,dog,0.7,0.3,0.7\n", r"\bline 2\b.*'cow'"),
        *(
            (HEADER.encode() + b"x,test,cat,dog,0.7,0.3,%s\n" % value, r"\bline 2\b.*\bprobability\b.*\b0 to 1\b")
            for value in (b"much", b"nan", b"-0.5", b"70")
        ),
        (b"\x89PNG\r\n\x1a\n\0\0", COLUMNS),
    ],
)
def test_read_predictions_invalid_file_names_file_and_reason(tmp_path, content, reason):
    path = tmp_path / "foreign.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        predictions_file.read_predictions(path)
    assert str(path) in str(error.value)


def test_write_csv_class_named_like_a_column_gets_a_prefix(tmp_path):
    classes = ("confidence", "label", "p_path", "p_rose", "path", "prediction", "split")
    probabilities = np.arange(7, dtype=np.float32)[None] / 21
    predictions = Predictions(("x.jpg",), ("test",), np.array([1]), probabilities, classes)
    titles = "p_confidence,p_label,p_p_path,p_rose,p_path,p_prediction,p_split"
    predictions_file.write_predictions(tmp_path / "a.csv", predictions)
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == f"{COLUMNS},{titles}"
    back = predictions_file.read_predictions(tmp_path / "a.csv")
    assert (back.classes, back.labels.tolist()) == (classes, [1])
    assert back.probabilities.tolist() == probabilities.tolist()
    predictions_file.write_csv(tmp_path / "b.csv", predictions, 1)
    assert (tmp_path / "b.csv").read_text().splitlines()[0] == f"path,prediction,confidence,{titles}"


def test_read_predictions_accepts_columns_without_prefix(tmp_path):
    (tmp_path / "old.csv").write_text(f"{COLUMNS},label,rose\nx.jpg,test,label,rose,0.75,0.25,0.75\n")
    assert predictions_file.read_predictions(tmp_path / "old.csv").classes == ("label", "rose")


@pytest.mark.parametrize("position", range(3))
def test_write_outputs_to_a_full_disk_names_the_file(predictions, position):
    files = [None] * 3
    files[position] = Path("/dev/full")
    with pytest.raises(UserError, match=r"^Cannot write /dev/full \(No space left on device\)\."):
        predictions_file.write_outputs(predictions, 1, *files)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/x/a/1.jpg", "/x/b/2.jpg"], ["1.jpg", "2.jpg"]),
        (["/x/a/1.jpg", "/x/b/1.jpg", "/x/b/2.jpg"], ["a/1.jpg", "b/1.jpg", "b/2.jpg"]),
        (["a/1.jpg", "a/b/1.jpg"], ["1.jpg", "b/1.jpg"]),
        (["/y/1.jpg", "a/1.jpg"], None),
    ],
)
def test_short_names_differ(paths, expected):
    names = predictions_file.short_names(paths)
    assert len(set(names)) == len(paths)
    assert expected in (None, names)


@pytest.mark.parametrize(
    ("file", "expected"),
    [(Path("out.csv"), "and 2 more, all in out.csv"), (None, "and 2 more; use --csv=FILE or --json=FILE for all")],
)
def test_predictions_table_too_long_names_the_file_of_all(predictions, file, expected, monkeypatch):
    monkeypatch.setattr(console, "MAX_ROWS", 1)
    table = predictions_file.predictions_table(replace(predictions, paths=("a", "b", "c")), 1, file)
    assert [str(cell) for cell in table.columns[0].cells] == ["a", expected]
