"""README.md and requirements.txt of an export folder, for people who have only this folder."""

import re

from flaxtl.console import printable
from flaxtl.errors import join_names
from flaxtl.export.metadata import ModelMetadata

README_FILE, REQUIREMENTS_FILE, MODEL_CARD_FILE = "README.md", "requirements.txt", "model_card.md"

MODEL_FILES = {
    "safetensors": "weights in float32, named LAYER/LEAF; flaxtl rebuilds the network",
    "stablehlo": "program with its weights, for `jax.export.deserialize` on CPU, CUDA and TPU",
    "onnx": "network with its weights in float32, for onnxruntime and other ONNX runtimes",
}
"""Format of an export -> what its model file contains."""


def render_requirements(form: str, versions: dict[str, str]) -> str:
    """Return requirements.txt: what predict.py imports for a format. Newer versions work, unless it says otherwise.

    Args:
      form: 'safetensors', 'stablehlo' or 'onnx'.
      versions: package -> version that wrote the folder.
    """
    runtimes = {
        "safetensors": [f"flaxtl=={versions['flaxtl']}  # not on PyPI: install it from its repository first"],
        "stablehlo": [
            f"jax>={versions['jax']}  # reads programs of jax for six months after the release that wrote them"
        ],
        "onnx": ["onnxruntime>=1.19"],
    }
    lines = [*runtimes[form], "numpy>=2.1", "pillow>=11.3", "# pillow-heif  # HEIC photos of iPhones"]
    return "\n".join(lines) + "\n"


def render_readme(metadata: ModelMetadata, name: str, *, has_model_card: bool) -> str:
    """Return README.md: what the model is, how to use it, and what the files are.

    Args:
      metadata: the content of model.json, with the name of the model file.
      name: of the run.
      has_model_card: whether the folder has one.
    """
    form, height, width = metadata.file.partition(".")[2], metadata.resize.height, metadata.resize.width
    files = [
        (metadata.file, MODEL_FILES[form]),
        ("predict.py", "classifies image files, and those in folders; a script to copy and change"),
        ("model.json", "classes, preprocessing, input size, calibration, versions, checksum"),
        (REQUIREMENTS_FILE, "packages that predict.py needs"),
    ]
    if has_model_card:
        files.append((MODEL_CARD_FILE, "training data, accuracy of each class, known failures, licenses"))
    rows = "\n".join(f"| {file} | {content} |" for file, content in files)
    classes = join_names(map(_escape, metadata.classes))
    return f"""# {_escape(name)}: classifier of {len(metadata.classes)} classes

{metadata.architecture}, trained with flaxtl {metadata.versions["flaxtl"]}. Classes: {classes}.
It assigns one of these classes to every image, even if the image shows none of them.

## Use

```bash
pip install -r {REQUIREMENTS_FILE}
python predict.py photo.jpg folder/
```

{_describe_confidence(metadata)}

From Python, in this folder:

```python
from predict import load_image, load_model, read_metadata

metadata, run_model = read_metadata(), load_model()
images = load_image("photo.jpg", metadata["resize"])[None]  # uint8 RGB [1, {height}, {width}, 3]
probabilities = run_model(images)                           # float32 [1, {len(metadata.classes)}], uncalibrated
```

## Files

| file | content |
|---|---|
{rows}

License of the pretrained weights: {metadata.license}
"""


def _escape(text: str) -> str:
    """Return a name of a user as Markdown that shows it."""
    return re.sub(r"([\\`*_#|<>\[\]~$&])", r"\\\1", printable(" ".join(text.split())))


def _describe_confidence(metadata: ModelMetadata) -> str:
    if metadata.temperature is None:
        return "It prints the most probable classes with their probabilities, which are not calibrated."
    return (
        f"It prints the most probable classes. Their probabilities are calibrated with the temperature "
        f"{metadata.temperature:.3f}, fitted on validation images: if new images are like those, about 90 of 100 "
        "images at 90 % are classified correctly. `--raw` prints the model's own."
    )
