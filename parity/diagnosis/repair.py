"""`parity repair`: the candidate's weights put right where that can be done, and the proof.

What the candidate holds is taken from the candidate, with every transposition, permutation, exchange and factor undone.
What it lacks or holds spoilt is taken from the original only if asked for. Nothing is written unless the result is the
original's, bit for bit.
"""

import argparse
import dataclasses
from collections.abc import Mapping

import numpy as np

from mt3_common.config import Config
from parity.checkpoints import convert
from parity.compare.traces import DIFFERENT, REFUSED, SAME
from parity.diagnosis import diagnose, fibres
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
    diagnosis: diagnose.Diagnosis,
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
    found = fibres.restore(diagnosis.matched, candidate, original)
    found |= _reshaped(candidate, diagnosis, original, found)
    arrays, restored, lost = {}, [], []
    for name, own in original.items():
        mine = found.get(name)
        if mine is not None and mine.dtype == own.dtype and mine.tobytes() == np.ascontiguousarray(own).tobytes():
            arrays[name] = mine
            restored.append(name)
        else:
            lost.append(name)
    if lost and not from_original:
        raise RepairError(
            f"{len(lost)} of {len(original)} arrays cannot be put right from the candidate's own numbers, "
            f"first {lost[0]}; add --from-original to take those from the original"
        )
    for name in lost:
        arrays[name] = np.array(original[name])
    arrays = {name: arrays[name] for name in original}
    inputs = diagnose.probe(config.network)
    truth = numpy_network.forward(original, config.network, inputs)[""]
    after = numpy_network.forward(arrays, config.network, inputs)[""]
    error = float(np.abs(after - truth).max() / np.abs(truth).max())
    return Repaired(arrays, restored, lost, diagnosis.logits_error or 0.0, error)


def _reshaped(candidate, diagnosis, original, found) -> dict[str, np.ndarray]:
    """Arrays that were reshaped where they should have been transposed, turned back."""
    fixed = {}
    for name, own in original.items():
        if name in found or name not in diagnosis.placed:
            continue
        mine = diagnosis.placed[name]
        if mine.ndim == 2 and mine.shape == own.shape:
            for turned in (mine.reshape(own.T.shape).T, mine.T.reshape(own.shape)):
                if np.array_equal(turned, own):
                    fixed[name] = np.ascontiguousarray(turned)
    return fixed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `parity repair`."""
    parser.add_argument("candidate", help="weights under any names")
    parser.add_argument("target", help="what to write: a folder, .safetensors or .pth")
    parser.add_argument("--against", required=True, metavar="CKPT", help="the original: T5X, Orbax or .safetensors")
    parser.add_argument("--to", choices=convert.LAYOUTS, help="layout (default: by the target's ending)")
    parser.add_argument("--config", help="the candidate's config.json (default: the one beside it)")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the original has no config")
    parser.add_argument("--from-original", action="store_true", help="take what cannot be undone from the original")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> int:
    """Repairs, writes, proves; exit status 0 put right, 1 not possible, 2 refused."""
    layout = convert.layout_of(args.target, args.to)
    original, config = diagnose.read_original(args.against, args.model)
    candidate = diagnose.read_candidate(args.candidate, args.config)
    if candidate.kind != "weights":
        raise RepairError(f"{args.candidate}: only weights can be repaired; this is a {candidate.kind}")
    diagnosis = diagnose.diagnose_weights(candidate, original, config)
    diagnose.print_diagnosis(diagnosis, args.candidate, args.against)
    if diagnosis.refusal:
        return REFUSED
    try:
        fixed = repair(candidate.arrays, diagnosis, original, config, args.from_original)
    except RepairError as error:
        print(f"not repaired: {error}")
        return DIFFERENT
    convert.write(args.target, convert.Weights(fixed.arrays, config, None, "repaired"), layout, args.overwrite)
    print(
        f"repaired: {args.target}: {len(fixed.restored)} arrays from the candidate, {len(fixed.taken)} from the "
        f"original; {len(fixed.arrays)} of {len(original)} are the original's bits; the logits' error went from "
        f"{fixed.logits_before:.1e} to {fixed.logits_after:.0e}"
    )
    return SAME
