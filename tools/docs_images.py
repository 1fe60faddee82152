"""Draw the images of docs/ that show a run, with the code of the report.

    python tools/docs_images.py --workdir=runs/demo --output=docs/images/demo --samples --browser=chromium
    python tools/docs_images.py --workdir=runs/flowers --output=docs/images/flowers

`make docs-images` is the first line. `--samples` and `--browser` also write images of the dataset. Do this only for
datasets that may be published, such as synthetic.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flaxtl.errors import UserError
from flaxtl.evaluation import run_files
from flaxtl.evaluation.predictor import load_setup
from flaxtl.report import report, run_summary
from flaxtl.report.report import AugmentedExample, augmented_samples

PAPER, INK, ACCENT = "#fbfaf6", "#222222", "#1a8f83"
"""Colors of an image file, to which the colors of a page do not apply."""

MARGIN = 10  # around a plot, in its units; plots are 400 wide
GAP = 6  # between samples, in pixels

SCREENSHOT = (1280, 820)
"""Width and height of the window that shows the report, in CSS pixels; the file has 1.5 times as many each way."""


def main() -> None:
    """Write loss.svg, accuracy.svg, confusion.svg and reliability.svg of a finished run, and images on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--samples", action="store_true", help="also write augmentation.jpg")
    parser.add_argument("--browser", metavar="PROGRAM", help="Chromium or Chrome, to also write report.webp")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, svg in draw_plots(run_files.read_run(options.workdir)).items():
        (options.output / f"{name}.svg").write_text(make_standalone(svg), encoding="utf-8")
    if options.samples:
        page = make_contact_sheet(augmented_samples(load_setup(options.workdir)))
        page.save(options.output / "augmentation.jpg", quality=80)
    if options.browser:
        page = take_screenshot(options.browser, options.workdir / "report" / "index.html")
        page.save(options.output / "report.webp", quality=85)


def draw_plots(run: run_files.RunRecord) -> dict[str, str]:
    """Return name -> SVG: curves of all phases; confusion matrix and reliability diagram of the evaluated split."""
    evaluation, calibration = report.evaluation_section(run), report.calibration_section(run)
    if evaluation is None or calibration is None:
        raise UserError(f"The run in {run.workdir} has no predictions yet. Finish it with `flaxtl train`.")
    curves = {title.lower(): str(svg) for title, svg in run_summary.training_curves(run).items()}
    return {**curves, "confusion": str(evaluation.confusion), "reliability": str(calibration.reliability)}


def make_standalone(svg: str) -> str:
    """Add a margin, a background and colors."""
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert view, "the view box of report/plots.py starts at 0 0"
    width, height = (float(side) + 2 * MARGIN for side in view.groups())
    corner = f"{-MARGIN} {-MARGIN} {width:g} {height:g}"
    svg = svg.replace(view[0], f'viewBox="{corner}" color="{INK}"', 1).replace("var(--accent, #1a8f83)", ACCENT)
    tag_end = svg.index(">") + 1
    background = f'<rect x="{-MARGIN}" y="{-MARGIN}" width="{width:g}" height="{height:g}" fill="{PAPER}"/>'
    return f"{svg[:tag_end]}{background}{svg[tag_end:]}\n"


def make_contact_sheet(samples: Sequence[AugmentedExample]) -> Image.Image:
    """Return one row per image: the original, then its augmented versions."""
    side = samples[0][0].width + GAP
    columns = 1 + len(samples[0][1])
    page = Image.new("RGB", (columns * side + GAP, len(samples) * side + GAP), PAPER)
    for row, (original, augmented) in enumerate(samples):
        for column, image in enumerate((original, *augmented)):
            page.paste(image, (column * side + GAP, row * side + GAP))
    return page


def take_screenshot(browser: str, page: Path) -> Image.Image:
    """Return the top of an HTML page as the browser draws it in a window of SCREENSHOT."""
    width, height = SCREENSHOT
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.5"]
        window = [f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--screenshot={file}"]
        subprocess.run([browser, *flags, *window, page.resolve().as_uri()], check=True, capture_output=True)
        return Image.open(file).convert("RGB")


if __name__ == "__main__":
    main()
