"""The network as onnx_mt3 writes it, run by ONNX Runtime: a third writing beside the twins.

The graphs are built from the checkpoint's arrays. The teacher-forced one has the modules' outputs under the twins'
names; the other is what `mt3` runs, with the greedy search inside.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime

from mt3_common.config import Config
from onnx_mt3 import decode, graph


class OnnxGraphs:
    """The graphs of one checkpoint.

    Args:
        arrays: the checkpoint's, under MT3's names.
        config: of the same checkpoint.
    """

    framework = "onnx"

    def __init__(self, arrays: dict[str, np.ndarray], config: Config):
        self.config = config
        self._arrays = arrays
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}

    def outputs(self, inputs: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
        """Return the outputs of all modules by the twins' names, and 'logits'.

        Args:
            inputs: frames (b, f, input_depth), decoder_input_tokens and decoder_target_tokens (b, l).
            precision: 'float64' or 'float32'.
        """
        session = self._session(precision)
        names = [output.name for output in session.get_outputs()]
        arrays = map(np.asarray, session.run(names, _feed(inputs, precision)))
        return dict(zip(names, arrays, strict=True))

    def logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits (b, l, vocab_size)."""
        return np.asarray(self._session(precision).run(["logits"], _feed(inputs, precision))[0])

    def generate(self, segments: list[np.ndarray], max_steps: int | None = None) -> list[np.ndarray]:
        """Return the greedy token ids of segments, by the graph that `mt3` runs, in float32."""
        model, weights = graph.search_parts(self._arrays, self.config)
        session = decode.session(model.SerializeToString(), weights=weights)
        return list(decode.generator(session, self.config, max_steps=max_steps)(segments))

    def _session(self, precision: str) -> onnxruntime.InferenceSession:
        if precision not in self._sessions:
            model = graph.teacher_graph(self._arrays, self.config, stored=precision, computed=precision)
            self._sessions[precision] = decode.session(model.SerializeToString(), computed=precision)
        return self._sessions[precision]


def _feed(inputs: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    tokens = {name: array.astype(np.int64) for name, array in inputs.items() if name != "frames"}
    return {"frames": inputs["frames"].astype(precision), **tokens}
