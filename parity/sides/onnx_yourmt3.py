"""A YourMT3+ network as onnx_mt3 writes it, run by ONNX Runtime: a third writing beside the twins."""

from typing import Any

import numpy as np
import onnx
import onnxruntime

from mt3_common.audio.segments import Segment
from mt3_common.transcription.family import YourMT3Family
from mt3_common.yourmt3_config import YourMT3Settings
from onnx_mt3 import decode
from onnx_mt3.yourmt3 import decode as yourmt3_decode
from onnx_mt3.yourmt3 import graph


class YourMT3Graphs:
    """The graphs of one checkpoint.

    Args:
        arrays: the checkpoint's, under their published names.
        settings: of the same checkpoint.
        family: of the same settings.
        with_experts: whether the modules inside experts are among the outputs: of the largest networks they take 3 GB.
    """

    framework = "onnx"

    def __init__(
        self, arrays: dict[str, np.ndarray], settings: YourMT3Settings, family: YourMT3Family, with_experts: bool = True
    ):
        self.config = settings
        self.family = family
        self.with_experts = with_experts
        self._arrays = arrays
        self._prefix = family.task.prefix()

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}

    def outputs(self, inputs: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
        """Return the outputs of all modules by the twins' names, and 'logits', as in training.

        Args:
            inputs: frames (b, t, f) and decoder_input_tokens (b, n) or (b, c, n).
            precision: 'float64' or 'float32'.
        """
        model = graph.teacher_graph(self._arrays, self.config.network, stored=precision, computed=precision)
        if not self.with_experts:
            rest = [output for output in model.graph.output if "/experts_" not in output.name]
            del model.graph.output[:]
            model.graph.output.extend(rest)
        session = decode.session(model.SerializeToString(), computed=precision)
        names = [output.name for output in session.get_outputs()]
        arrays = map(np.asarray, session.run(names, _feed(inputs, precision)))
        return dict(zip(names, arrays, strict=True))

    def search_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits that the search sees behind all tokens of one segment at once."""
        given = self._arrays, self.config.network
        model = graph.logits_graph(*given, stored=precision, computed=precision, prefix=self._prefix)
        session = decode.session(model.SerializeToString(), computed=precision)
        return np.asarray(session.run(["logits"], _feed(inputs, precision))[0])

    def generate(self, segments: list[np.ndarray], max_tokens: int | None = None) -> list[np.ndarray]:
        """Return the greedy ids of segments, (n,) or (channels, n), by the graph that `mt3` runs, in float32."""
        model, weights = graph.search_parts(self._arrays, self.config.network, prefix=self._prefix)
        limit = (self.family.max_tokens if max_tokens is None else max_tokens) - bool(self._prefix)
        session = decode.session(model.SerializeToString(), weights=weights)
        generate = yourmt3_decode.generator(session, limit, batch_size=2)
        return list(generate(Segment(0, 0.0, frames, len(frames)) for frames in segments))


def _feed(inputs: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    tokens = inputs["decoder_input_tokens"].astype(np.int64)
    return {"frames": inputs["frames"].astype(precision), "decoder_input_tokens": tokens}
