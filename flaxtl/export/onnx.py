"""A network as ONNX: its jaxpr, equation by equation, the layer's name on every node.

jax2onnx, the converter there is, asks for an orbax older than ours and for much that flaxtl has no use for; a network
needs some twenty primitives. What depends on parameters alone, such as a batch norm's factor, is computed here.
Imported where ONNX is wanted, and no sooner: without the package onnx it raises a UserError.
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

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
from flaxtl.export.formats import BATCH, image_spec, probability_fn
from flaxtl.fileio import atomic_write
from flaxtl.models.classifier import Classifier, Params

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise UserError("writing ONNX needs the packages onnx and onnxruntime; pip install 'flaxtl[onnx]'") from error

OPSET, IR_VERSION = 18, 8
"""The first operator set that gives all reductions their axes as an input, and the file format that goes with it."""

Constant = npt.NDArray[Any]
"""An array of which a dimension that is the batch's, or that is broadcast, may be a view of one element."""

Value = Constant | str
"""Of a jaxpr's variable: known now, or the name of a node's output."""


def write_onnx(file: Path, model: Classifier, parameters: Params, resize: Resize, card: str) -> None:
    """Write the network with its parameters to `file`, with `card` as the metadata 'flaxtl'.

    Input 'images', uint8 [batch, height, width, 3]; output 'probabilities', float32 [batch, classes]. The model must
    compute in float32. Raises UserError for a network with a primitive that is not among OPERATIONS.
    """
    held = jax.tree.map(np.asarray, parameters)
    closed = jax.make_jaxpr(lambda images: probability_fn(model, held, images))(image_spec(resize))
    graph = _Graph()
    (found,) = _run(graph, closed.jaxpr, closed.consts, ["images"])
    graph.nodes.append(helper.make_node("Identity", [graph.name(found)], ["probabilities"]))
    kinds = {np.dtype(np.uint8): onnx.TensorProto.UINT8, np.dtype(np.float32): onnx.TensorProto.FLOAT}
    ends = [
        helper.make_tensor_value_info(name, kinds[aval.dtype], [BATCH, *map(int, aval.shape[1:])])
        for name, aval in (("images", closed.in_avals[0]), ("probabilities", closed.out_avals[0]))
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, model.spec.name, ends[:1], ends[1:], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="flaxtl",
    )
    helper.set_model_props(made, {"flaxtl": card})
    onnx.checker.check_model(made)
    with atomic_write(file, "wb") as stream:
        stream.write(made.SerializeToString())


class _Graph:
    """The nodes and the initializers of an ONNX graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.place = ""  # in the network, of the nodes that are added next

    def name(self, value: Value) -> str:
        """What a node calls `value` by."""
        if isinstance(value, str):
            return value
        name = f"{self.place}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"{self.place}/{kind}_{len(self.nodes)}"
        names = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def transposed(self, value: Value, order: Sequence[int]) -> str:
        """`value` with its axes in that order."""
        return self.node("Transpose", value, perm=[int(axis) for axis in order])

    def reshaped(self, value: Value, shape: Sequence[Any]) -> str:
        """`value` in that shape, of which one dimension may be the batch's."""
        return self.node("Reshape", value, _integers(*(size if _known(size) else -1 for size in shape)))


def _known(size: Any) -> bool:
    """Whether a dimension is a number, and not the batch's."""
    return isinstance(size, int | np.integer)


def _integers(*values: Any) -> Constant:
    return np.array(values, np.int64)


# ---------------------------------------------------------------------- the walk


def _run(graph: _Graph, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Add a jaxpr's equations to the graph; returns its outputs."""
    values: dict[Var, Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def of(atom: Var | Literal) -> Value:
        return np.asarray(atom.val, _array(atom).dtype) if isinstance(atom, Literal) else values[atom]

    outer = graph.place
    for equation in jaxpr.eqns:
        graph.place = str(equation.source_info.name_stack).rpartition("/")[2] or outer
        outputs = _outputs(graph, equation, [of(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, outputs, strict=True))
    graph.place = outer
    return [of(atom) for atom in jaxpr.outvars]


def _array(atom: Var | Literal) -> jax.core.ShapedArray:
    """Shape and dtype."""
    return cast(jax.core.ShapedArray, atom.aval)


def _outputs(graph: _Graph, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
    name, inner = equation.primitive.name, equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if name == "platform_index":
        return [np.array(equation.params["platforms"].index(None))]  # what is written for no platform in particular
    if name == "cond" and not isinstance(inputs[0], str):
        choice, *inputs = inputs
        inner = equation.params["branches"][int(choice)]
    if inner is not None:
        return _run(graph, inner.jaxpr, inner.consts, inputs)
    known = [value for value in inputs if not isinstance(value, str)]
    if len(known) == len(inputs):
        return [_folded(equation, known)]
    if name not in OPERATIONS:
        raise _inexpressible(equation)
    return [OPERATIONS[name](graph, equation, *inputs)]


def _inexpressible(equation: JaxprEqn) -> UserError:
    layer = str(equation.source_info.name_stack).rpartition("/")[2]
    return UserError(
        f"the layer {layer!r} computes a {equation.primitive.name} that ONNX is not written for; "
        "give --format=stablehlo, which holds any network"
    )


def _folded(equation: JaxprEqn, inputs: list[Constant]) -> Constant:
    """The output of an equation that depends on no image, where the batch counts with a batch of one."""
    params = {key: _of_one(value) for key, value in equation.params.items()}
    if equation.primitive.name == "broadcast_in_dim":
        aligned = _aligned(inputs[0].shape, params["broadcast_dimensions"], len(params["shape"]))
        return np.broadcast_to(inputs[0].reshape(aligned), params["shape"])
    return np.asarray(equation.primitive.bind(*map(jnp.asarray, inputs), **params))


def _of_one(value: Any) -> Any:
    """A parameter of an equation with 1 in place of the batch's size."""
    if type(value) is tuple:
        return tuple(map(_of_one, value))
    return 1 if jax.export.is_symbolic_dim(value) else value


def _aligned(shape: Sequence[Any], dimensions: Sequence[int], rank: int) -> list[Any]:
    """`shape` with its sizes at those dimensions of `rank`, and ones elsewhere."""
    aligned: list[Any] = [1] * rank
    for dimension, size in zip(dimensions, shape, strict=True):
        aligned[dimension] = size
    return aligned


# ---------------------------------------------------------------------- primitives

Operation = Callable[..., Value]
"""(graph, equation, *inputs) -> its output, where one input at least is a name."""


def _same(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return x


def _elementwise(kind: str) -> Operation:
    def add(graph: _Graph, equation: JaxprEqn, *inputs: Value) -> Value:
        return graph.node(kind, *map(_shrunk, inputs))

    return add


def _shrunk(value: Value) -> Value:
    """A constant without what it repeats: ONNX broadcasts by itself."""
    if isinstance(value, str):
        return value
    return value[tuple(slice(None) if stride else slice(1) for stride in value.strides)]


def _max(graph: _Graph, equation: JaxprEqn, *inputs: Value) -> Value:
    first, second = map(_shrunk, inputs)
    if isinstance(first, str) and not isinstance(second, str) and not second.any():
        return graph.node("Relu", first)
    return graph.node("Max", first, second)


def _square(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.node("Mul", x, x)


def _cast(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"])))


def _broadcast(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    shape = equation.params["shape"]
    aligned = _aligned(_array(equation.invars[0]).shape, equation.params["broadcast_dimensions"], len(shape))
    wide = graph.reshaped(x, aligned)
    if list(shape) == aligned:
        return wide
    return graph.node("Expand", wide, _integers(*(size if _known(size) else 1 for size in shape)))


def _reshape(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    return graph.reshaped(x, equation.params["new_sizes"])


def _concatenate(graph: _Graph, equation: JaxprEqn, *inputs: Value) -> Value:
    return graph.node("Concat", *inputs, axis=equation.params["dimension"])


def _pad(graph: _Graph, equation: JaxprEqn, x: Value, value: Value) -> Value:
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner):
        raise _inexpressible(equation)
    return graph.node("Pad", x, _integers(*low, *high), value)


def _gather(graph: _Graph, equation: JaxprEqn, x: Value, starts: Value) -> Value:
    """One of its many uses: a slice, at a place that is known."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes = numbers.start_index_map
    if isinstance(starts, str) or starts.ndim != 1 or numbers.collapsed_slice_dims:
        raise _inexpressible(equation)
    ends = [start + sizes[axis] for start, axis in zip(starts, axes, strict=True)]
    return graph.node("Slice", x, _integers(*starts), _integers(*ends), _integers(*axes))


def _reverse(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    axes = equation.params["dimensions"]
    ends = np.full(len(axes), np.iinfo(np.int64).min)  # beyond the first element, which is taken too
    return graph.node("Slice", x, _integers(*[-1] * len(axes)), ends, _integers(*axes), _integers(*[-1] * len(axes)))


def _convolution(graph: _Graph, equation: JaxprEqn, x: Value, kernel: Value) -> Value:
    params = equation.params
    order = params["dimension_numbers"]
    if isinstance(kernel, str) or params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise _inexpressible(equation)
    found = graph.node(
        "Conv",
        graph.transposed(x, order.lhs_spec),
        kernel.transpose(order.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        pads=_borders(params["padding"]),
        group=params["feature_group_count"],
    )
    return graph.transposed(found, sorted(range(4), key=order.out_spec.__getitem__))


def _borders(padding: Sequence[tuple[int, int]]) -> list[int]:
    """((top, bottom), (left, right)) -> top, left, bottom, right."""
    return [int(size) for ends in zip(*padding, strict=True) for size in ends]


def _pool(kind: str, **attributes: Any) -> Operation:
    def add(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
        params = equation.params
        window = params["window_dimensions"]
        if len(window) != 4 or (window[0], window[3]) != (1, 1) or set(params["window_dilation"]) != {1}:
            raise _inexpressible(equation)
        found = graph.node(
            kind,
            graph.transposed(x, (0, 3, 1, 2)),
            kernel_shape=window[1:3],
            strides=params["window_strides"][1:3],
            pads=_borders(params["padding"][1:3]),
            **attributes,
        )
        return graph.transposed(found, (0, 2, 3, 1))

    return add


def _sum_pool(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
    mean = _pool("AveragePool", count_include_pad=1)(graph, equation, x)
    return graph.node("Mul", mean, np.array(math.prod(equation.params["window_dimensions"]), np.float32))


def _reduced(kind: str) -> Operation:
    def add(graph: _Graph, equation: JaxprEqn, x: Value) -> Value:
        return graph.node(kind, x, _integers(*equation.params["axes"]), keepdims=0)

    return add


def _dot(graph: _Graph, equation: JaxprEqn, x: Value, matrix: Value) -> Value:
    if equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
        raise _inexpressible(equation)
    return graph.node("MatMul", x, matrix)


OPERATIONS: dict[str, Operation] = {
    "add": _elementwise("Add"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "copy": _same,
    "div": _elementwise("Div"),
    "dot_general": _dot,
    "exp": _elementwise("Exp"),
    "gather": _gather,
    "logistic": _elementwise("Sigmoid"),
    "max": _max,
    "min": _elementwise("Min"),
    "mul": _elementwise("Mul"),
    "pad": _pad,
    "pow": _elementwise("Pow"),
    "reduce_max": _reduced("ReduceMax"),
    "reduce_sum": _reduced("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _sum_pool,
    "reshape": _reshape,
    "rev": _reverse,
    "square": _square,
    "stop_gradient": _same,
    "sub": _elementwise("Sub"),
}
"""Primitive -> what adds it to a graph: all that the networks of the catalog need."""
