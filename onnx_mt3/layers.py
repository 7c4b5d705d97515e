"""Layers that both families of networks have, as nodes of an ONNX graph."""

import numpy as np

from onnx_mt3.builder import GraphBuilder


class LayerBuilder(GraphBuilder):
    """Norms and activations as nodes, and the taps of modules."""

    def tap(self, path: str, value: str, axes: int = 3) -> str:
        """Remember a module's output, which has so many axes, under its path, and return it."""
        if self.taps is not None:
            self.taps[path] = value, axes
        return value

    def rms_norm(self, x: str, scale: str, epsilon: float) -> str:
        """Return x / sqrt(mean(x^2) + epsilon) * scale, over the last axis."""
        mean = self.op("ReduceMean", self.op("Pow", x, self.real(2.0)), self.ints([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.real(epsilon)))
        return self.op("Mul", self.op("Div", x, root), scale)

    def gelu(self, x: str) -> str:
        """Return GELU's tanh approximation."""
        if self.computed == "float32":
            return self.op("Gelu", x, approximate="tanh")
        # ONNX Runtime has the operator in float32 only
        cube = self.op("Mul", self.op("Mul", x, self.op("Mul", x, x)), self.real(0.044715))
        tanh = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), self.real(float(np.sqrt(2.0 / np.pi)))))
        return self.op("Mul", self.op("Mul", x, self.real(0.5)), self.op("Add", tanh, self.real(1.0)))
