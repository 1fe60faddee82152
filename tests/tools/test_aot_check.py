"""The steps as programs of other platforms: exported for all of them, and compiled for a TPU that is not there."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from aot import checks
from aot.hlo import Program, num_bytes, study
from aot.programs import Abstract, PhasePrograms, count_products

from flaxtl.models.convolution import conv

TOOL = Path(__file__).parents[2] / "tools" / "aot_check.py"

HLO = """HloModule jit_run, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }

%fused_computation (p: f32[4]) -> f32[4] {
  %c = bf16[512,1024]{1,0} copy(%p)
  %narrow = bf16[3,3,64,64]{1,0} convert(%p)
}

%body (arg: f32[4]) -> f32[4] {
  %k = bf16[32,7,7,512]{3,2,1,0} convolution(%a, %b), backend_config={"estimated_cycles":"3000000"}
  %copy = f32[512,1024]{1,0} copy(%k)
  %part = ((u32[32,4]{1,0}), u32[8,4]{1,0}) reduce-scatter-start(%d)
  ROOT %sum = (f32[8,4]{1,0}, s32[]) all-reduce(%c, %d), to_apply=%add
}
"""


def test_study_counts_what_a_program_contains():
    program = study(HLO)
    assert program.collectives == {"all-reduce": 1, "reduce-scatter": 1}
    assert (program.aliases, program.collective_bytes) == (2, 132 + 128)
    assert (program.copies, program.products, program.kernels) == ([2**21], {"bf16": 1}, 2)
    assert (program.sizes, program.rounded) == ({32 * 7 * 7 * 512, 512 * 1024, 128, 32, 1}, {"3,3,64,64"})
    assert program.milliseconds == 2.0  # 3,000,000 cycles at 1.5 GHz


@pytest.mark.parametrize(("types", "size"), [("f32[]", 4), ("(bf16[2,3]{1,0}, pred[5])", 17), ("token[]", 0)])
def test_num_bytes_sums_the_arrays(types, size):
    assert num_bytes(types) == size


@pytest.mark.parametrize("phase", [0, 1], ids=["features", "augmented images"])
def test_steps_export_for_every_platform(prepared, phase):
    programs = PhasePrograms(prepared, prepared.mesh, prepared.phases[phase])
    for function, arguments in (programs.train(), programs.evaluate(), programs.validate()):
        exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(*arguments)
        assert exported.platforms == ("cpu", "cuda", "tpu")


def test_count_products_counts_the_algorithm_of_the_platform():
    arguments = Abstract((32, 50, 50, 256), "float32"), Abstract((3, 3, 256, 256), "float32")
    jaxpr = jax.make_jaxpr(conv)(*arguments).jaxpr
    assert count_products(jaxpr, "tpu") == count_products(jaxpr, "gpu") == 1
    assert count_products(jaxpr, "cpu") == 2 * 36  # Winograd's products of tiles, and the transforms of the kernel


def program(**changes):
    """The train steps of `frozen`: two products forward, two gradients of kernels and one of an input."""
    correct = {
        "aliases": 999,
        "collectives": Counter({"all-reduce": 2}),
        "collective_bytes": 100,
        "copies": [],
        "sizes": frozenset(),
        "rounded": frozenset(),
        "products": Counter({"f32": 5}),
        "kernels": 9,
        "milliseconds": 0.0,
    }
    return Program(**(correct | changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"aliases": 3}, "arrays of the state are donated"),
        ({"collectives": Counter({"all-gather": 1})}, "all-gather in a train step"),
        ({"collectives": Counter({"all-reduce": 4})}, "4 collectives; at most 3"),
        ({"collective_bytes": 10**9}, "bytes are reduced"),
        ({"products": Counter({"f32": 6})}, "6 products; 5 without gradients of frozen layers"),
    ],
)
def test_find_problems_names_what_is_wrong(prepared, changes, problem):
    programs = PhasePrograms(prepared, prepared.mesh, prepared.phases[0])
    problems = checks.find_problems(programs, program(**changes))
    assert len(problems) == (problem is not None)
    assert problem is None or re.search(problem, problems[0])


def test_find_problems_frozen_parameters_are_rounded_once(prepared):
    setup = replace(prepared, config=prepared.config.copy_and_resolve_references())
    rounded = program(rounded=frozenset({"3,3,3,64", "8,3"}))
    assert (
        checks.find_problems(PhasePrograms(setup, setup.mesh, setup.phases[0]), rounded) == []
    )  # by the product itself
    setup.config.dtype = "bfloat16"
    (problem,) = checks.find_problems(PhasePrograms(setup, setup.mesh, setup.phases[0]), rounded)
    assert "frozen parameters [3,3,3,64] are converted" in problem


def test_find_problems_array_of_data_set_size_is_a_copy(prepared):
    programs = PhasePrograms(prepared, prepared.mesh, prepared.phases[0])
    size = programs.data("train", programs.start_layer).inputs.size
    (problem,) = checks.find_problems(programs, program(sizes=frozenset({size})))
    assert "data set" in problem


@pytest.mark.exhaustive("aot")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler is in libtpu: extra aot")
def test_tpu_programs_pass_every_check(tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, TOOL, "v5e:2x2", "--config=flowers_vgg16:smoke", "--dtypes=bfloat16", f"--json={rows}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=3600)
    failed = {row["program"]: row["failed"] for row in map(json.loads, rows.read_text("utf-8").splitlines())}
    assert [problem for problems in failed.values() for problem in problems] == []
    # Three programs of each phase, and one for the features of each of two layers.
    assert (len(failed), done.returncode) == (11, 0), done.stderr[-1000:]
