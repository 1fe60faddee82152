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
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from aot.hlo import Program, study
from aot.programs import PhasePrograms, make_setup, tree_bytes
from aot.topology import topology_mesh

from flaxtl.errors import UserError
from flaxtl.parallel import devices

MAX_ALL_REDUCES = 3
"""All-reduces of a train step: gradients, metrics and, in bfloat16, the float32 gradients of the last layer."""

MAX_DATA_ALL_REDUCES = 2
"""More of them if the data set is split over devices: the indices of a batch, and its rows from where they are."""

METRIC_BYTES = 4096
"""More than what the loss and the counts by class take."""

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
            for phase in setup.phases:
                for row, problems in check_phase(PhasePrograms(setup, mesh, phase), dtype):
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


def check_phase(programs: PhasePrograms, dtype: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the row and the failed checks of the train steps and of the evaluation step of a phase."""
    name = programs.phase.name
    compiled, seconds = compile_program(*programs.train())
    program = study(compiled.as_text())
    yield make_row(f"{name}: train", dtype, compiled, program, seconds), find_problems(programs, compiled, program)
    compiled, seconds = compile_program(*programs.evaluate())
    yield make_row(f"{name}: evaluate", dtype, compiled, study(compiled.as_text()), seconds), []


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


def find_problems(programs: PhasePrograms, compiled: Any, program: Program) -> list[str]:
    """Return what is wrong with the train steps of a phase."""
    name, problems = programs.phase.name, []
    state = programs.state()
    if program.aliases < (num_leaves := len(jax.tree.leaves(state))):
        problems.append(f"{name}: {program.aliases} of {num_leaves} arrays of the state are donated")
    if others := set(program.collectives) - {"all-reduce"}:
        problems.append(f"{name}: {', '.join(sorted(others))} in a train step")
    is_split = programs.mesh.size > 1
    if program.collectives["all-reduce"] > (allowed := MAX_ALL_REDUCES + is_split * MAX_DATA_ALL_REDUCES):
        problems.append(f"{name}: {program.collectives['all-reduce']} all-reduces; at most {allowed}")
    inputs = programs.data("train", programs.start_layer).inputs
    batch_bytes = is_split * programs.setup.config.batch_size * row_bytes(inputs)
    if program.collective_bytes > tree_bytes(state.params) + batch_bytes + METRIC_BYTES:
        problems.append(f"{name}: {program.collective_bytes} bytes are reduced, more than what trains and a batch")
    data = tree_bytes(inputs) // programs.mesh.size
    if data in program.copies:
        problems.append(f"{name}: the data set is copied ({data} bytes)")
    # On a GPU, matrix products return float32 for inputs of any dtype.
    is_tpu = devices.platform_of(programs.mesh) == "tpu"
    if is_tpu and programs.setup.config.dtype == "bfloat16" and program.products["f32"] > 2:
        problems.append(f"{name}: {program.products['f32']} float32 products; only the last layer's may be")
    return problems


def row_bytes(inputs: Any) -> int:
    """Return the bytes that are reduced of each row of a split data set; 16-bit numbers are reduced as 32-bit ones."""
    itemsize = 4 if inputs.dtype.itemsize == 2 else inputs.dtype.itemsize
    return math.prod(inputs.shape[1:]) * itemsize


if __name__ == "__main__":
    sys.exit(main())
