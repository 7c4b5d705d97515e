"""Decode path against full forward pass, greedy tokens with a rule for ties, and the notes of both sides."""

import numpy as np

from mt3_common.config import Config
from mt3_common.evaluation.metrics import program_score
from mt3_common.io.plural import plural
from mt3_common.notes.decoder import decode_segments
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary
from parity.compare.budget import first_over, judge
from parity.compare.results import Row, over
from parity.sides.side import Side, labels
from parity.trace.inputs import shift_right
from parity.trace.precision import EPSILON

# Begins the note of a row that is right up to a position.
FROM = "wrong from"
CACHED_TAPS = r"^decoder/.*attention/(key|value)$"


def compare_decode_path(reference: Side, candidate: Side, inputs: dict[str, np.ndarray], lengths: dict[str, int]):
    """Compare full forward pass, prefill and cached steps of both sides, in every precision.

    The reference's float64 forward pass is the truth for all of them. The prefill computes the keys and values of the
    frames, once per segment; the self-attention keys and values in the cache come from the steps.

    Args:
        reference, candidate: Sides.
        inputs: frames (b, f, input_depth); decoder tokens (b, l) without masked positions.
        lengths: precision -> positions to decode, at most l; 'float64' and one lower precision at least.
    """
    longest = _cut(inputs, max(lengths.values()))
    low_name = next(name for name in lengths if name != "float64")
    truth, truth_taps = reference.observe(longest, "float64", CACHED_TAPS)
    low, low_taps = reference.observe(longest, low_name, CACHED_TAPS)
    rows = []
    for precision, length in lengths.items():
        cut = _cut(inputs, length)
        scale = EPSILON[precision] / EPSILON[low_name]

        def add(name: str, tap: str, array: np.ndarray, precision=precision, scale=scale, length=length):
            exact, rough = (truth, low) if tap == "logits" else (truth_taps[tap], low_taps[tap])
            if "encoder_decoder" not in tap:
                exact, rough = exact[:, :length], rough[:, :length]
            if exact.shape != array.shape:
                note = f"shape {exact.shape} against {array.shape}"
                rows.append(Row("decode path", name, "different", precision, note=note))
                return
            noise = (rough - exact) * scale
            error = judge(exact, array, noise, precision)
            row = Row("decode path", name, "same", precision, error)
            if over(error):
                # Keys and values of the frames have positions of the encoder, all computed at once.
                unit = "frame" if "encoder_decoder" in tap else "position"
                row.verdict = "different"
                row.note = f"{FROM} {unit} {first_over(exact, array, noise, precision)} on"
            rows.append(row)

        for label, side in zip(labels(reference, candidate), (reference, candidate), strict=True):
            # The reference's float64 forward pass is the truth itself.
            if side is not reference or precision != "float64":
                name = f"{label}: full forward, positions 0..{length - 1}"
                add(name, "logits", side.logits(cut, precision))
            logits, cache = side.cached(cut["frames"], cut["decoder_input_tokens"], precision)
            add(f"{label}: cached steps, positions 0..{length - 1}", "logits", logits)
            for tap in dict.fromkeys([*truth_taps, *cache]):
                kind = "prefill" if "encoder_decoder" in tap else "cache"
                name = f"{label}: {kind} {tap}"
                if tap not in cache or tap not in truth_taps:
                    rows.append(Row("decode path", name, "different", precision, note="only one of them has it"))
                else:
                    add(name, tap, cache[tap])
    return rows


def explain_decode_path(rows: list[Row]) -> list[str]:
    """Return a sentence for each side whose decode path differs: from which position on, and where it begins.

    Args:
        rows: of a report; those of the decode path that differ are read, the most exact precision first.
    """
    wrong = [row for row in rows if row.section == "decode path" and row.verdict != "same" and ": " in row.name]
    sentences = []
    for side in dict.fromkeys(row.name.split(": ")[0] for row in wrong):
        own = [row for row in wrong if row.name.startswith(f"{side}: ")]
        precision = min((row.precision for row in own), key=EPSILON.__getitem__)
        own = [row for row in own if row.precision == precision]
        kinds = {
            kind: [r for r in own if r.name.startswith(f"{side}: {kind}")] for kind in ("prefill", "cached", "cache ")
        }
        if not kinds["cached"]:
            sentences.append(f"decode path of {side}: {own[0].name.split(': ')[1]} is {own[0].note} ({precision})")
            continue
        if kinds["prefill"]:
            where = f"the prefill is wrong already: {kinds['prefill'][0].name.split()[-1]}"
        elif any("/layers_0/" in row.name for row in kinds["cache "]):
            where = (
                "the keys and values of layer 0 are wrong already: id, position or projection in a step, or its slot"
            )
        else:
            where = "the keys and values of layer 0 are right: what a step reads from the cache, or computes from it"
        sentences.append(f"decode path of {side}: cached steps are {kinds['cached'][0].note} ({precision}); {where}")
    return sentences


def _cut(inputs: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    return {name: array if name == "frames" else array[:, :length] for name, array in inputs.items()}


def compare_tokens(
    reference: Side,
    candidate: Side,
    frames: np.ndarray,
    ids: tuple[list[np.ndarray], list[np.ndarray]],
    length: int = 0,
) -> list[Row]:
    """Compare the greedy tokens: a row per segment as generated, then one row for all prefixes of the reference.

    Once the sides differ, the rest of a segment is not comparable. So both sides also predict the next token after
    every prefix of the reference's tokens. A disagreement is a 'tie' if the float64 margin between the two tokens is
    within the noise that float32 makes in either side's logits at that position; otherwise it is 'real'. Where the
    sides part and their forward passes do not, the noise is that of the cached steps, which chose the tokens.

    Args:
        reference, candidate: Sides.
        frames: (n, f, input_depth), the segments' frames.
        ids: what each side generated, a list of (n,) arrays per side.
        length: positions to which prefixes are padded, so that one shape is compiled; padding does not change them.
    """
    rows, total, ties, real = [], 0, 0, []
    for index, (own, other) in enumerate(zip(*ids, strict=True)):
        targets = np.pad(own, (0, max(0, length - len(own))))[np.newaxis].astype(np.int32)
        inputs = {
            "frames": frames[index : index + 1],
            "decoder_input_tokens": shift_right(targets),
            # Every position is predicted, also those where the reference chose 0.
            "decoder_target_tokens": np.ones_like(targets),
        }
        low = [side.logits(inputs, "float32")[0, : len(own)] for side in (reference, candidate)]
        total += len(own)
        disagreements = np.flatnonzero(low[0].argmax(-1) != low[1].argmax(-1))
        parted = first_parting(own, other)
        verdicts, truth = {}, np.empty(0)
        if len(disagreements) or parted is not None:
            truth = reference.logits(inputs, "float64")[0]
        for position in disagreements:
            verdicts[int(position)] = tie_rule(truth[position], low[0][position], low[1][position])
        ties += sum(tie for tie, _ in verdicts.values())
        real += [f"segment {index}, position {position}: {why}" for position, (tie, why) in verdicts.items() if not tie]
        if parted is None:
            row = Row("tokens", f"segment {index}", "same", "float32", note=f"{plural(len(own), 'token')}, equal")
        elif parted in (len(own), len(other)):
            note = f"parted at position {parted} of {len(own)}: real, one side ended there and the other did not"
            row = Row("tokens", f"segment {index}", "different", "float32", note=note)
        else:
            chosen = int(own[parted]), int(other[parted])
            if chosen == (int(low[0][parted].argmax()), int(low[1][parted].argmax())):
                tie, why = verdicts[parted]
            else:
                passes = _passes(reference, inputs, low[0], parted), _passes(candidate, inputs, low[1], parted)
                tie, why = margin_rule(truth[parted], chosen, *passes)
                why = f"the cached path alone chose another token, {why}"
            note = f"parted at position {parted} of {len(own)}: {'tie' if tie else 'real'}, {why}"
            row = Row("tokens", f"segment {index}", "same" if tie else "different", "float32", note=note)
        rows.append(row)
    note = f"{total - ties - len(real)} of {total} equal, {plural(ties, 'tie')}, {len(real)} real"
    if real:
        note += f"; first at {real[0]}"
    verdict = "different" if real or not total else "same"
    rows.append(Row("tokens", "next token on the reference's prefixes", verdict, "float32", note=note))
    return rows


def _passes(
    side: Side, inputs: dict[str, np.ndarray], forward: np.ndarray, position: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a side's float32 logits at a position: of the forward pass, and of the cached steps."""
    steps, _ = side.cached(inputs["frames"], inputs["decoder_input_tokens"], "float32")
    return forward[position], steps[0, position]


def first_parting(reference: np.ndarray, candidate: np.ndarray) -> int | None:
    """Return the first position at which two token sequences differ, an end included; None if they are equal."""
    length = min(len(reference), len(candidate))
    differing = np.flatnonzero(reference[:length] != candidate[:length])
    if len(differing):
        return int(differing[0])
    return None if len(reference) == len(candidate) else length


def tie_rule(truth: np.ndarray, reference: np.ndarray, candidate: np.ndarray) -> tuple[bool, str]:
    """Return whether two choices of a token are a tie, and why: margin against noise.

    Args:
        truth: (vocab_size,) the reference's logits in float64.
        reference, candidate: (vocab_size,) the sides' own logits, whose largest entries differ.
    """
    return margin_rule(truth, (int(reference.argmax()), int(candidate.argmax())), (reference,), (candidate,))


def margin_rule(
    truth: np.ndarray,
    chosen: tuple[int, int],
    reference: tuple[np.ndarray, ...],
    candidate: tuple[np.ndarray, ...],
) -> tuple[bool, str]:
    """Return whether two chosen ids are a tie, and why: their float64 margin against float32's noise.

    Args:
        truth: (vocab_size,) the reference's logits in float64.
        chosen: the reference's id and the candidate's.
        reference, candidate: (vocab_size,) logits in float32 of every path that a side took: the forward pass and,
            where they chose the ids, the cached steps.
    """
    a, b = chosen
    own, other = (max(float(np.abs(logits - truth).max()) for logits in paths) for paths in (reference, candidate))
    # A wrong candidate has any amount of noise; so at most 8 times the reference's noise counts as an excuse.
    allowed = 2 * min(max(own, other), 8 * own)
    margin = abs(float(truth[a] - truth[b]))
    times = margin / allowed if allowed else float("inf")
    return margin <= allowed, f"margin {margin:.2g} of ids {a} and {b} is {times:.2g} times the noise"


def compare_notes(
    config: Config, start_times: list[float], ids: tuple[list[np.ndarray], list[np.ndarray]], token_rows: list[Row]
) -> list[Row]:
    """Compare the notes of both sides' tokens: one row, with the F1 scores of a difference.

    Notes that differ because tokens differ at a tie count as the same; the note of the row says by how much.
    """
    vocabulary = Vocabulary(config.vocabulary)
    reference_notes, candidate_notes = (
        decode_segments(list(zip(start_times, side, strict=True)), vocabulary).notes for side in ids
    )
    tokens = sum(len(segment) for segment in ids[0])
    ended = sum(bool(len(segment)) and int(segment[-1]) == EOS_ID for segment in ids[0])
    detail = f"from {plural(tokens, 'token')}; {ended} of {plural(len(ids[0]), 'segment')} ended"
    return [judge_notes(reference_notes, candidate_notes, detail, token_rows)]


def judge_notes(references: list[Note], candidates: list[Note], detail: str, token_rows: list[Row]) -> Row:
    """Return the row of both sides' notes.

    Args:
        detail: of equal notes, in words.
        token_rows: of the tokens that they were decoded from.
    """
    if references == candidates:
        return Row("notes", "notes", "same", "float32", note=f"{plural(len(references), 'note')}, equal, {detail}")
    effect = ", ".join(f"{name} F1 {value:.3f}" for name, value in note_effect(references, candidates).items())
    tied = all(row.verdict == "same" for row in token_rows)
    note = f"{len(references)} and {plural(len(candidates), 'note')}: {effect}{' (ties only)' if tied else ''}"
    return Row("notes", "notes", "same" if tied else "different", "float32", note=note)


def note_effect(references: list[Note], estimates: list[Note]) -> dict[str, float]:
    """Return the F1 of two lists of notes by onset (within 50 ms): alone, with pitch, and with pitch and program.

    Drums match drums only, except by onset alone. Two empty lists give 1.
    """
    onsets, other = ([note._replace(pitch=60, is_drum=False) for note in side] for side in (references, estimates))
    scores = {
        "onset": program_score(onsets, other, "flat", offsets=False),
        "pitch": program_score(references, estimates, "flat", offsets=False),
        "program": program_score(references, estimates, "full", offsets=False),
    }
    return {name: score.f1 for name, score in scores.items()}
