"""Search of YourMT3+: its fast path against the plain network, greedy ids of each channel, and the notes."""

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.io.plural import plural
from mt3_common.transcription.family import YourMT3Family
from parity.compare.budget import judge
from parity.compare.decoding import first_parting, judge_notes, margin_rule, tie_rule
from parity.compare.results import Row, over
from parity.sides.side import YourMT3Side, labels
from parity.trace.precision import EPSILON


def compare_fast_path(reference: YourMT3Side, candidate: YourMT3Side, inputs: dict[str, np.ndarray]) -> list[Row]:
    """Compare what kernels.py computes with the plain network: grouped experts, ids one by one from caches.

    The reference's plain pass in float64 is the truth.
    """
    truth, low = (reference.search_logits(inputs, precision) for precision in ("float64", "float32"))
    rows = []
    for precision in ("float64", "float32"):
        noise = (low - truth) * (EPSILON[precision] / EPSILON["float32"])
        for side_name, side in zip(labels(reference, candidate), (reference, candidate), strict=True):
            passes = {"cached steps": side.cached_logits(inputs, precision)}
            if side is not reference:
                passes = {"plain pass": side.search_logits(inputs, precision), **passes}
            for name, logits in passes.items():
                label = f"{side_name}: {name}, positions 0..{truth.shape[-2] - 1}"
                if logits.shape != truth.shape:
                    note = f"shape {truth.shape} against {logits.shape}"
                    rows.append(Row("decode path", label, "different", precision, note=note))
                    continue
                error = judge(truth, logits, noise, precision)
                row = Row("decode path", label, "same", precision, error)
                if over(error):
                    row.verdict, row.note = "different", _first(truth, logits, noise)
                rows.append(row)
    return rows


def _first(truth: np.ndarray, logits: np.ndarray, noise: np.ndarray) -> str:
    """Return from which position on logits (…, n, v) differ, in words."""
    error = np.abs(logits.astype(np.float64) - truth)
    size = np.abs(truth).max()
    wrong = ~(error <= 1e-12 * size + 8 * np.abs(noise).max()).all(axis=(*range(error.ndim - 2), error.ndim - 1))
    return f"wrong from position {int(np.argmax(wrong))} on"


def written(ids: np.ndarray, num_fed: int) -> np.ndarray:
    """Return the ids of a channel (n,) up to the EOS that ended it; EOS that was predicted first does not end it."""
    ends = np.flatnonzero(ids[num_fed:] == 1)
    return ids[: num_fed + int(ends[0]) + 1] if len(ends) else ids


def other_rule(own: np.ndarray, other: np.ndarray, num_fed: int) -> str:
    """Return the rule of a search by which ids differ, in words, '' if none is known.

    Args:
        own, other: (n,) ids of a channel as both sides wrote them.
        num_fed: ids that were fed before the first one that may end the row.
    """
    length = min(len(own), len(other))
    own_ids = written(own, num_fed)
    first = own[num_fed - 1] if len(own) >= num_fed else -1
    if first == 1 and not other[num_fed:].any() and (other[:num_fed] == own[:num_fed]).all():
        return "EOS as the first id ends the row, as it does not in the published search"
    ends = len(own_ids) < length and own_ids[-1] == 1
    if ends and (other[: len(own_ids)] == own_ids).all() and other[len(own_ids) : length].any():
        return "EOS does not end the row"
    if length > 1 and other[0] == 0 and (other[1:length] == own[: length - 1]).all():
        return "the start id is written, too"
    if length > 1 and (other[: length - 1] == own[1:length]).all():
        return "the first id is left out"
    return ""


def compare_channels(
    reference: YourMT3Side,
    candidate: YourMT3Side,
    frames: np.ndarray,
    ids: tuple[list[np.ndarray], list[np.ndarray]],
) -> list[Row]:
    """Compare the greedy ids of every channel: a row per segment and channel, then one for all prefixes.

    As compare/decoding.py does for MT3: a disagreement is a tie if the float64 margin of the two ids is within the
    noise of float32 at that position, and otherwise real.

    Args:
        frames: (n, t, f) of the segments.
        ids: what each side generated, an array (n,) or (channels, n) per segment.
    """
    fed = [0, *reference.family.task.prefix()[:-1]]
    length = max(array.shape[-1] for side in ids for array in side)
    rows, real = [], []
    total = ties = 0
    for index, (own, other) in enumerate(zip(*ids, strict=True)):
        inputs = {"frames": frames[index : index + 1], "decoder_input_tokens": _fed_back(own, fed, length)}
        low = [side.search_logits(inputs, "float32")[0] for side in (reference, candidate)]
        truth = reference.search_logits(inputs, "float64")[0]
        low, truth = [_by_channel(logits) for logits in low], _by_channel(truth)
        for channel, (row, candidate_row) in enumerate(zip(np.atleast_2d(own), np.atleast_2d(other))):
            own_ids, other_ids = written(row, len(fed)), written(candidate_row, len(fed))
            name = f"segment {index}" + (f", channel {channel}" if own.ndim == 2 else "")
            logits = [side[channel, : len(own_ids)] for side in low]
            verdicts = {
                int(position): tie_rule(truth[channel, position], logits[0][position], logits[1][position])
                for position in np.flatnonzero(logits[0].argmax(-1) != logits[1].argmax(-1))
            }
            total += len(own_ids)
            ties += sum(tie for tie, _ in verdicts.values())
            real += [f"{name}, position {position}: {why}" for position, (tie, why) in verdicts.items() if not tie]
            rows.append(_row(name, own_ids, other_ids, truth[channel], logits))
            if rows[-1].verdict == "same" and candidate_row[len(other_ids) :].any():
                rows[-1].verdict, rows[-1].note = "different", f"ids stand behind EOS at position {len(other_ids) - 1}"
            if rows[-1].verdict != "same":
                rule = other_rule(row, candidate_row, len(fed))
                rows[-1].note += f"; {rule}" if rule else ""
    note = f"{total - ties - len(real)} of {total} equal, {plural(ties, 'tie')}, {len(real)} real"
    note += f"; first at {real[0]}" if real else ""
    verdict = "different" if real or not total else "same"
    rows.append(Row("tokens", "next token on the reference's prefixes", verdict, "float32", note=note))
    return rows


def _fed_back(ids: np.ndarray, fed: list[int], length: int) -> np.ndarray:
    """Return what the decoder is fed to predict ids: (1, length) or (1, channels, length), zeros behind."""
    tokens = np.zeros((1, *ids.shape[:-1], max(length, len(fed))), np.int32)
    tokens[..., : len(fed)] = fed
    following = ids[..., len(fed) - 1 : -1]
    tokens[..., len(fed) : len(fed) + following.shape[-1]] = following[..., : tokens.shape[-1] - len(fed)]
    return tokens


def _by_channel(logits: np.ndarray) -> np.ndarray:
    return logits if logits.ndim == 3 else logits[np.newaxis]


def _row(name: str, own: np.ndarray, other: np.ndarray, truth: np.ndarray, low: list[np.ndarray]) -> Row:
    parted = first_parting(own, other)
    if parted is None:
        return Row("tokens", name, "same", "float32", note=f"{plural(len(own), 'token')}, equal")
    if parted in (len(own), len(other)):
        note = f"parted at position {parted} of {len(own)}: real, one side ended there and the other did not"
        return Row("tokens", name, "different", "float32", note=note)
    chosen = int(own[parted]), int(other[parted])
    tie, why = margin_rule(truth[parted], chosen, (low[0][parted],), (low[1][parted],))
    note = f"parted at position {parted} of {len(own)}: {'tie' if tie else 'real'}, {why}"
    return Row("tokens", name, "same" if tie else "different", "float32", note=note)


def compare_channel_notes(
    family: YourMT3Family,
    segments: list[Segment],
    ids: tuple[list[np.ndarray], list[np.ndarray]],
    token_rows: list[Row],
) -> list[Row]:
    """Compare the notes of both sides' ids, of all channels joined: one row."""
    notes = []
    for side in ids:
        decoder = family.decoder(None, published=False)
        for array, segment in zip(side, segments, strict=True):
            decoder.feed(array, segment.start_time)
        notes.append(decoder.finish())
    tokens = sum(array.size for array in ids[0])
    detail = f"from {plural(tokens, 'token')} of {plural(family.task.num_channels, 'channel')}"
    return [judge_notes(notes[0], notes[1], detail, token_rows)]
