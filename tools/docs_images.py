"""The images of docs/ that show a run, drawn by the report's own code.

    python tools/docs_images.py --workdir=runs/demo --output=docs/images/demo --samples
    python tools/docs_images.py --workdir=runs/flowers --output=docs/images/flowers

`--samples` publishes images of the run; those of the drawn flowers are ours, the lecture's flowers are not.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flaxtl.errors import UserError
from flaxtl.evaluation import run_files
from flaxtl.evaluation.predictor import load_setup
from flaxtl.report import plots, report
from flaxtl.report.report import AugmentedExample, augmented_samples

PAPER, INK, ACCENT = "#fbfaf6", "#222222", "#1a8f83"
"""Of an image that stands alone: a page's own colours do not reach into it, so it brings a light background."""

MARGIN = 10  # units around a drawing, which is 400 wide
GAP = 6  # pixels between the samples


def main() -> None:
    """Write loss.svg, accuracy.svg, confusion.svg and reliability.svg of a finished run, and its augmentation.jpg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--samples", action="store_true", help="augmented images too")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn(run_files.read_run(options.workdir)).items():
        (options.output / f"{name}.svg").write_text(alone(svg), encoding="utf-8")
    if options.samples:
        sheet(augmented_samples(load_setup(options.workdir))).save(options.output / "augmentation.jpg", quality=80)


def drawn(run: run_files.RunRecord) -> dict[str, str]:
    """Name -> SVG: curves over all phases; of the split that judges the run the confusion matrix and reliability."""
    evaluation, trust = report.evaluation_section(run), report.calibration_section(run)
    if evaluation is None or trust is None:
        raise UserError(f"the run in {run.workdir} has not ended; its predictions are what is drawn here")
    curves = {quantity: plots.plot_curves(run.epochs, quantity) for quantity in ("loss", "accuracy")}
    return {**curves, "confusion": str(evaluation.confusion), "reliability": str(trust.reliability)}


def alone(svg: str) -> str:
    """The image as a file of its own: with a margin, on paper, in colours of its own."""
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert view, "plots.py begins each image at 0 0"
    width, height = (float(side) + 2 * MARGIN for side in view.groups())
    corner = f"{-MARGIN} {-MARGIN} {width:g} {height:g}"
    svg = svg.replace(view[0], f'viewBox="{corner}" color="{INK}"', 1).replace("var(--accent, #1a8f83)", ACCENT)
    end_of_tag = svg.index(">") + 1
    paper = f'<rect x="{-MARGIN}" y="{-MARGIN}" width="{width:g}" height="{height:g}" fill="{PAPER}"/>'
    return f"{svg[:end_of_tag]}{paper}{svg[end_of_tag:]}\n"


def sheet(samples: Sequence[AugmentedExample]) -> Image.Image:
    """A row for each original, on the left, with its augmented samples."""
    side = samples[0][0].width + GAP
    columns = 1 + len(samples[0][1])
    page = Image.new("RGB", (columns * side + GAP, len(samples) * side + GAP), PAPER)
    for row, (original, changed) in enumerate(samples):
        for column, image in enumerate((original, *changed)):
            page.paste(image, (column * side + GAP, row * side + GAP))
    return page


if __name__ == "__main__":
    main()
