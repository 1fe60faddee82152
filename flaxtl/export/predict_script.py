"""Classify images with the network in this folder: python predict.py IMAGE...

This file stands alone and may be copied, changed and built upon. It needs numpy and Pillow, and for the network in
model.onnx onnxruntime, for model.stablehlo jax, for model.safetensors flaxtl. Everything that is true of the network,
its classes in order among it, is told by model.json beside this file.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent
TOP = 5
"""Classes that are shown of each image."""

Network = Callable[[np.ndarray], np.ndarray]
"""uint8 [n, height, width, 3], RGB -> float32 probabilities [n, classes]; preprocessing is inside. Any n."""


def read_metadata() -> dict[str, Any]:
    """What model.json says."""
    found: dict[str, Any] = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    return found


def load_image(path: str | Path, resize: dict[str, Any]) -> np.ndarray:
    """An image file as the network was shown its images in training: uint8 [height, width, 3], RGB, upright.

    `resize` is model.json's entry of that name.
    """
    with Image.open(path) as image:
        image.load()
        colours = _rgb(_upright(image))
    box = _centre(colours.size, resize) if resize["policy"] == "crop" else None
    size = (resize["width"], resize["height"])
    return np.asarray(colours.resize(size, Image.Resampling[resize["interpolation"].upper()], box))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata must not hide a good image
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """16-bit greys scaled to 8 bits, transparency over white, everything else as Pillow converts it."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.int32) + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def _centre(size: tuple[int, int], resize: dict[str, Any]) -> tuple[float, float, float, float]:
    """The part of an image that is in the centre crop once the image is scaled so that the crop is `crop_pct` of it."""
    crops = (resize["width"], resize["height"])
    covered = [round(crop / resize["crop_pct"]) for crop in crops]
    scale = max(cover / side for cover, side in zip(covered, size, strict=True))
    edges = []
    for side, cover, crop in zip(size, covered, crops, strict=True):
        scaled = max(cover, round(side * scale))
        start = (scaled - crop) // 2
        edges.append((start * side / scaled, (start + crop) * side / scaled))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def load_network() -> Network:
    """The network in this folder."""
    if (FOLDER / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=onnxruntime.get_available_providers())
        return lambda images: session.run(["probabilities"], {"images": images})[0]
    if (FOLDER / "model.stablehlo").exists():
        import jax
        from jax import export

        exported = export.deserialize(bytearray((FOLDER / "model.stablehlo").read_bytes()))
        compiled = jax.jit(exported.call)
        return lambda images: np.asarray(compiled(images))
    from flaxtl.export import formats

    return formats.load_exported_model(FOLDER)


def main(paths: Sequence[str]) -> int:
    """Print a line an image: its path and its most probable classes. Returns 2 if some could not be read, else 0."""
    told, run, code = read_metadata(), load_network(), 0
    for path in paths:
        try:
            pixels = load_image(path, told["resize"])
        except Exception as error:  # Pillow raises many kinds for files that are no images
            print(f"{path}: cannot be read as an image ({error})", file=sys.stderr)
            code = 2
            continue
        (probabilities,) = run(pixels[np.newaxis])
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        print(f"{path}:", ", ".join(f"{told['classes'][index]} {probabilities[index]:.1%}" for index in best))
    return code


if __name__ == "__main__":
    command_line = argparse.ArgumentParser(description=f"The {TOP} most probable classes of each image.")
    command_line.add_argument("images", nargs="+", metavar="IMAGE")
    sys.exit(main(command_line.parse_args().images))
