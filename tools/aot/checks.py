"""What must hold of a compiled program of a phase."""

import math
from typing import Any

import jax
from aot.hlo import Program
from aot.programs import PhasePrograms, tree_bytes

from flaxtl.parallel import devices

MAX_ALL_REDUCES = 3
"""All-reduces of a train step: gradients, metrics and, in bfloat16, the float32 gradients of the last layer."""

MAX_DATA_COLLECTIVES = 1
"""One more, or a reduce-scatter, if the data set is split over devices: the rows of a batch, from where they are."""

MAX_BATCH_NORM_ALL_REDUCES = 4
"""Of each batch norm that trains: mean and variance of the whole batch, and the two sums of their backward pass."""

MAX_FLOAT32_PRODUCTS = {"train": 2, "evaluate": 1}
"""Under bfloat16: the last layer, and the gradient of its kernel."""

METRIC_BYTES = 4096
"""More than what the loss and the counts by class take."""


def find_problems(programs: PhasePrograms, program: Program) -> list[str]:
    """Return what is wrong with the train steps of a phase."""
    problems, state = [], programs.state()
    if program.aliases < (num_leaves := len(jax.tree.leaves(state))):
        problems.append(f"{program.aliases} of {num_leaves} arrays of the state are donated")
    is_split = programs.mesh.size > 1
    if others := set(program.collectives) - {"all-reduce", *(["reduce-scatter"] if is_split else [])}:
        problems.append(f"{', '.join(sorted(others))} in a train step")
    num_batch_norms = sum(path.endswith("/mean") for path in state.batch_stats)
    allowed = MAX_ALL_REDUCES + is_split * MAX_DATA_COLLECTIVES + num_batch_norms * MAX_BATCH_NORM_ALL_REDUCES
    if (count := program.collectives.total()) > allowed:
        problems.append(f"{count} collectives; at most {allowed}")
    inputs = programs.data("train", programs.start_layer).inputs
    batch_bytes = is_split * programs.setup.config.batch_size * row_bytes(inputs)
    trained_bytes = tree_bytes(state.params) + MAX_BATCH_NORM_ALL_REDUCES // 2 * tree_bytes(state.batch_stats)
    if program.collective_bytes > trained_bytes + batch_bytes + METRIC_BYTES:
        problems.append(f"{program.collective_bytes} bytes are reduced, more than what trains and a batch")
    if (count := program.products.total()) > (allowed := programs.count_products()):
        problems.append(f"{count} products; {allowed} without gradients of frozen layers")
    trained = {shape_text(leaf) for leaf in state.params.values()}
    frozen = {shape_text(leaf) for leaf in programs.frozen().values() if len(leaf.shape) > 1} - trained
    # In float32, a TPU's products round their operands themselves; see the setting `precision`.
    if programs.setup.config.dtype == "bfloat16" and (converted := frozen & program.rounded):
        problems.append(f"frozen parameters [{'], ['.join(sorted(converted))}] are converted in each step")
    return problems + _common_problems(programs, program, inputs, MAX_FLOAT32_PRODUCTS["train"])


def find_eval_problems(programs: PhasePrograms, program: Program) -> list[str]:
    """Return what is wrong with the evaluation of a phase."""
    inputs = programs.data("validation", programs.phase.cut_layer).inputs
    return _common_problems(programs, program, inputs, MAX_FLOAT32_PRODUCTS["evaluate"])


def find_feature_problems(programs: PhasePrograms, program: Program) -> list[str]:
    """Return what is wrong with the computation of features."""
    return _common_problems(programs, program, None, 0)


def _common_problems(programs: PhasePrograms, program: Program, inputs: Any, max_float32: int) -> list[str]:
    problems = []
    if inputs is not None and inputs.size // programs.mesh.size in program.sizes:
        problems.append("an array of the size of the data set is written")
    # On a GPU, matrix products return float32 for inputs of any dtype.
    is_tpu = devices.platform_of(programs.mesh) == "tpu"
    if is_tpu and programs.setup.config.dtype == "bfloat16" and program.products["f32"] > max_float32:
        problems.append(f"{program.products['f32']} float32 products; only the last layer's may be")
    return problems


def shape_text(array: Any) -> str:
    """Return a shape as HLO writes it: '3,3,64,64'."""
    return ",".join(map(str, array.shape))


def row_bytes(inputs: Any) -> int:
    """Return the bytes that are reduced of each row of a split data set; 16-bit numbers are reduced as 32-bit ones."""
    itemsize = 4 if inputs.dtype.itemsize == 2 else inputs.dtype.itemsize
    return math.prod(inputs.shape[1:]) * itemsize
