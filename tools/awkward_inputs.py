"""Write data sets as people have them, which tools of this kind stumble over: `python tools/awkward_inputs.py FOLDER`.

Each is a folder of two classes of sound images, FOLDER/NAME, and something unusual. Two lines for each say what, and
the data source for `flaxtl doctor --data=SOURCE` or `flaxtl train --config.data.source=SOURCE`.
"""

import argparse
import shutil
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from deep_images import chunk, save_png16, save_tiff
from PIL import Image

SIDE = 48  # pixels
PER_CLASS = 6
UMLAUTS = "gänseblümchen"  # a class name

WORKDIRS = ("lr=[0.1]", "a[1]", "wörk dir #1 [100%]", "ab\\c", "gs:", "~", "-x")
"""Names of run directories that other libraries take for patterns, addresses or options."""


def colors(number: int) -> np.ndarray:
    """Return uint8 [SIDE, SIDE, 3]; any two numbers give images that are not similar."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def write_classes(folder: Path, classes: Sequence[str] = ("daisy", "rose"), start: int = 0) -> str:
    """Write PER_CLASS images of each class, NUMBER.png with numbers from `start`; return the data source."""
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + PER_CLASS):
            Image.fromarray(colors(number)).save(folder / label / f"{number}.png")
        start += PER_CLASS
    return f"folder:{folder}"


def odd_suffixes(folder: Path) -> str:
    """JPEGs called .jpe, .jpg_large, '.jpg?w=600', '.jpg ' and without suffix; a JPEG XL and a text file"""
    source = write_classes(folder)
    for number, suffix in enumerate((".jpe", ".jpg_large", ".jpg?w=600", ".jpg ", "")):
        with (folder / "rose" / f"photo{number}{suffix}").open("wb") as file:
            Image.fromarray(colors(200 + number)).save(file, "JPEG")
    (folder / "rose" / "new.jxl").write_bytes(b"\xff\x0a" + bytes(64))
    (folder / "rose" / "notes.txt").write_text("taken in May\n")
    return source


def png_metadata(folder: Path) -> str:
    """PNGs with 2 MB of text or profile, 80 texts of 1 MB, and wrong checksums of text and gamma"""
    source = write_classes(folder)
    long = zlib.compress(bytes(2**21))
    additions = (
        chunk(b"zTXt", b"Comment\0\0" + long),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + long),
        chunk(b"iCCP", b"profile\0\0" + long),
        80 * chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1))),
        chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
        chunk(b"gAMA", struct.pack(">I", 45455))[:-1] + b"?",
    )
    header_end = 33  # of the signature and IHDR
    for path, addition in zip(sorted((folder / "rose").iterdir()), additions, strict=True):
        content = path.read_bytes()
        path.write_bytes(content[:header_end] + addition + content[header_end:])
    return source


def jpeg_12_bits(folder: Path) -> str:
    """a JPEG with 12 bits a sample, as scanners and medical devices write"""
    source = write_classes(folder)
    path = folder / "rose" / "12bit.jpg"
    Image.fromarray(colors(200)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12  # bits of a sample
    path.write_bytes(content)
    return source


def deep_gray(folder: Path) -> str:
    """gray levels of 10 bits in 16-bit PNGs"""
    source = write_classes(folder)
    for path in folder.rglob("*.png"):
        Image.fromarray(colors(int(path.stem))[..., 0].astype(np.uint16) * 4).save(path)
    return source


def deep_colors(folder: Path) -> str:
    """colors of 12 bits in 16-bit PNGs and TIFFs of both byte orders"""
    source = write_classes(folder)
    for path in list(folder.rglob("*.png")):
        values = colors(int(path.stem)).astype(np.uint16) * 16
        if path.parent.name == "rose":
            path.unlink()
            save_tiff(path.with_suffix(".tif"), values, order="<>"[int(path.stem) % 2])
        else:
            save_png16(path, values)
    return source


def infrared_band(folder: Path) -> str:
    """TIFFs of four bands, the last one infrared and not declared as transparency"""
    source = write_classes(folder)
    for path in list(folder.rglob("*.png")):
        path.unlink()
        save_tiff(path.with_suffix(".tif"), np.dstack([colors(int(path.stem)), colors(300)[..., :1]]))
    return source


def float_tiff(folder: Path) -> str:
    """a TIFF of float values, as microscopes and satellites give"""
    source = write_classes(folder)
    Image.fromarray(colors(200)[..., 0].astype(np.float32) / 255).save(folder / "rose" / "float.tif")
    return source


def zero_alpha(folder: Path) -> str:
    """PNGs with an alpha channel that is 0 everywhere"""
    source = write_classes(folder)
    for path in folder.rglob("*.png"):
        Image.fromarray(np.dstack([colors(int(path.stem)), np.zeros((SIDE, SIDE, 1), np.uint8)])).save(path)
    return source


def linked_folders(folder: Path) -> str:
    """a class that is a link to a folder elsewhere; predict --input meets a link to a parent folder"""
    write_classes(folder / "elsewhere")
    (folder / "set" / "daisy").mkdir(parents=True)
    for path in (folder / "elsewhere" / "daisy").iterdir():
        path.rename(folder / "set" / "daisy" / path.name)
    (folder / "set" / "rose").symlink_to(folder / "elsewhere" / "rose")
    (folder / "elsewhere" / "loop").symlink_to(folder)
    return f"folder:{folder / 'set'}"


def csv_semicolons(folder: Path) -> str:
    """a CSV as Excel saves it in Germany: Windows-1252, 'sep=;' and semicolons; a class with an umlaut"""
    return _write_csv(folder, "sep=;\r\npath;label\r\n", "{path};{label}\r\n", "cp1252")


def csv_unicode_text(folder: Path) -> str:
    """a CSV as Excel saves 'Unicode text': UTF-16 and tabs"""
    return _write_csv(folder, "path\tlabel\r\n", "{path}\t{label}\r\n", "utf-16")


def csv_columns(folder: Path) -> str:
    """a CSV of a competition: a column id, comments with '#', blank lines"""
    return _write_csv(folder, "# our list\nid,path,label\n\n", "7,{path},{label}\n", "utf-8")


def _write_csv(folder: Path, header: str, row: str, encoding: str) -> str:
    write_classes(folder)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    labels = {"daisy": UMLAUTS, "rose": "rose"}
    rows = [row.format(path=path, label=labels[path.parent.name]) for path in paths]
    (folder / "list.csv").write_text(header + "".join(rows), encoding=encoding, newline="")
    return f"csv:{folder / 'list.csv'}"


def look_alike_classes(folder: Path) -> str:
    """classes that differ in case, in a space at the end, and in the Unicode form (NFC, NFD) of an umlaut"""
    return write_classes(folder, ("Rose", "rose ", *(unicodedata.normalize(form, UMLAUTS) for form in ("NFC", "NFD"))))


def unicode_forms_of_splits(folder: Path) -> str:
    """splits called Training and Testing with the same class in two Unicode forms (NFC, NFD)"""
    for split, form, start in (("Training", "NFC", 0), ("Testing", "NFD", 100)):
        write_classes(folder / split, (unicodedata.normalize(form, UMLAUTS), "rose"), start)
    return f"folder:{folder}"


def rare_class(folder: Path) -> str:
    """splits of which the test split has no image of a class"""
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        write_classes(folder / split, start=start)
    shutil.rmtree(folder / "test" / "rose")
    return f"folder:{folder}"


def column_names(folder: Path) -> str:
    """classes called path and label, as columns of predictions.csv"""
    return write_classes(folder, ("path", "label"))


def backslash_zip(folder: Path) -> str:
    r"""a zip of Windows with names such as set\rose\1.png"""
    write_classes(folder / "set")
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for path in sorted((folder / "set").rglob("*.png")):
            member = zipfile.ZipInfo(str(path.relative_to(folder)).replace("/", "\\"))
            archive.writestr(member, path.read_bytes())
    return f"archive:{folder / 'set.zip'}"


INPUTS: dict[str, Callable[[Path], str]] = {
    make.__name__: make
    for make in (
        odd_suffixes,
        png_metadata,
        jpeg_12_bits,
        deep_gray,
        deep_colors,
        infrared_band,
        float_tiff,
        zero_alpha,
        linked_folders,
        csv_semicolons,
        csv_unicode_text,
        csv_columns,
        look_alike_classes,
        unicode_forms_of_splits,
        rare_class,
        column_names,
        backslash_zip,
    )
}
"""Name -> function that writes the data set into a folder and returns its data source; its docstring describes it."""


def main(arguments: Sequence[str]) -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    folder = parser.parse_args(arguments).folder.resolve()
    for name, write in INPUTS.items():
        source = write(folder / name)
        print(f"{name}: {write.__doc__}\n  {source}")
    print("run directories: " + ", ".join(f"--workdir={name!r}" for name in WORKDIRS))


if __name__ == "__main__":
    main(sys.argv[1:])
