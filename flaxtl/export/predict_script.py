"""Classify images with the model in this folder: python predict.py PATH..., for image files and folders of them.

This file is standalone; copy and change it as you like. It needs numpy, Pillow and the runtime of the model file:
onnxruntime for model.onnx, jax for model.stablehlo, flaxtl for model.safetensors; for HEIC photos of iPhones also
pillow-heif. model.json describes the model, including its classes in the order of the output.
"""

import argparse
import json
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

FOLDER = Path(__file__).parent
TOP_K = 5  # classes printed for each image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")  # Pillow's names
SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
RAW_SUFFIXES = {  # of cameras: Pillow would read their preview
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw",
}  # fmt: skip
JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}  # written by file managers and network storage

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Model = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB [n, height, width, 3] -> float32 probabilities [n, classes], for any n; preprocessing is included."""


def main(paths: Sequence[str], *, raw: bool = False) -> int:
    """Print the most probable classes of each image, `raw`: with uncalibrated probabilities.

    Returns 2 if a package is missing, a folder has no images or an image cannot be read, else 0.
    """
    try:
        metadata, run_model, exit_code = read_metadata(), load_model(), 0
    except ImportError as error:
        requirements = shlex.quote(str(FOLDER / "requirements.txt"))
        print(f"predict.py needs {error.name}: pip install -r {requirements}", file=sys.stderr)
        return 2
    images: dict[Path, None] = {}
    for path in map(Path, paths):
        found = find_images(path) if path.is_dir() else [path]
        images.update(dict.fromkeys(found))
        if not found:
            print(f"{path}: no images found", file=sys.stderr)
            exit_code = 2
    for path in images:
        try:
            image = load_image(path, metadata["resize"])
        except Exception as error:  # Pillow raises many types for invalid files
            print(f"{path}: cannot read the image ({_reason(error)})", file=sys.stderr)
            exit_code = 2
            continue
        (probabilities,) = run_model(image[np.newaxis])
        if metadata["temperature"] and not raw:
            probabilities = calibrate(probabilities, metadata["temperature"])
        top = np.argsort(-probabilities, kind="stable")[:TOP_K]
        print(f"{path}:", ", ".join(f"{metadata['classes'][index]} {probabilities[index]:.1%}" for index in top))
    return exit_code


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message shows a Python object
        return "not an image of a known format"
    return getattr(error, "strerror", None) or str(error)


def find_images(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted; hidden files are left out."""
    return sorted(_walk(folder, frozenset()))


def _walk(folder: Path, outer: frozenset[Path]) -> Iterator[Path]:
    """Yield the images below a folder; `outer` are the folders around it, to which links are not followed."""
    inside = folder.resolve()
    if inside in outer:
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.lower() in JUNK:
            continue
        if path.is_dir():
            yield from _walk(path, outer | {inside})
        elif _is_image(path):
            yield path


def _is_image(path: Path) -> bool:
    """Return whether a file has the suffix of an image; if it has another one, its content decides."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in RAW_SUFFIXES or not path.is_file():
        return suffix in SUFFIXES
    try:
        with path.open("rb") as file:
            if _is_heic(file.read(32)):
                return True
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # Pillow raises many types for other files
        return False


def read_metadata() -> dict[str, Any]:
    """Return the content of model.json."""
    metadata: dict[str, Any] = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    return metadata


def load_model() -> Model:
    """Load the model in this folder."""
    if (FOLDER / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=onnxruntime.get_available_providers())
        return lambda images: session.run(["probabilities"], {"images": images})[0]
    if (FOLDER / "model.stablehlo").exists():
        import jax
        from jax import export

        exported = export.deserialize(bytearray((FOLDER / "model.stablehlo").read_bytes()))
        run_model = jax.jit(exported.call)
        return lambda images: np.asarray(run_model(images))
    from flaxtl.export import formats

    return formats.load_exported_model(FOLDER)


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(log p / T): the same classes, with confidences that match the accuracy on new images."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)) / temperature
    scaled = np.exp(logits - logits.max(axis=-1, keepdims=True))
    calibrated: np.ndarray = scaled / scaled.sum(axis=-1, keepdims=True)
    return calibrated


def load_image(path: str | Path, resize: dict[str, Any]) -> np.ndarray:
    """Read an image file as in training: uint8 RGB [height, width, 3], upright.

    `resize` is the entry of that name in model.json.
    """
    if Path(path).suffix.lower() in RAW_SUFFIXES:
        raise ValueError("a camera RAW image: convert it to JPEG or PNG")
    content, bit_depth = Path(path).read_bytes(), resize.get("bit_depth", 0)
    try:
        image = _read_rgb(content, bit_depth)
    except Exception:
        if not content.startswith(PNG_SIGNATURE):
            raise
        image = _read_rgb(_without_metadata(content), bit_depth)  # Pillow refuses large or damaged text and profiles
    box = _center_crop_box(image.size, resize) if resize["policy"] == "crop" else None
    size = (resize["width"], resize["height"])
    return np.asarray(image.resize(size, Image.Resampling[resize["interpolation"].upper()], box))


def _read_rgb(content: bytes, bit_depth: int) -> Image.Image:
    """Return the upright RGB image of a file's content; `bit_depth` 0: 16-bit images use all 16."""
    formats = _heic_formats() if _is_heic(content) else FORMATS
    with Image.open(BytesIO(content), formats=formats) as file:
        raw_mode = _raw_mode(file)
        file.load()
        if bit_depth and ";16" in raw_mode and not file.mode.startswith("I"):
            file.paste(_read_deep_colors(content, file, raw_mode, bit_depth))
        if file.format in ("PPM", "JPEG2000"):  # Pillow scales these to 16 bits
            bit_depth = 16
        colors = file.convert("RGB") if file.mode in ("RGBA", "LA") and _has_unused_alpha(file) else file
        return _to_rgb(_apply_exif_orientation(colors), bit_depth or 16)


def _is_heic(content: bytes) -> bool:
    brands = content[8:32]  # HEVC is the coding of HEIC; AVIF is the same container with another one
    return content[4:8] == b"ftyp" and (b"hei" in brands or b"hev" in brands)


def _heic_formats() -> tuple[str, ...]:
    """Let Pillow read HEIC files; it returns them upright."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError("HEIC, an iPhone format: pip install pillow-heif") from error
    register_heif_opener()
    return ("HEIF",)


def _without_metadata(png: bytes) -> bytes:
    """Return a PNG file without its ancillary chunks, but for undamaged transparency and orientation."""
    parts, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        name = png[start + 4 : start + 8]
        is_sound = zlib.crc32(png[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end], "big")
        if name[:1].isupper() or (name in (b"tRNS", b"eXIf") and is_sound):
            parts.append(png[start:end])
        start = end
    return b"".join(parts)


def _raw_mode(file: ImageFile) -> str:
    """Return how an image that is not loaded yet stores its pixels, such as 'RGB;16B'."""
    args = file.tile[0].args if file.tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _read_deep_colors(content: bytes, high: Image.Image, raw_mode: str, bit_depth: int) -> Image.Image:
    """Return colors of `bit_depth` bits as 8 bits: the raw mode decides which of their two bytes Pillow reads."""
    if not raw_mode.startswith("RGB"):
        raise ValueError(f"16-bit pixels of mode {raw_mode} cannot be scaled: save it as RGB")
    is_big_endian = raw_mode.endswith("B") or (raw_mode.endswith("N") and sys.byteorder == "big")
    other = raw_mode[:-1] + ("L" if is_big_endian else "B")
    with Image.open(BytesIO(content)) as low:
        low.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
            for tile in low.tile
        ]
        values = np.asarray(high).astype(np.int64) * 256 + np.asarray(low)
    return Image.fromarray(_scale_to_8_bits(values, bit_depth))


def _scale_to_8_bits(values: np.ndarray, bit_depth: int) -> np.ndarray:
    largest = 2**bit_depth - 1
    scaled: np.ndarray = np.minimum((values * 255 + largest // 2) // largest, 255).astype(np.uint8)
    return scaled


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # ignore damaged metadata of a valid image
        return image


def _to_rgb(image: Image.Image, bit_depth: int) -> Image.Image:
    """Scale 16-bit gray with values of `bit_depth` bits, put transparent images on white, convert the rest."""
    if image.mode in ("F", "LAB"):
        raise ValueError(f"pixels of mode {image.mode} cannot be converted to RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("gray values do not fit into 16 bits")
        image = Image.fromarray(_scale_to_8_bits(gray, bit_depth))
    elif image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _has_unused_alpha(image: Image.Image) -> bool:
    is_undeclared = image.format == "TIFF" and 338 not in getattr(
        image, "tag_v2", ()
    )  # ExtraSamples: the channel may be infrared
    return is_undeclared or image.getchannel("A").getextrema()[1] == 0


def _center_crop_box(size: tuple[int, int], resize: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the center crop in the original image.

    The image is scaled until it just covers crop / crop_pct, then cropped.
    """
    crops = (resize["width"], resize["height"])
    targets = [int(crop / resize["crop_pct"]) for crop in crops]
    most, least = max(zip(targets, size, strict=True), key=lambda pair: pair[0] / pair[1])
    edges = []
    for side, target, crop in zip(size, targets, crops, strict=True):
        scaled = max(target, side * most // least)
        start = round((scaled - crop) / 2)
        edges.append((start * side / scaled, (start + crop) * side / scaled))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=f"Print the {TOP_K} most probable classes of each image.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders of images")
    parser.add_argument("--raw", action="store_true", help="probabilities as the model gives them, uncalibrated")
    options = parser.parse_args()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have characters that the terminal lacks
    sys.exit(main(options.paths, raw=options.raw))
