"""The protocol of a side: one network under comparison, in whichever framework."""

from typing import Any, Protocol

import numpy as np

from mt3_common.config import Config
from mt3_common.transcription.family import YourMT3Family
from mt3_common.yourmt3_config import YourMT3Settings
from parity.trace.trace import Call, Pass


def first_array(output: Any) -> Any:
    """Return a module's output; of several, the first, which is what the tap shows."""
    return output[0] if isinstance(output, tuple) else output


class ModuleSide(Protocol):
    """A module that can be recorded: it runs with and without capture, as a whole and module by module.

    Attributes:
        framework: 'jax' or 'torch'.
        config: the network's config; {} for a module that is no twin.
    """

    framework: str
    config: Any

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights as the framework holds them, under Flax's names."""
        ...

    def environment(self) -> dict[str, Any]:
        """Return versions, device and machine."""
        ...

    def run(self, inputs: dict[str, np.ndarray], precision: str, feed: Pass | None = None, exact: bool = False) -> Pass:
        """Run the network once in a precision and record the output and the inputs of every module.

        Args:
            inputs: frames (b, f, input_depth), decoder_input_tokens and decoder_target_tokens (b, l).
            precision: 'float64', 'float32', 'bfloat16' or 'tf32'.
            feed: another side's pass in this precision; every module also runs on its inputs.
            exact: every module also runs in float64 on this pass's own inputs.
        """
        ...

    def rerun(self, calls: dict[str, Call], precision: str) -> dict[str, np.ndarray]:
        """Return the output of every module on the given inputs; the network must have run before."""
        ...


def labels(reference: Any, candidate: Any) -> tuple[str, str]:
    """Return the names of two sides in rows: their frameworks', told apart where both have the same."""
    if reference.framework != candidate.framework:
        return reference.framework, candidate.framework
    return f"{reference.framework}, reference", f"{candidate.framework}, candidate"


class Side(ModuleSide, Protocol):
    """A twin with a checkpoint's weights: also decodes, differentiates and optimizes.

    Attributes:
        config: the checkpoint's.
    """

    config: Config

    def observe(
        self, inputs: dict[str, np.ndarray], precision: str, pattern: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits (b, l, vocab_size), and the outputs of the taps whose names match the pattern."""
        ...

    def logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits (b, l, vocab_size), without capture."""
        ...

    def cached(
        self, frames: np.ndarray, tokens: np.ndarray, precision: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits of decoding through the cache, one token at a time, and the final cache.

        Args:
            frames: (b, f, input_depth).
            tokens: (b, l) decoder inputs, the start token first.

        Returns:
            (logits (b, l, vocab_size), tap -> keys or values (b, l or f, heads * head_dim)).
        """
        ...

    def generate(self, segments: list[np.ndarray], max_steps: int | None = None) -> list[np.ndarray]:
        """Return the greedy token ids of segments (heard_frames, input_depth), computed in float32."""
        ...

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss (a 0-d array) and its gradients under MT3's names; of `shaken` weights if asked."""
        ...

    def optimize(
        self, optimizer: str, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Return the weights after one step of 'adafactor' or 'adamw' (weight decay 0.01) per set of gradients."""
        ...


class YourMT3Side(ModuleSide, Protocol):
    """A twin of YourMT3+ with a checkpoint's arrays.

    Its inputs are frames (b, t, f) and decoder_input_tokens (b, n), or (b, c, n) with channels. No position is masked.

    Attributes:
        config: the checkpoint's settings.
        family: its task and front end.
    """

    config: YourMT3Settings
    family: YourMT3Family

    def front_end_frames(self, segments: np.ndarray) -> np.ndarray:
        """Return the frames of segments (b, n) in float64, by the framework's own transform: (b, t, f)."""
        ...

    def logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits (…, n, vocab_size) of the network as it is trained, without capture."""
        ...

    def search_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits that a search sees behind all tokens at once, by the plain network."""
        ...

    def cached_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the same logits as kernels.py computes them: grouped experts, one token at a time from caches."""
        ...

    def generate(self, segments: list[np.ndarray], max_tokens: int | None = None) -> list[np.ndarray]:
        """Return the greedy ids of segments, (n,) or (channels, n), as transcription computes them in float32."""
        ...

    def train_pass(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits of training without dropout, and the statistics of batch norms after it by their names."""
        ...

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss without dropout (a 0-d array) and its gradients by published names.

        They are of `shaken` weights if asked.

        Args:
            inputs: with decoder_target_tokens, of which 0 does not count.
        """
        ...

    def optimize(
        self, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Return the trained arrays after one step of AdamWScale (weight decay 0.01) per set of gradients."""
        ...
