"""The process that damages and reads files, until one of them is its end.

A line KIND of standard input lets it make valid files of that kind, and is answered by a line; each line KIND SEED
NUMBER is answered by JSON: the file's name, the outcome, and what there is to say. The damaged file lies in
SCRATCH/case meanwhile.
"""

import faulthandler
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path
from pkgutil import resolve_name
from random import Random

from flaxtl.errors import UserError
from fuzzing.audit import Audit
from fuzzing.mutate import damaged
from fuzzing.subject import Subject

KINDS = {
    "h5": "fuzzing.weights:keras_h5",
    "keras3": "fuzzing.weights:keras3",
    "safetensors": "fuzzing.weights:safetensors",
    "onnx": "fuzzing.weights:onnx",
    "checkpoint": "fuzzing.runs:checkpoint",
    "config": "fuzzing.runs:config",
    "manifest": "fuzzing.runs:manifest",
    "images": "fuzzing.images:images",
}
"""What makes the valid files of a kind, imported when they are wanted."""


def main() -> None:
    """Answer until the input ends."""
    scratch = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print
    warnings.simplefilter("ignore")
    faulthandler.register(signal.SIGUSR1)
    audit = Audit(scratch)
    made: dict[str, list[Subject]] = {}
    for line in sys.stdin:
        kind, *which = line.split()
        if which:
            seed, number = which
            answer = one(made[kind], scratch / "case", Random(f"{kind} {seed} {number}"), audit)
        else:
            made[kind] = valid(kind, scratch)
            answer = {}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def valid(kind: str, scratch: Path) -> list[Subject]:
    """The valid files of a kind, each of which is read as it is: what is refused already proves nothing."""
    folder = scratch / "valid" / kind
    folder.mkdir(parents=True)
    subjects: list[Subject] = resolve_name(KINDS[kind])(folder)
    for subject in subjects:
        shutil.rmtree(scratch / "case", ignore_errors=True)
        shutil.copytree(subject.folder, scratch / "case")
        subject.read(scratch / "case", subject.files[0])
    return subjects


def one(subjects: list[Subject], case: Path, random: Random, audit: Audit) -> dict[str, str]:
    """Damage one file of one subject, let it be read, and tell its name, the outcome and the reason."""
    subject = random.choice(subjects)
    name = random.choice(subject.files)
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(subject.folder, case)
    content = damaged((case / name).read_bytes(), random, text=subject.text)
    (case / name).write_bytes(content)
    with audit as crimes:
        outcome, told = _outcome(subject, case, name)
    if crimes:
        outcome, told = "forbidden", "\n".join(crimes)
    return {"file": name, "outcome": outcome, "told": told}


def _outcome(subject: Subject, case: Path, name: str) -> tuple[str, str]:
    try:
        subject.read(case, name)
    except UserError as error:
        return "refused", str(error)
    except BaseException:
        return "fault", traceback.format_exc(limit=-12)
    return "accepted", ""


if __name__ == "__main__":
    main()
