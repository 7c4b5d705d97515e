"""Nodes, constants and weights of an ONNX graph that grows."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
# files of this version are read by every runtime that knows the opset
IR_VERSION = 10
STORED = ("bfloat16", "float16", "float32", "float64")
COMPUTED = ("float32", "float64")

TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


class GraphBuilder:
    """A graph that grows: nodes, constants and weights.

    Args:
        arrays: the checkpoint's, by name.
        stored: dtype of the weights in the file, one of STORED.
        computed: dtype of the arithmetic, one of COMPUTED.

    Attributes:
        taps: module path -> name of its output and its number of axes, filled by the full pass; None for a graph
            without taps.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], stored: str, computed: str):
        if stored not in STORED:
            raise ValueError(f"stored must be one of {', '.join(STORED)}, not {stored!r}")
        if computed not in COMPUTED:
            raise ValueError(f"computed must be one of {', '.join(COMPUTED)}, not {computed!r}")
        self.arrays = arrays
        self.stored, self.computed = stored, computed
        self.taps: dict[str, tuple[str, int]] | None = None
        self._nodes: list[onnx.NodeProto] = []
        self._outer: list[list[onnx.NodeProto]] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._weights: dict[str, np.ndarray] = {}
        self._casts: dict[str, str] = {}
        self._cast_nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def name(self, kind: str) -> str:
        """Return a name that no other value has."""
        self._count += 1
        return f"{kind}_{self._count}"

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        """Add a node with one output and return the output's name."""
        output = self.name(kind)
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def outputs(self, kind: str, count: int, *inputs: str, **attributes) -> list[str]:
        """Add a node with `count` outputs and return their names."""
        outputs = [self.name(kind) for _ in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def split(self, x: str, sizes: str, count: int, axis: int) -> list[str]:
        """Add a Split node and return the names of its outputs, of which there are `count`."""
        return self.outputs("Split", count, x, sizes, axis=axis)

    def ints(self, values: Sequence[int]) -> str:
        """Return the name of a constant (n,) int64."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: int) -> str:
        """Return the name of a constant () int64."""
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def real(self, value: float) -> str:
        """Return the name of a constant () in the computed dtype."""
        return self.constant(f"real_{value!r}", np.array(value, DTYPES[self.computed]))

    def boolean(self, value: bool) -> str:
        """Return the name of a constant () bool."""
        return self.constant(f"bool_{value}", np.array(value))

    def constant(self, name: str, array: np.ndarray) -> str:
        """Return the name of a constant, which is stored as it is; of several with one name, the first."""
        self._initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, array: np.ndarray | None = None) -> str:
        """Return the name of a weight in the computed dtype; it is stored in the stored dtype and cast once.

        Args:
            name: of an array of the checkpoint, or of the array that is given.
        """
        if name not in self._casts:
            array = self.arrays[name] if array is None else array
            self._weights[name] = np.asarray(array).astype(DTYPES[self.stored], order="C", copy=False)
            self._casts[name] = name
            if self.stored != self.computed:
                self._casts[name] = name + ":computed"
                self._cast_nodes.append(helper.make_node("Cast", [name], [self._casts[name]], to=TYPES[self.computed]))
        return self._casts[name]

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Add an input of the model and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, kind: int, shape: Sequence[int | str | None]) -> None:
        """Make a value an output of the model under a name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    @contextlib.contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes that are added as those of a loop's body."""
        self._outer.append(self._nodes)
        self._nodes = nodes = []
        yield nodes
        self._nodes = self._outer.pop()

    def loop(self, body: onnx.GraphProto, trips: str, start: Sequence[str]) -> list[str]:
        """Add a Loop node and return the names of the carried values after it."""
        outputs = [self.name("Loop") for _ in start]
        self._nodes.append(helper.make_node("Loop", [trips, self.boolean(True), *start], outputs, body=body))
        return outputs

    def if_else(
        self, condition: str, first: Callable[[], list[str]], second: Callable[[], list[str]], kind: int, axes: int
    ) -> list[str]:
        """Add an If node and return the names of its outputs.

        Args:
            condition: () bool.
            first, second: add the nodes of a branch, which may read what is outside, and return its outputs' names; as
                many of both branches.
            kind, axes: the outputs' type and number of axes.
        """
        branches = {}
        for name, branch in (("then_branch", first), ("else_branch", second)):
            with self.inside() as nodes:
                results = branch()
            infos = [helper.make_tensor_value_info(result, kind, [None] * axes) for result in results]
            branches[name] = helper.make_graph(nodes, name, [], infos)
        outputs = [self.name("If") for _ in branches["then_branch"].output]
        self._nodes.append(helper.make_node("If", [condition], outputs, **branches))
        return outputs

    def scan(self, body: onnx.GraphProto, x: str, count: int) -> list[str]:
        """Add a Scan node over the first axis of x and return the names of its outputs, of which there are `count`."""
        outputs = [self.name("Scan") for _ in range(count)]
        self._nodes.append(helper.make_node("Scan", [x], outputs, body=body, num_scan_inputs=1))
        return outputs

    def model(self, name: str) -> onnx.ModelProto:
        """Return all of it as a model."""
        kind = TYPES[self.stored]
        weights = [
            helper.make_tensor(path, kind, array.shape, array.tobytes(), raw=True)
            for path, array in self._weights.items()
        ]
        return self._model(name, weights)

    def parts(self, name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """Return a model that names its weights, and the weights by name, without a copy: see decode.session."""
        return self._model(name, [_named(path, array, TYPES[self.stored]) for path, array in self._weights.items()]), (
            self._weights
        )

    def _model(self, name: str, weights: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
        nodes, initializers = [*self._cast_nodes, *self._nodes], [*self._initializers.values(), *weights]
        graph = helper.make_graph(nodes, name, self._inputs, self._outputs, initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="mt3-twins"
        )


def _named(name: str, array: np.ndarray, kind: int) -> onnx.TensorProto:
    """Return a tensor without its content, which lies elsewhere."""
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="memory")
    return tensor


def loop_body(nodes, name, number, carried, outputs, kinds, shapes) -> onnx.GraphProto:
    """Return a Loop's body; outputs begin with the condition to go on."""
    condition = f"{name}_going_in"
    inputs = [
        helper.make_tensor_value_info(number, TensorProto.INT64, []),
        helper.make_tensor_value_info(condition, TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(*triple) for triple in zip(carried, kinds, shapes, strict=True)),
    ]
    results = [
        helper.make_tensor_value_info(outputs[0], TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(*triple) for triple in zip(outputs[1:], kinds, shapes, strict=True)),
    ]
    return helper.make_graph(nodes, name, inputs, results)
