"""ONNX graphs: float32 by ONNX Runtime, float64 by ONNX's reference evaluator on a graph of doubles."""

import copy
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from parity.networks.names import plain
from parity.networks.network import Kind, NetworkError, Weight, is_constant, kernel_first, running, standard_leaf
from parity.networks.recording import Event, Run
from parity.trace.precision import product_bits, product_test

_LINEAR = ("Gemm", "MatMul")


class OnnxNetwork:
    """An ONNX graph; its taps are its nodes, and the folders that exporters write before the nodes' names.

    Args:
        graph: a file, its bytes, a model, or a session of ONNX Runtime that was made from a file.
    """

    framework = "onnx"

    def __init__(self, graph: Any):
        if isinstance(graph, onnxruntime.InferenceSession):
            graph = getattr(graph, "_model_path", None) or getattr(graph, "_model_bytes", b"")
        try:
            if isinstance(graph, onnx.ModelProto):
                self.model = graph
            elif isinstance(graph, bytes):
                self.model = onnx.load_model_from_string(graph)
            else:
                self.model = onnx.load_model(os.fspath(graph))
        except Exception as error:
            raise NetworkError(f"{str(graph)[:80]}: no readable ONNX graph ({error})") from error
        self.title = self.model.graph.name or "ONNX graph"

    def _uses(self) -> dict[str, tuple[Any, int]]:
        """Return the first node that reads each initializer, and as which argument."""
        uses: dict[str, tuple[Any, int]] = {}
        for node in self.model.graph.node:
            for number, name in enumerate(node.input):
                uses.setdefault(name, (node, number))
        return uses

    def weights(self) -> list[Weight]:
        """Return the initializers that nodes read, in Flax's layout."""
        uses, result = self._uses(), []
        for initializer in self.model.graph.initializer:
            array = numpy_helper.to_array(initializer)
            if array.dtype.kind != "f" or initializer.name not in uses:
                continue
            node, number = uses[initializer.name]
            owner, _, last = initializer.name.rpartition(".")
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            known, sort = array.ndim < 2, "other"
            if node.op_type in _LINEAR and number == 1 and array.ndim == 2:
                array, known, sort = (np.ascontiguousarray(array.T) if transposed else array), True, "linear"
            elif node.op_type.startswith("Conv") and number == 1:
                array, known = kernel_first(array, transposed=node.op_type == "ConvTranspose"), True
            elif node.op_type == "Gather" and number == 0:
                known, sort = True, "embedding"
            elif node.op_type.endswith("Normalization") and number == 1:
                sort = "norm"
            if not owner and last.startswith("onnx::"):
                owner, last = plain(os.path.dirname(node.name)) or node.name, "kernel" if number == 1 else "bias"
            last = standard_leaf(last, sort)
            learned = array.size > 1
            name = plain(f"{owner}.{last}")
            result.append(Weight(name, array, last, initializer.name, known, learned))
        return result

    def kinds(self) -> dict[str, Kind]:
        """Return the nodes' operations."""
        return {
            _tap_name(node): Kind("linear" if node.op_type in _LINEAR else "other", node.op_type)
            for node in self.model.graph.node
        }

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "network": self.title}

    def product_bits(self, precision: str) -> int:
        """Return the bits that a product keeps of its inputs, as trace/precision.py measures them."""
        left, right = (matrix.astype(precision) for matrix in product_test())
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(precision))
        values = [helper.make_tensor_value_info(name, kind, (64, 64)) for name in "abc"]
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if precision == "float64":
            return product_bits(np.asarray(next(iter(ReferenceEvaluator(model).run(None, {"a": left, "b": right})))))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return product_bits(np.asarray(session.run(None, {"a": left, "b": right})[0]))

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the graph in a precision; its nodes cannot be fed.

        Raises:
            NetworkError: it does not run, or the precision is neither float32 nor float64.
        """
        if precision not in ("float64", "float32"):
            raise NetworkError(f"{self.title} (ONNX): {precision} is not computed; float64 and float32 are")
        model = copy.deepcopy(self.model) if precision == "float32" else doubled(self.model)
        given = [value.name for value in model.graph.input]
        arrays = {name: value for name, value in inputs.items() if not is_constant(value)}
        if set(given) != set(arrays):
            arrays = dict(zip(given, arrays.values()))
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        feeds = {name: np.asarray(v).astype(helper.tensor_dtype_to_np_dtype(types[name])) for name, v in arrays.items()}
        nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        known = {output.name for output in model.graph.output}
        names = [output.name for output in model.graph.output]
        extra = [name for node in nodes for name in node.output if name and name not in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        with running(f"{self.title} (ONNX)", precision):
            if precision == "float64":
                values = ReferenceEvaluator(model).run(None, feeds)
            else:
                session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
                values = session.run(None, feeds)
        computed = dict(zip([*names, *extra], (np.asarray(value) for value in values)))
        constants = {i.name: numpy_helper.to_array(i) for i in self.model.graph.initializer}
        events = _events(nodes, computed | feeds, constants)
        # the numbers in a graph (an epsilon, a scale) were rounded to float32 when it was written
        shorter = {"float32": ["the graph's constants"]} if precision == "float64" else {}
        return Run(precision, [computed[name] for name in names], events, shorter=shorter)


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph in which every float32 is a float64: weights, constants, casts, inputs and outputs."""
    model = copy.deepcopy(model)
    short, long = TensorProto.FLOAT, TensorProto.DOUBLE

    def convert(tensor: TensorProto) -> None:
        if tensor.data_type == short:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))

    for initializer in model.graph.initializer:
        convert(initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                convert(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == short:
                attribute.i = long
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == short:
            value.type.tensor_type.elem_type = long
    del model.graph.value_info[:]
    return model


def _tap_name(node: Any) -> str:
    return plain(node.name or node.output[0])


def _events(nodes: list[Any], values: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> list[Event]:
    """Return a node's inputs and outputs as events, and those of the folders that nodes' names lie in."""
    names = [_tap_name(node) for node in nodes]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, name in enumerate(names):
        for folder in _folders(name):
            first.setdefault(folder, number)
            last[folder] = number
    events: list[Event] = []
    for number, node in enumerate(nodes):
        entering = [values[name] for name in node.input if name in values and name not in constants]
        leaving = [values[name] for name in node.output if name in values]
        opened = [folder for folder in _folders(names[number]) if first[folder] == number]
        closed = [folder for folder in _folders(names[number]) if last[folder] == number]
        events += [Event(folder, "in", entering) for folder in opened]
        events += [Event(names[number], "in", entering), Event(names[number], "out", leaving)]
        events += [Event(folder, "out", leaving) for folder in reversed(closed)]
    return events


def _folders(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]
