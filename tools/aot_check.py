"""Compile flaxtl's steps for a TPU or GPU that is not there, and check the programs: `aot_check.py v5e:2x2`.

Nothing runs. The compilers come with libtpu (pip install 'flaxtl[aot]') and, for GPUs, with the wheels
jax-cuda12-plugin and jax-cuda12-pjrt of jax's version (pip install --no-deps); neither needs a driver. Times are
estimates of the TPU's compiler, not measurements. The exit code is 1 if a check fails.
"""

import os

# Before jax is imported: arrays stay on the CPU, libtpu does not look for a TPU, and nothing is autotuned.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aot.checks import find_eval_problems, find_feature_problems, find_problems
from aot.hlo import Program, study
from aot.programs import PhasePrograms, make_setup
from aot.topology import topology_mesh

from flaxtl.errors import UserError

COLUMNS = ("program", "dtype", "GFLOP", "argument MB", "temp MB", "aliases", "collectives", "moved MB", "copies MB",
           "products", "kernels", "estimate ms", "compiled in s")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology", help="v5e:2x2, v5e:2x4, h200:1 or h200:4")
    parser.add_argument(
        "--gpu-target", type=Path, metavar="FILE", help="XLA's description of the GPU, such as h200.txtpb"
    )
    parser.add_argument("--config", default="flowers_vgg16", metavar="NAME|FILE[:VARIANT]")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each row to this file, one object a line")
    options, overrides = parser.parse_known_args(arguments)
    failures = []
    try:
        mesh = topology_mesh(options.topology, options.gpu_target)
        print(" | ".join(COLUMNS), flush=True)
        for dtype in options.dtypes.split(","):
            setup = make_setup(options.config, [*overrides, f"--config.dtype={dtype}"])
            extracted: set[str] = set()
            for phase in setup.phases:
                for row, problems in check_phase(PhasePrograms(setup, mesh, phase), dtype, extracted):
                    print(" | ".join(str(value) for value in row.values()), flush=True)
                    for problem in problems:
                        print(f"  FAILED: {problem}", flush=True)
                    failures += problems
                    if options.json:
                        entry = {"topology": options.topology, "model": setup.model_info.model.spec.name, **row}
                        with options.json.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(entry | {"failed": problems}) + "\n")
    except UserError as error:
        parser.error(str(error))
    print(f"{len(failures)} checks failed")
    return 1 if failures else 0


def check_phase(programs: PhasePrograms, dtype: str, extracted: set[str]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the row and the failed checks of each program of a phase; features of layers not in `extracted` yet."""
    name = programs.phase.name
    kinds = {"train": find_problems, "evaluate": find_eval_problems, "validate": find_eval_problems}
    if (layer := programs.phase.cut_layer) and layer not in extracted:
        kinds["extract"] = find_feature_problems
        extracted.add(layer)
    for kind, find in kinds.items():
        compiled, seconds = compile_program(*getattr(programs, kind)())
        program = study(compiled.as_text())
        problems = [f"{name}: {kind}: {problem}" for problem in find(programs, program)]
        yield make_row(f"{name}: {kind}", dtype, compiled, program, seconds), problems


def compile_program(function: Any, arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """Return the compiled program, and the seconds that it took."""
    start = time.monotonic()
    return function.lower(*arguments).compile(), time.monotonic() - start


def make_row(name: str, dtype: str, compiled: Any, program: Program, seconds: float) -> dict[str, Any]:
    """Return a row of the table by column."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    values = (
        name, dtype, round(cost.get("flops", 0) / 1e9, 1),
        round(memory.argument_size_in_bytes / 1e6, 1), round(memory.temp_size_in_bytes / 1e6, 1), program.aliases,
        dict(program.collectives), round(program.collective_bytes / 1e6, 3), round(sum(program.copies) / 1e6),
        dict(program.products), program.kernels, round(program.milliseconds, 2), round(seconds, 1),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
