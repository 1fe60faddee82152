"""ONNX export: translate the jaxpr of a model equation by equation, with the layer's name on every node.

The available converter, jax2onnx, requires an older orbax and many packages that flaxtl does not need; a model uses
about twenty primitives. Values that depend on parameters only, such as the factor of a batch norm, are computed here.
Imported only when ONNX is requested; raises UserError if the package onnx is not installed.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from flaxtl.errors import UserError, missing_package
from flaxtl.evaluation.predictor import Predictor
from flaxtl.export.formats import BATCH_DIM, image_spec, probabilities
from flaxtl.fileio import atomic_write

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise missing_package("ONNX export", "onnx and onnxruntime", "onnx") from error

OPSET, IR_VERSION = 18, 8
"""The first operator set in which the axes of all reductions are an input, and its version of the file format."""

Constant = npt.NDArray[Any]
"""A known array. Along a broadcast dimension, or that of the batch, it may be a view of one element."""

Value = Constant | str
"""The value of a jaxpr variable: a known array, or the name of a node's output."""


def write_onnx(file: Path, predictor: Predictor, metadata: str) -> None:
    """Write a model with its parameters, and `metadata` as the metadata entry 'flaxtl'.

    Input 'images', uint8 [batch, height, width, 3]; output 'probabilities', float32 [batch, classes]. The model must
    compute in float32. Raises UserError if the model uses a primitive that is not in OPERATIONS.
    """
    params = jax.tree.map(np.asarray, predictor.params)
    trace = jax.make_jaxpr(lambda images: probabilities(predictor.model, params, images))
    program = trace(image_spec(predictor.resize))
    graph = _Graph()
    (output,) = _translate(graph, program.jaxpr, program.consts, ["images"])
    graph.nodes.append(helper.make_node("Identity", [graph.name_of(output)], ["probabilities"]))
    dtypes = {np.dtype(np.uint8): onnx.TensorProto.UINT8, np.dtype(np.float32): onnx.TensorProto.FLOAT}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, dtypes[aval.dtype], [BATCH_DIM, *map(int, aval.shape[1:])])]
        for name, aval in (("images", program.in_avals[0]), ("probabilities", program.out_avals[0]))
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, predictor.model.spec.name, inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="flaxtl",
    )
    helper.set_model_props(model, {"flaxtl": metadata})
    onnx.checker.check_model(model)
    with atomic_write(file, "wb") as stream:
        stream.write(model.SerializeToString())


class _Graph:
    """Nodes and initializers of an ONNX graph that is being built."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.layer = ""  # name of the layer of the next nodes

    def name_of(self, value: Value) -> str:
        """Return the name of a value; a constant becomes an initializer."""
        if isinstance(value, str):
            return value
        name = f"{self.layer}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add_node(self, op_type: str, *inputs: Value, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = f"{self.layer}/{op_type}_{len(self.nodes)}"
        names = [self.name_of(value) for value in inputs]
        self.nodes.append(helper.make_node(op_type, names, [name], name=name, **attributes))
        return name

    def transpose(self, value: Value, order: Sequence[int]) -> str:
        """Add a node that reorders axes."""
        return self.add_node("Transpose", value, perm=[int(axis) for axis in order])

    def reshape(self, value: Value, shape: Sequence[Any]) -> str:
        """Add a node that reshapes; one dimension may be the symbolic batch size."""
        return self.add_node("Reshape", value, _int64(*(size if _is_static(size) else -1 for size in shape)))


def _is_static(size: Any) -> bool:
    """Return whether a dimension is a number, not the symbolic batch size."""
    return isinstance(size, int | np.integer)


def _int64(*values: Any) -> Constant:
    return np.array(values, np.int64)


# ---------------------------------------------------------------------- translation


def _translate(graph: _Graph, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Add the equations of a jaxpr to the graph; return its outputs."""
    values: dict[Var, Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value_of(atom: Var | Literal) -> Value:
        return np.asarray(atom.val, _shaped(atom).dtype) if isinstance(atom, Literal) else values[atom]

    outer_layer = graph.layer
    for equation in jaxpr.eqns:
        graph.layer = _layer_name(equation) or outer_layer
        outputs = _translate_equation(graph, equation, [value_of(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    graph.layer = outer_layer
    return [value_of(atom) for atom in jaxpr.outvars]


def _shaped(atom: Var | Literal) -> jax.core.ShapedArray:
    """Return the shape and dtype."""
    return cast(jax.core.ShapedArray, atom.aval)


def _layer_name(equation: JaxprEqn) -> str:
    return str(equation.source_info.name_stack).rpartition("/")[2]


def _translate_equation(graph: _Graph, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
    name, inner = equation.primitive.name, equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if name == "platform_index":
        return [np.array(equation.params["platforms"].index(None))]  # the branch that is not platform specific
    if name == "cond" and not isinstance(inputs[0], str):
        choice, *inputs = inputs
        inner = equation.params["branches"][int(choice)]
    if inner is not None:
        return _translate(graph, inner.jaxpr, inner.consts, inputs)
    constants = [value for value in inputs if not isinstance(value, str)]
    if len(constants) == len(inputs):
        return [_fold_constants(equation, constants)]
    if name not in OPERATIONS:
        raise _unsupported(equation)
    return [OPERATIONS[name](graph, equation, *inputs)]


def _unsupported(equation: JaxprEqn) -> UserError:
    return UserError(
        f"Layer {_layer_name(equation)!r} uses {equation.primitive.name}, which the ONNX export does not support. "
        "Choose --format=stablehlo, which supports every model."
    )


def _fold_constants(equation: JaxprEqn, inputs: list[Constant]) -> Constant:
    """Compute an equation that does not depend on the images, with a batch size of 1."""
    params = {key: _with_batch_of_one(value) for key, value in equation.params.items()}
    if equation.primitive.name == "broadcast_in_dim":
        aligned = _align(inputs[0].shape, params["broadcast_dimensions"], len(params["shape"]))
        return np.broadcast_to(inputs[0].reshape(aligned), params["shape"])
    return np.asarray(equation.primitive.bind(*map(jnp.asarray, inputs), **params))


def _with_batch_of_one(value: Any) -> Any:
    """Replace the symbolic batch size in a parameter of an equation by 1."""
    if type(value) is tuple:
        return tuple(map(_with_batch_of_one, value))
    return 1 if jax.export.is_symbolic_dim(value) else value


def _align(shape: Sequence[Any], dimensions: Sequence[int], rank: int) -> list[Any]:
    """Return a shape of `rank` dimensions with the sizes of `shape` at `dimensions` and 1 elsewhere."""
    aligned: list[Any] = [1] * rank
    for dimension, size in zip(dimensions, shape, strict=True):
        aligned[dimension] = size
    return aligned


# ---------------------------------------------------------------------- primitives

Operation = Callable[..., Value]
"""(graph, equation, *inputs) -> output; at least one input is the name of a node's output."""


def _identity(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return x


def _elementwise(op_type: str) -> Operation:
    def add(graph: _Graph, equation: JaxprEqn, *inputs: Value) -> Value:
        return graph.add_node(op_type, *map(_without_broadcast, inputs))

    return add


def _without_broadcast(value: Value) -> Value:
    """Undo the broadcast of a constant, because ONNX broadcasts implicitly."""
    if isinstance(value, str):
        return value
    return value[tuple(slice(None) if stride else slice(1) for stride in value.strides)]


def _max(graph: _Graph, equation: JaxprEqn, *inputs: Value) -> Value:
    first, second = map(_without_broadcast, inputs)
    if isinstance(first, str) and not isinstance(second, str) and not second.any():
        return graph.add_node("Relu", first)
    return graph.add_node("Max", first, second)


def _square(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add_node("Mul", x, x)


def _rsqrt(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add_node("Reciprocal", graph.add_node("Sqrt", x))


def _erfc(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add_node("Sub", np.array(1, np.float32), graph.add_node("Erf", x))


def _cast(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add_node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"])))


def _broadcast(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    shape = equation.params["shape"]
    aligned = _align(_shaped(equation.invars[0]).shape, equation.params["broadcast_dimensions"], len(shape))
    reshaped = graph.reshape(x, aligned)
    if list(shape) == aligned:
        return reshaped
    return graph.add_node("Expand", reshaped, _int64(*(size if _is_static(size) else 1 for size in shape)))


def _reshape(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.reshape(x, _shaped(equation.outvars[0]).shape)


def _concatenate(graph: _Graph, equation: JaxprEqn, *inputs: Value) -> Value:
    return graph.add_node("Concat", *inputs, axis=equation.params["dimension"])


def _pad(graph: _Graph, equation: JaxprEqn, x: Value, value: Value) -> Value:
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner):
        raise _unsupported(equation)
    return graph.add_node("Pad", x, _int64(*low, *high), value)


def _gather(graph: _Graph, equation: JaxprEqn, x: Value, starts: Value) -> Value:
    """Support one of its many uses: a slice at a known position."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes = numbers.start_index_map
    if isinstance(starts, str) or starts.ndim != 1 or numbers.collapsed_slice_dims:
        raise _unsupported(equation)
    ends = [start + sizes[axis] for start, axis in zip(starts, axes, strict=True)]
    return graph.add_node("Slice", x, _int64(*starts), _int64(*ends), _int64(*axes))


def _reverse(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    axes = equation.params["dimensions"]
    ends = np.full(len(axes), np.iinfo(np.int64).min)  # before the first element, so that it is included
    return graph.add_node("Slice", x, _int64(*[-1] * len(axes)), ends, _int64(*axes), _int64(*[-1] * len(axes)))


def _convolution(graph: _Graph, equation: JaxprEqn, x: Value, kernel: Value) -> Value:
    params = equation.params
    order = params["dimension_numbers"]
    if isinstance(kernel, str) or params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise _unsupported(equation)
    output = graph.add_node(
        "Conv",
        graph.transpose(x, order.lhs_spec),
        kernel.transpose(order.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        pads=_pads(params["padding"]),
        group=params["feature_group_count"],
    )
    return graph.transpose(output, sorted(range(4), key=order.out_spec.__getitem__))


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """((top, bottom), (left, right)) -> top, left, bottom, right."""
    return [int(size) for ends in zip(*padding, strict=True) for size in ends]


def _pool(op_type: str, **attributes: Any) -> Operation:
    def add(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
        params = equation.params
        window = params["window_dimensions"]
        if len(window) != 4 or (window[0], window[3]) != (1, 1) or set(params["window_dilation"]) != {1}:
            raise _unsupported(equation)
        output = graph.add_node(
            op_type,
            graph.transpose(x, (0, 3, 1, 2)),
            kernel_shape=window[1:3],
            strides=params["window_strides"][1:3],
            pads=_pads(params["padding"][1:3]),
            **attributes,
        )
        return graph.transpose(output, (0, 2, 3, 1))

    return add


def _sum_pool(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    mean = _pool("AveragePool", count_include_pad=1)(graph, equation, x)
    return graph.add_node("Mul", mean, np.array(math.prod(equation.params["window_dimensions"]), np.float32))


def _reduce(op_type: str) -> Operation:
    def add(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
        axes = _int64(*equation.params["axes"])
        return graph.add_node(op_type, x, axes, keepdims=0, noop_with_empty_axes=1)

    return add


def _dot_general(graph: _Graph, equation: JaxprEqn, left: Value, right: Value) -> Value:
    """Multiply matrices, in every dimension of a batch; or vectors along any axis by one known matrix."""
    contracted, batch = equation.params["dimension_numbers"]
    free: list[list[int]] = []
    for side, atom in enumerate(equation.invars):
        free.append([axis for axis in range(_shaped(atom).ndim) if axis not in (*contracted[side], *batch[side])])
    if len(contracted[0]) != 1 or len(free[1]) != 1 or (batch[0] and len(free[0]) != 1):
        raise _unsupported(equation)
    left_order, right_order = (*batch[0], *free[0], *contracted[0]), (*batch[1], *contracted[1], *free[1])
    return graph.add_node("MatMul", _reorder(graph, left, left_order), _reorder(graph, right, right_order))


def _reorder(graph: _Graph, value: Value, order: Sequence[int]) -> Value:
    if list(order) == sorted(order):
        return value
    return graph.transpose(value, order) if isinstance(value, str) else value.transpose(order)


def _transpose(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.transpose(x, equation.params["permutation"])


def _slice(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    """Support slices along axes of a known size; that of the batch is never cut."""
    params, shape = equation.params, _shaped(equation.invars[0]).shape
    axes = [axis for axis, size in enumerate(shape) if _is_static(size)]
    bounds = [_int64(*(params[key][axis] for axis in axes)) for key in ("start_indices", "limit_indices")]
    steps = params["strides"] or [1] * len(shape)
    return graph.add_node("Slice", x, *bounds, _int64(*axes), _int64(*(steps[axis] for axis in axes)))


def _integer_pow(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.add_node("Pow", x, np.array(equation.params["y"], np.float32))


OPERATIONS: dict[str, Operation] = {
    "add": _elementwise("Add"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "copy": _identity,
    "div": _elementwise("Div"),
    "dot_general": _dot_general,
    "erfc": _erfc,
    "exp": _elementwise("Exp"),
    "gather": _gather,
    "integer_pow": _integer_pow,
    "logistic": _elementwise("Sigmoid"),
    "max": _max,
    "min": _elementwise("Min"),
    "mul": _elementwise("Mul"),
    "neg": _elementwise("Neg"),
    "pad": _pad,
    "pow": _elementwise("Pow"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _sum_pool,
    "reshape": _reshape,
    "rev": _reverse,
    "rsqrt": _rsqrt,
    "slice": _slice,
    "square": _square,
    "squeeze": _reshape,
    "stop_gradient": _identity,
    "sub": _elementwise("Sub"),
    "tanh": _elementwise("Tanh"),
    "transpose": _transpose,
}
"""Primitive -> function that adds it to a graph; all primitives that the registered models use."""
