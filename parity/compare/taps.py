"""Taps and logits of two traces, in multiples of their budgets."""

import numpy as np

from mt3_common.io.plural import plural
from parity.compare.budget import AMPLIFIED, judge_short, measure, real_rows
from parity.compare.results import Row, over, within
from parity.trace.precision import EPSILON
from parity.trace.trace import Pass, Trace, same_bits

# A stack of modules amplifies their rounding; its own sums and norms have nothing that could be wrong by so little.
STACKED = 2.0
# Notes of rows whose error is excused or cannot be judged.
GREW = "rounding, amplified"


NOTHING = "it hands its input on, as dropout does in evaluation"


LOST = "judged module by module: in this precision the reference's own noise is as large as the values"


def compare_taps(reference: Trace, candidate: Trace, precision: str) -> list[Row]:
    """Compare every tap of either side, in execution order, by its free-running and its local error."""
    truth, run, other = reference.passes["float64"], reference.passes[precision], candidate.passes[precision]
    low_name = next(name for name in reference.passes if name != "float64") if precision == "float64" else precision
    low = reference.passes[low_name]
    scale = EPSILON[precision] / EPSILON[low_name]
    targets = reference.inputs.get("decoder_target_tokens")
    rows: list[Row] = []
    culprits: list[str] = []
    before = ""
    for tap in [*run.outputs, *(tap for tap in other.outputs if tap not in run.outputs)]:
        if tap not in run.outputs or tap not in other.outputs:
            only = "reference" if tap in run.outputs else "candidate"
            missing = candidate.framework if tap in run.outputs else reference.framework
            if hands_on(run if only == "reference" else other, tap):
                rows.append(
                    Row("taps", tap, "same", precision, note=f"{NOTHING}; {missing} has no such tap", only=only)
                )
                continue
            rows.append(Row("taps", tap, "different", precision, note=f"{missing} has no such tap", only=only))
            continue
        a, b = run.outputs[tap], other.outputs[tap]
        if a.shape != b.shape:
            rows.append(Row("taps", tap, "different", precision, note=f"shape {a.shape} against {b.shape}"))
            continue
        absent = [
            name
            for name, recorded in (("local", other.local), ("exact", low.exact), ("float64", truth.outputs))
            if tap not in recorded
        ]
        if absent:
            rows.append(Row("taps", tap, "skipped", precision, note=f"no {' and no '.join(absent)} output recorded"))
            continue

        def real(array: np.ndarray, tap: str = tap) -> np.ndarray:
            return real_rows(tap, array, targets)

        if other.local[tap].shape != a.shape:
            note = f"fed the reference's inputs, it has shape {other.local[tap].shape}"
            rows.append(Row("taps", tap, "different", precision, note=note))
            continue
        exact64 = real(truth.outputs[tap]).astype(np.float64)
        noise = (real(low.outputs[tap]) - exact64) * scale
        free = judge_short(exact64, real(b), noise, precision)
        exact_local = real(low.exact[tap]).astype(np.float64)
        local_noise = (real(low.outputs[tap]) - exact_local) * scale
        local_truth = exact64 if precision == "float64" else exact_local
        local = judge_short(local_truth, real(other.local[tap]), local_noise, precision)
        row = Row("taps", tap, "different" if over(free) or over(local) else "same", precision, free, local)
        row.amplification = amplification(tap, run, other, targets)
        if not np.isfinite(free.max_abs) or not np.isfinite(local.max_abs):
            row.note = not_finite(real(a), real(b))
        elif over(local):
            inside = next((name for name in culprits if name.startswith(f"{tap}/")), None)
            row.note = f"local: contains {inside}" if inside else "local: differs on the reference's own inputs"
            culprits.append(tap)
        elif over(free):
            row.note = "inherited: right on the reference's inputs"
            if before and not any(over(earlier.free) for earlier in rows):
                row.note += f"; the fault lies between {before} and it, outside of any submodule"
        elif free.ratio is None:
            row.note = LOST
        rows.append(row)
        before = tap
    judged = [row.name for row in rows if row.local is not None and row.local.ratio is not None]
    for row in rows:
        if row.local is not None and row.local.ratio is None and not any(n.startswith(f"{row.name}/") for n in judged):
            row.verdict, row.note = "different", f"nothing in it could be judged: its noise in {precision} is too large"
    return rows


def not_finite(reference: np.ndarray, candidate: np.ndarray) -> str:
    """Return a note about an output with infinite or NaN values: in both sides, in one, or on the same inputs."""
    sides = {"reference": reference, "candidate": candidate}
    counts = {side: array.size - int(np.isfinite(array.astype(np.float64)).sum()) for side, array in sides.items()}
    if all(counts.values()):
        numbers = " and ".join(f"{count} of {sides[side].size} of the {side}" for side, count in counts.items())
        return f"not finite: overflow in both sides, which says nothing of either ({numbers} values)"
    for side, count in counts.items():
        if count:
            return f"not finite: {count} of {sides[side].size} values of the {side} alone"
    return "not finite on the reference's own inputs"


def hands_on(run: Pass, tap: str) -> bool:
    """Tell whether a module's output is its first input, bit for bit: the other side then needs none."""
    call = run.calls.get(tap)
    value = call.args[0] if call is not None and call.args else None
    return isinstance(value, np.ndarray) and same_bits(value, run.outputs[tap])


def excuse_amplified(rows: list[Row]) -> None:
    """Turn rows to 'same' whose error is amplified rounding: at most AMPLIFIED times its budget.

    This needs every tap on both sides and, on the reference's own inputs, within its budget in every precision; a tap
    stack or a layer may exceed it STACKED times where all inside it are within theirs, since it amplifies their
    rounding. And no float64 error is more than AMPLIFIED times over its budget, as wrong wiring is.
    """
    taps = [row for row in rows if row.section == "taps" and not row.note.startswith(NOTHING)]
    exact = [row for row in rows if row.precision == "float64" and not row.note.startswith(NOTHING)]
    modules = {parent for row in taps for parent in _parents(row.name)}
    stacks = {parent for name in modules for parent in _parents(name)}
    if any(row.local is None or _over_within(row, stacks) for row in taps):
        return
    if not exact or not all(within(row.free, AMPLIFIED) for row in exact):
        return
    for row in rows:
        ratios = [m.ratio for m in (row.free, row.local) if m is not None and m.ratio is not None]
        worst = max(ratios, default=0.0)
        if row.verdict == "different" and 1.0 < worst <= AMPLIFIED:
            row.verdict = "same"
            row.note = f"{GREW} to {worst:.1f} budgets: every module is right on its own inputs"


def _parents(tap: str) -> list[str]:
    parts = tap.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _over_within(row: Row, stacks: set[str]) -> bool:
    """Return whether a tap's local error is over what a module may have: more if whole modules are inside."""
    limit = STACKED if row.name in stacks else 1.0
    return over(row.local) and not within(row.local, limit)


def amplification(tap: str, run: Pass, other: Pass, targets: np.ndarray | None) -> float | None:
    """Return a tap's relative error over the largest one of its inputs, free-running; None if the inputs are equal."""
    if tap not in run.calls or tap not in other.calls:
        return None

    def error(a: np.ndarray, b: np.ndarray) -> float:
        difference = measure(real_rows(tap, a, targets), real_rows(tap, b, targets))
        return difference.rms / difference.size if difference.size else 0.0

    pairs = [
        (a, b)
        for a, b in zip(run.calls[tap].args, other.calls[tap].args)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind == "f" and a.shape == b.shape
    ]
    incoming = max((error(a, b) for a, b in pairs), default=0.0)
    outgoing = error(run.outputs[tap], other.outputs[tap])
    return outgoing / incoming if incoming > 0.0 and np.isfinite(outgoing) else None


def compare_logits(reference: Trace, candidate: Trace, precision: str) -> list[Row]:
    """Compare the logits in one precision: one row, with the number of positions whose best token differs."""
    run, other = reference.passes[precision], candidate.passes[precision]
    if run.logits.shape != other.logits.shape:
        note = f"shape {run.logits.shape} against {other.logits.shape}"
        return [Row("logits", "logits", "different", precision, note=note)]
    low_name = next(name for name in reference.passes if name != "float64") if precision == "float64" else precision
    targets = reference.inputs.get("decoder_target_tokens")
    truth = reference.passes["float64"].logits
    real = np.ones(truth.shape[:-1], bool) if targets is None else targets > 0
    noise = (reference.passes[low_name].logits - truth)[real] * (EPSILON[precision] / EPSILON[low_name])
    free = judge_short(truth[real], other.logits[real], noise, precision)
    moved = int((run.logits[real].argmax(-1) != other.logits[real].argmax(-1)).sum())
    note = f"best token differs at {moved} of {plural(int(real.sum()), 'position')}"
    if free.ratio is None:
        note += f"; {LOST}"
    return [Row("logits", "logits", "different" if over(free) else "same", precision, free, note=note)]
