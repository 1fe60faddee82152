import csv
import json
import re
import statistics

import pytest
from helpers.fake_train import EVALUATION, PHASE

from flaxtl.errors import UserError
from flaxtl.tuning import sweep_report, sweep_results
from flaxtl.tuning.sweep_grid import SweepPlan, SweepRun
from flaxtl.tuning.sweep_results import MeanStd


def summary_of_phase(accuracy, loss, trainable_params):
    metrics = {"accuracy": accuracy, "loss": loss, "n": 8}
    return PHASE | {"trainable_params": trainable_params, "train": metrics, "validation": metrics}


class SweepFiles:
    """Writes the files of a sweep."""

    def __init__(self, workdir, keys=("units",), seeded=False, folds=0):
        self.workdir, self.keys, self.seeded, self.folds, self.runs = workdir, list(keys), seeded, folds, []

    def run(self, name, point, accuracy=None, loss=1.0, failed=None, test=None, fold=0):
        run = SweepRun(name, point, fold, [])
        self.runs.append(run)
        if accuracy is not None:
            phases = {"frozen": summary_of_phase(0.99, 0.0, 1), "finetune": summary_of_phase(accuracy, loss, 1234)}
            summary = {"format_version": 2, "complete": True, "wall_seconds": 2.5, "phases": phases}
            self.put(f"runs/{name}/summary.json", json.dumps(summary))
        if failed is not None:
            self.put(f"logs/{name}.failed", failed)
        if test is not None:
            self.put(f"test/{name}.json", json.dumps(EVALUATION | {"workdir": name, "accuracy": test}))

    def predict(self, name, correct, first=0):
        """Write validation predictions of one image per digit of `correct`, numbered from `first`."""
        rows = [
            f"/{first + i}.jpg,validation,a,{'ba'[int(hit)]},0.9,{hit},{1 - int(hit)}" for i, hit in enumerate(correct)
        ]
        self.put(f"runs/{name}/predictions.csv", "\n".join(["path,split,label,prediction,confidence,a,b", *rows, ""]))

    def put(self, name, text):
        file = self.workdir / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def results(self):
        return sweep_results.read_results(self.workdir, SweepPlan({}, self.keys, self.seeded, self.folds, self.runs))


@pytest.fixture
def files(tmp_path):
    return SweepFiles(tmp_path)


def units(results):
    return [point.values["units"] for point in results.points]


def test_results_are_ordered_by_validation_accuracy_then_loss(files):
    files.run("a", {"units": 1}, 0.5)
    files.run("b", {"units": 2}, 0.75, loss=0.9)
    files.run("c", {"units": 3}, 0.75, loss=0.8)
    files.run("d", {"units": 4}, 0.75, loss=float("nan"))
    files.run("e", {"units": 5}, 0.25)
    results = files.results()
    assert units(results) == [3, 2, 4, 1, 5]
    assert results.best is results.points[0]
    assert results.points[0].accuracy == (0.75, None, 1, 8)
    assert (results.points[0].trainable_params, results.points[0].seconds) == (1234, 2.5)


def test_results_order_ignores_test_accuracy(files):
    files.run("a", {"units": 1}, 0.5, test=1.0)
    files.run("b", {"units": 2}, 0.75, test=0.25)
    results = files.results()
    assert units(results) == [2, 1]
    assert results.points[0].test == (0.25, None, 1, 6)
    assert results.points[1].test is None  # not read


def test_point_has_mean_and_std_over_its_runs(tmp_path):
    files = SweepFiles(tmp_path, seeded=True)
    for seed, accuracy in enumerate((0.5, 0.625, 0.75)):
        files.run(f"a{seed}", {"units": 1}, accuracy, loss=accuracy * 2, test=accuracy / 2)
    for seed, accuracy in enumerate((0.9, 0.2)):
        files.run(f"b{seed}", {"units": 2}, accuracy)
    results = files.results()
    assert units(results) == [1, 2]  # 0.625 before 0.55
    assert results.points[0].accuracy == (0.625, 0.125, 3, 8)
    assert results.points[0].loss == (1.25, 0.25, 3, 0)
    assert results.points[0].test == (0.3125, 0.0625, 3, 6)
    assert results.points[1].accuracy == (0.55, statistics.stdev([0.9, 0.2]), 2, 8)
    cells = sweep_report.table_cells(results, results.points[0])
    assert cells == ["1", "62 % ± 12", "1.2500 ± 0.2500", "1,234", "2.5 s", "3", "31 % ± 6"]
    assert sweep_report.table_columns(results)[-3:] == ["training time", "runs", "test accuracy"]


@pytest.mark.parametrize(
    ("accuracy", "text"),
    [
        (MeanStd(0.9417, None, 1, 120), "94 %"),
        (MeanStd(0.872, 0.0053, 3, 735), "87.2 % ± 0.5"),
        (MeanStd(0.99, 0.0001, 2, 1_000_000), "99.00 % ± 0.01"),
        (None, ""),
    ],
)
def test_format_accuracy_has_the_digits_that_the_images_support(accuracy, text):
    assert sweep_report.format_accuracy(accuracy) == text


def test_point_of_folds_has_the_images_of_all_folds(tmp_path):
    files = SweepFiles(tmp_path, seeded=True, folds=2)
    for name, fold in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
        files.run(name, {"units": 1}, 0.5, fold=fold)
    assert files.results().points[0].accuracy == (0.5, 0.0, 4, 16)
    files.run("e", {"units": 1}, fold=1)  # a seed that is not trained yet has no other images
    assert files.results().points[0].accuracy == (0.5, 0.0, 4, 16)


def test_results_name_points_that_are_no_different_from_the_best(files):
    for name, units, accuracy, correct in (
        ("a", 1, 0.5, "1111100000"),
        ("b", 2, 0.6, "1110111000"),
        ("c", 3, 0.0, "0" * 10),
    ):
        files.run(name, {"units": units}, accuracy)
        files.predict(name, correct)
    ties = "No significant difference from the best on 10 images: units=1 (McNemar p = 1)."
    assert files.results().ties == ties
    assert ties in list(sweep_report.result_messages(files.results()))
    assert ties in sweep_report.render_sweep_report(files.results(), "sweep")


def test_results_pool_folds_but_not_images_that_are_predicted_twice(tmp_path):
    files = SweepFiles(tmp_path, folds=2)
    for name, units, correct in (("a", 1, "1111"), ("b", 2, "1101")):
        for fold in (1, 2):
            files.run(f"{name}{fold}", {"units": units}, 1.0 / units, fold=fold)
            files.predict(f"{name}{fold}", correct, first=4 * fold)
    assert files.results().ties == "No significant difference from the best on 8 images: units=2 (McNemar p = 0.5)."
    files.predict("b2", "1101", first=4)  # the images of the first fold again
    assert files.results().ties == ""


def test_results_with_missing_runs_have_no_best_point(tmp_path):
    files = SweepFiles(tmp_path, seeded=True)
    files.run("a0", {"units": 1}, 0.9, test=0.9)
    files.run("a1", {"units": 1})
    files.run("b0", {"units": 2}, 0.5, test=0.5)
    files.run("b1", {"units": 2}, 0.5, test=0.5)
    results = files.results()
    assert units(results) == [2, 1]
    assert (results.num_missing, results.best) == (1, None)
    assert results.points[0].test is None
    missing = "Not trained yet: 1 of 4 runs. To train them, run the command without --collect, for every --shard."
    assert missing in sweep_report.result_messages(results)
    assert sweep_report.table_cells(results, results.points[1])[-1] == "1 of 2"


def test_results_with_a_failed_point_list_it_last(files):
    files.run("a", {"units": 1}, failed="too little memory; lower batch")
    files.run("b", {"units": 2}, 0.5, failed="of an earlier attempt")
    results = files.results()
    assert units(results) == [2, 1]
    assert results.failures == {"a": "too little memory; lower batch"}
    assert results.num_missing == 0
    assert results.best is results.points[0]
    assert any(
        re.search(r"^a\b.*too little memory; lower batch", line) for line in sweep_report.result_messages(results)
    )
    assert sweep_report.table_cells(results, results.points[1]) == ["1", "failed", "", "–", "–"]


def test_report_without_a_complete_run(files):
    files.run("a", {"units": 1})
    results = files.results()
    assert (results.num_missing, results.best) == (1, None)
    page = sweep_report.render_sweep_report(results, "sweep")
    assert 'class="figure"' not in page
    assert "Not trained yet: 1 of 1 runs." in page


def test_write_results_csv(tmp_path):
    files = SweepFiles(tmp_path, keys=("head.units", "name"))
    files.run("a", {"head.units": [8, 4], "name": "x,y"}, 0.5, loss=2.0)
    files.run("b", {"head.units": [], "name": "z"}, 0.75, loss=1.0, test=0.25)
    files.run("c", {"head.units": [1], "name": "z"}, failed="no")
    sweep_results.write_results_csv(files.results(), tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "head.units", "name", "validation_accuracy", "validation_accuracy_std", "validation_loss",
        "validation_loss_std", "test_accuracy", "test_accuracy_std", "n", "runs", "trainable_params", "seconds",
        "failed",
    ]  # fmt: skip
    assert rows == [
        ["()", "z", "0.75", "", "1.0", "", "0.25", "", "1", "1", "1234", "2.5", ""],
        ["(8, 4)", "x,y", "0.5", "", "2.0", "", "", "", "1", "1", "1234", "2.5", ""],
        ["1", "z", "", "", "", "", "", "", "0", "1", "", "", "no"],
    ]


@pytest.mark.parametrize(
    ("file", "text", "facts"),
    [
        ("runs/a/summary.json", "{", r"runs/a/summary\.json\b.*line 1 column 2"),
        ("runs/a/summary.json", '{"format_version": 2, "complete": true}', r"runs/a/summary\.json\b.*runs/a\b(?!/)"),
        ("test/a.json", '{"accuracy": "high", "n": 1}', r"test/a\.json\b.*\baccuracy\b"),
    ],
)
def test_read_results_of_a_damaged_file_names_it(files, file, text, facts):
    files.run("a", {"units": 1}, 0.5, test=0.5)
    files.put(file, text)
    with pytest.raises(UserError, match=facts):
        files.results()


def test_report_shows_every_point_and_a_plot_of_every_setting(tmp_path):
    files = SweepFiles(tmp_path, keys=("units", "name"))
    files.run("a=8,b=x", {"units": [8], "name": "x"}, 0.5)
    files.run("c", {"units": [8, 4], "name": "x"}, 0.75, test=0.25)
    files.run("d", {"units": [8], "name": "<script>"}, 0.25)
    files.run("e", {"units": [8, 4], "name": "<script>"}, failed="<b>no</b>")
    page = sweep_report.render_sweep_report(files.results(), "mine")
    assert re.search(r'<span class="figure">75 %</span>[^<]*\bunits=\(8, 4\), name=x</h1>', page)
    assert re.search(r"<p[^>]*>[^<]*25 %[^<]*\btest\b", page)
    assert page.count("<svg") == 2
    assert 'href="runs/a%3D8%2Cb%3Dx/report/index.html"' in page
    assert "<script" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    for word in ("http://", "https://", "src="):  # no requests
        assert word not in page.replace("http://www.w3.org/", "")


def test_report_selection_bias_counts_the_complete_points(files):
    files.run("a", {"units": 1}, 0.5, test=0.25)
    files.run("b", {"units": 2}, failed="no")
    page = sweep_report.render_sweep_report(files.results(), "sweep")
    assert "25 % test accuracy." in page
    assert "optimistic" not in page  # nothing was selected
    files.run("c", {"units": 3}, 0.25)
    page = " ".join(sweep_report.render_sweep_report(files.results(), "sweep").split())
    assert "25 % test accuracy. The validation figure is optimistic because it was used for selection, as the" in page
    assert "best of 2 points; the test figure is not." in page


def test_report_note_has_a_space_between_its_sentences(tmp_path):
    files = SweepFiles(tmp_path, folds=2)
    for fold in (1, 2):
        files.run(f"a{fold}", {"units": 1}, 0.5, fold=fold)
    page = sweep_report.render_sweep_report(files.results(), "sweep")
    assert "after the last phase. Each point is trained on 2 cross-validation folds. ±: sample standard" in page


def test_axis_values_are_in_order():
    order = sweep_report._axis_values
    assert order([0.4, 0, 10, 0.4]) == [0, 0.4, 10]
    assert order([[128, 64], [256], [], [64]]) == [[], [64], [256], [128, 64]]
    assert order(["b", "a"]) == ["a", "b"]
