"""The effect of weights that differ: on the modules that hold them, and on the logits."""

from collections.abc import Mapping

import numpy as np

from mt3_common.config import NetworkConfig
from parity.diagnosis.finding import Diagnosis, module_of_array
from parity.diagnosis.modules import alternatives_at
from parity.sides import numpy_network


def probe(config: NetworkConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs that reach everything: 24 frames, the last ones zero, and 24 tokens, the last ones padding."""
    random = np.random.default_rng(seed)
    frames = random.standard_normal((2, 24, config.input_depth)).astype(np.float32)
    frames[1, 18:] = 0
    targets = random.integers(1, config.vocab_size, (2, 24)).astype(np.int32)
    targets[:, 1] = config.vocab_size - 1
    targets[1, 18:] = 0
    tokens = np.concatenate([np.zeros((2, 1), np.int32), targets[:, :-1]], axis=1)
    return {numpy_network.FRAMES: frames, numpy_network.TOKENS: tokens, numpy_network.TARGETS: targets}


def measure(diagnosis: Diagnosis, original: Mapping[str, np.ndarray], config: NetworkConfig) -> None:
    """Set the error before and after of every finding about an array, its runner-up, and the error of the logits.

    Each module runs in float64 on the original's own inputs, once with the candidate's array and once with the array
    put right.
    """
    inputs = probe(config)
    values = numpy_network.forward(original, config, inputs)
    by_array = {step.array: step for step in numpy_network.steps(config) if step.array}
    loaded = {}
    for name, array in original.items():
        placed = diagnosis.placed.get(name, np.ones_like(array) if array.ndim == 1 else np.zeros_like(array))
        if placed.shape != array.shape:
            placed = np.zeros_like(array)
        loaded[name] = placed
    for finding in diagnosis.findings:
        names = [name for site in finding.sites for name in by_array if module_of_array(name) == site]
        if not names and finding.sites and finding.sites[0] + "/" in " ".join(by_array):
            names = [name for name in by_array if any(name.startswith(f"{site}/") for site in finding.sites)]
        if not names:
            continue
        errors = []
        for name in names:
            step, truth = by_array[name], values[by_array[name].name]
            output = numpy_network.run_step(step, values, loaded, config)
            errors.append(float(np.abs(output - truth).max() / np.abs(truth).max()))
        finding.before, finding.in_weights = max(errors), True
        worst = names[int(np.argmax(errors))]
        fixed = numpy_network.run_step(by_array[worst], values, original, config)
        truth = values[by_array[worst].name]
        finding.after = float(np.abs(fixed - truth).max() / np.abs(truth).max())
        if finding.undoable:
            output = numpy_network.run_step(by_array[worst], values, loaded, config)
            step, cause = by_array[worst], finding.cause
            finding.runner_up = alternatives_at(step, output, inputs, values, original, config, cause)
    logits = numpy_network.forward(loaded, config, inputs)[""]
    real = inputs[numpy_network.TARGETS] > 0
    diagnosis.logits_error = float(np.abs(logits - values[""])[real].max() / np.abs(values[""][real]).max())
