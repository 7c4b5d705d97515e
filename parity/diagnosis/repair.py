"""Repair: the candidate's weights put right where that can be done, and the proof.

What the candidate holds is taken from the candidate, with every transposition, permutation, exchange and factor undone.
What it lacks or holds spoilt is taken from the original only if asked for. Nothing is written unless the result is the
original's, bit for bit.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mt3_common.config import Config
from mt3_common.io.plural import plural
from parity.diagnosis import fibres
from parity.diagnosis.effect import probe
from parity.diagnosis.finding import Diagnosis
from parity.sides import numpy_network


class RepairError(ValueError):
    """A candidate that cannot be put right from its own numbers."""


@dataclasses.dataclass
class Repaired:
    """Weights put right.

    Attributes:
        arrays: MT3's names -> arrays, the original's bits.
        restored: names whose numbers came from the candidate.
        taken: names that were taken from the original.
        logits_before, logits_after: largest relative error of the logits, in float64.
    """

    arrays: dict[str, np.ndarray]
    restored: list[str]
    taken: list[str]
    logits_before: float
    logits_after: float


def repair(
    candidate: Mapping[str, np.ndarray],
    diagnosis: Diagnosis,
    original: Mapping[str, np.ndarray],
    config: Config,
    from_original: bool = False,
) -> Repaired:
    """The candidate's weights with its faults undone.

    Args:
        candidate: arrays under the candidate's own names.
        diagnosis: of them.
        original: what they should be.
        config: the original's.
        from_original: take what cannot be undone from the original.

    Raises:
        RepairError: the candidate is another model, or arrays cannot be undone and from_original is false.
    """
    if diagnosis.refusal or diagnosis.matched is None:
        raise RepairError(diagnosis.refusal or "there are no weights to put right")
    candidate = diagnosis.judged or candidate
    rebuilt = fibres.restore(diagnosis.matched, candidate, original)
    rebuilt |= _reshaped(candidate, diagnosis, original, rebuilt)
    arrays, restored, lost = {}, [], []
    for name, own in original.items():
        array = rebuilt.get(name)
        if array is not None and array.dtype == own.dtype and array.tobytes() == np.ascontiguousarray(own).tobytes():
            arrays[name] = array
            restored.append(name)
        else:
            lost.append(name)
    if lost and not from_original:
        raise RepairError(
            f"{len(lost)} of {plural(len(original), 'array')} cannot be put right from the candidate's own numbers, "
            f"first {lost[0]}; add --from-original to take those from the original"
        )
    for name in lost:
        arrays[name] = np.array(original[name])
    arrays = {name: arrays[name] for name in original}
    inputs = probe(config.network)
    truth = numpy_network.forward(original, config.network, inputs)[""]
    after = numpy_network.forward(arrays, config.network, inputs)[""]
    error = float(np.abs(after - truth).max() / np.abs(truth).max())
    return Repaired(arrays, restored, lost, diagnosis.logits_error or 0.0, error)


def _reshaped(candidate, diagnosis, original, rebuilt) -> dict[str, np.ndarray]:
    """Arrays that were reshaped where they should have been transposed, turned back."""
    fixed = {}
    for name, own in original.items():
        if name in rebuilt or name not in diagnosis.placed:
            continue
        array = diagnosis.placed[name]
        if array.ndim == 2 and array.shape == own.shape:
            for turned in (array.reshape(own.T.shape).T, array.T.reshape(own.shape)):
                if np.array_equal(turned, own):
                    fixed[name] = np.ascontiguousarray(turned)
    return fixed
