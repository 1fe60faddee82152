"""Generate the tables of all models: their figures, and the papers and licenses of their weights."""

from flaxtl.models import registry
from flaxtl.models.spec import ModelSpec
from reference.markdown import code, table, text

INTRODUCTION = """# Networks in figures

*Parameters* counts the whole network with its 1,000 ImageNet classes, *base* the part that transfer learning starts
from; both include batch statistics. *Input* is the image size that the weights were trained for, *minimum* the
smallest size that the base accepts, in pixels per side. Accuracies are in percent, on the ImageNet validation images
with one center crop, as published. *Preprocessing* is part of the model: inputs are plain RGB images. `flaxtl models`
also shows which weights are available offline.
"""

PAPER_URLS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def page() -> str:
    """Return the page in Markdown."""
    columns = ("network", "parameters", "base", "input", "minimum", "top-1", "top-5", "preprocessing")
    figures = table(columns, map(_figures, registry.MODELS.values()))
    papers = table(("paper", "networks", "license of the weights"), _papers())
    return f"{INTRODUCTION}\n{figures}\n\n## Papers and licenses\n\n{papers}\n"


def _figures(spec: ModelSpec) -> tuple[str, ...]:
    counts = (spec.num_params, spec.num_params_no_top, spec.input_size, spec.min_input_size)
    accuracies = (f"{accuracy:.1f}" for accuracy in (spec.top1, spec.top5))
    return code(spec.name), *(f"{count:,}" for count in counts), *accuracies, code(spec.preprocessing)


def _papers() -> list[tuple[str, ...]]:
    """Return a row for each paper and license, with its models."""
    names: dict[tuple[str, str], list[str]] = {}
    for spec in registry.MODELS.values():
        names.setdefault((spec.paper, spec.license), []).append(code(spec.name))
    return [(_link(paper), ", ".join(models), text(license)) for (paper, license), models in names.items()]


def _link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{paper}]({PAPER_URLS[kind]}{number})"
