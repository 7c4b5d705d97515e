"""The protocol of a side: one network under comparison, in whichever framework."""

from typing import Any, Protocol

import numpy as np

from mt3_common.config import Config
from parity.trace.trace import Call, Pass


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
        """Return the greedy token ids of segments (input_frames, input_depth), computed in float32."""
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
