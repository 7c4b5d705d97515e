"""Two traces to a verdict: are they comparable, where do they first differ, and is it rounding?

Needs neither framework. Nothing is cut, transposed or skipped to fit, and NaN never passes.

Budgets are measured, not guessed. Written for one tap, with r the reference, c the candidate, 64 and 32 the precision:
    noise = r32 - r64                      what float32 costs the reference itself on this tap, with these inputs
    limit = FACTOR * noise + FLOOR * eps   for c32 - r64; in float64 the same times eps64 / eps32, for c64 - r64
once for the root mean square and once for the largest element, the worse ratio counts. Free-running errors are judged
so and, against the module's exact output on the same inputs, local errors too: the first tap whose *local* error is
over its limit is where the twins part; later excesses are inherited.
"""

import dataclasses
from typing import Any

import numpy as np

from parity.trace.trace import Pass, Trace, digest, dtype_of, same_bits

SAME, DIFFERENT, REFUSED, BAD_INPUT = 0, 1, 2, 3
VERDICTS = ("same", "different", "refused", "bad input")

# unit roundoff; tf32 is that of the 10 bits that go into a product
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-9}
# bits behind the point that a product of numbers in [1, 2) must keep, as read back by trace.product_bits
PRODUCT_BITS = {"float64": 52, "float32": 23, "tf32": 10, "bfloat16": 7}
# how far apart two right implementations may round: clean pairs reach about half (tests/parity/compare/test_budget.py)
FACTOR = {"rms": 4.0, "max": 8.0}
FLOOR = {"rms": 4.0, "max": 16.0}
# where no module is over its own budget, what runs free may be this many times over: softmaxes near a tie amplify the
# roundings of one side more than those of the other (sharp networks: 1.5 times), and wrong wiring shows a thousandfold
AMPLIFIED = 8.0
# a limit above this share of the tap's largest value is no limit: something is wrong with the reference itself
CAP = {"float64": 1e-9, "float32": 1e-2, "tf32": 0.5, "bfloat16": 0.5}
# precisions in which a network's own noise can reach the size of its activations
SHORT = ("tf32", "bfloat16")
# what stands between an array's name and the side that was held against the checkpoint
AGAINST = " against the checkpoint: "
# what the section 'original' is called in sentences
ORIGINAL = "the original (the published MT3 that --oracle names)"
# what a row says then
GREW = "rounding, amplified"
LOST = "judged module by module: in this precision the reference's own noise is as large as the values"


@dataclasses.dataclass
class Measure:
    """How far one array is from another, and how far it may be.

    Attributes:
        max_abs: largest absolute difference.
        rms: root mean square of the difference.
        size: root mean square of the reference.
        largest: largest absolute value of the reference.
        max_rel: largest difference relative to its own element.
        needed: the smallest t at which |a - b| <= t + t * |b| holds everywhere (numpy.allclose, atol = rtol = t).
        ratio: error in multiples of the budget; 1 is the limit; None where nothing could be judged (judge_short).
        values: how many numbers were compared.
    """

    max_abs: float
    rms: float
    size: float
    largest: float
    max_rel: float
    needed: float
    values: int
    ratio: float | None = None

    @property
    def relative(self) -> float:
        """Largest difference as a share of the reference's largest value."""
        return self.max_abs / self.largest if self.largest else (0.0 if self.max_abs == 0.0 else float("inf"))


@dataclasses.dataclass
class Row:
    """One thing that was compared.

    Attributes:
        section: 'comparability', 'weights', 'taps', 'logits', 'tokens', 'notes', 'decode path', 'gradients', …
        name: the array's or tap's name.
        verdict: 'same', 'different', 'refused' or 'skipped'; a skipped row makes the whole run fail.
        precision: of the pass, where there is one.
        free: the free-running error.
        local: the error of the module alone, fed the reference's inputs.
        amplification: relative error going out over relative error coming in, free-running.
        note: one sentence for people.
        only: 'reference' or 'candidate' where the other side has no such thing, so that nothing was compared.
    """

    section: str
    name: str
    verdict: str
    precision: str = ""
    free: Measure | None = None
    local: Measure | None = None
    amplification: float | None = None
    note: str = ""
    only: str = ""


@dataclasses.dataclass
class Report:
    """Everything that a run found out; the verdict follows from the rows.

    Attributes:
        rows: in the order in which they were compared; taps in execution order.
        refusals: reasons why no verdict is given.
        sides: environment and pass modes of both sides.
        facts: other things worth knowing (inputs, coverage, replay command, seconds).
        causes: sentences of the doctor: what is wrong where the sides part, with the evidence.
        worst: the tap that is nearest its limit or farthest over it: (name, precision, counts, edges) of a histogram
            of its errors relative to its largest value, per power of ten; the first count is of what is equal.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    refusals: list[str] = dataclasses.field(default_factory=list)
    sides: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    causes: list[str] = dataclasses.field(default_factory=list)
    worst: tuple[str, str, list[int], list[float]] | None = None

    @property
    def exit_code(self) -> int:
        """0 same, 1 different, 2 refused; nothing compared is refused, a skipped row is different."""
        if self.refusals or not any(row.verdict in ("same", "different") for row in self.rows):
            return REFUSED
        return SAME if all(row.verdict == "same" for row in self.rows) else DIFFERENT

    @property
    def verdict(self) -> str:
        """'same', 'different' or 'refused'."""
        return VERDICTS[self.exit_code]

    @property
    def first_difference(self) -> Row | None:
        """Where the sides part: wrong weights, else the first local excess (float64 first), else the first bad row."""
        bad = [row for row in self.rows if row.verdict != "same"]
        for row in bad:
            if row.section == "weights":
                return row
        for precision in sorted({row.precision for row in bad}, key=lambda p: EPSILON.get(p, 1.0)):
            for row in bad:
                if row.section == "taps" and row.precision == precision and over(row.local):
                    return row
        return bad[0] if bad else None

    @property
    def differing(self) -> list[str]:
        """The sections in which something is not the same, as sentences name them."""
        sections = dict.fromkeys(row.section for row in self.rows if row.verdict != "same")
        return [ORIGINAL if section == "original" else section for section in sections]

    def coverage(self) -> dict[str, str]:
        """Per section: '118 of 118 compared, 0 skipped', of what the reference has.

        An array counts once, though it is also held against the checkpoint; a tap once per precision.
        """
        found = {}
        for section in dict.fromkeys(row.section for row in self.rows):
            things: dict[tuple[str, str], list[Row]] = {}
            for row in self.rows:
                if row.section == section:
                    name = row.name.split(AGAINST)[0] if section == "weights" else row.name
                    things.setdefault((name, row.precision), []).append(row)
            extra = sum(any(row.only == "candidate" for row in rows) for rows in things.values())
            skipped = sum(any(row.verdict == "skipped" for row in rows) for rows in things.values())
            absent = sum(any(row.only == "reference" for row in rows) for rows in things.values())
            total = len(things) - extra
            found[section] = f"{total - skipped - absent} of {total} compared, {skipped} skipped"
            if extra:
                found[section] += f", {extra} of the candidate alone"
        return found


def over(measure: Measure | None) -> bool:
    """Whether an error was judged and is over its budget; NaN is."""
    return measure is not None and measure.ratio is not None and not measure.ratio <= 1.0


def measure(reference: np.ndarray, candidate: np.ndarray) -> Measure:
    """The differences of two arrays of one shape, computed in float64.

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    if a.size == 0:
        return Measure(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Measure(*[float("nan")] * 6, a.size)
    difference = np.abs(b - a)
    absolute = np.abs(a)
    size, largest = _rms(a), float(absolute.max())
    max_abs = float(difference.max())
    if max_abs == 0.0:
        return Measure(0.0, 0.0, size, largest, 0.0, 0.0, a.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        max_rel = float(np.nanmax(difference / absolute))
    needed = float((difference / (1.0 + absolute)).max())
    return Measure(max_abs, _rms(difference), size, largest, max_rel, needed, a.size)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def judge(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str) -> Measure:
    """Measures candidate against truth and sets the ratio to its budget.

    Args:
        truth: the reference's float64 values.
        candidate: the values to judge.
        noise: what rounding cost the reference, elementwise, already scaled to `precision`.
        precision: whose epsilon the floor is made of.
    """
    found = measure(truth, candidate)
    if found.values == 0:
        found.ratio = 0.0
        return found
    if not np.isfinite(found.max_abs) or not np.isfinite(noise).all():
        found.ratio = float("inf")
        return found
    epsilon = EPSILON[precision]
    cap = CAP[precision] * found.largest
    limits = {
        "rms": FACTOR["rms"] * _rms(noise) + FLOOR["rms"] * epsilon * found.size,
        "max": FACTOR["max"] * float(np.abs(noise).max()) + FLOOR["max"] * epsilon * found.largest,
    }
    errors = {"rms": found.rms, "max": found.max_abs}
    found.ratio = max(_ratio(errors[kind], min(limits[kind], cap)) for kind in limits)
    return found


def judge_short(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str) -> Measure:
    """judge, but the ratio is None where a short precision leaves nothing to judge.

    Sharp softmaxes turn bfloat16's rounding into other outputs altogether: where the limit that the reference's noise
    gives is as large as its values, two right sides can be as far apart as wrong ones, and only the local errors of
    the modules inside say something.
    """
    found = judge(truth, candidate, noise, precision)
    lost = precision in SHORT and found.values and FACTOR["max"] * np.abs(noise).max() > found.largest
    # what is many times larger than the values is not rounding
    if lost and found.max_abs <= FACTOR["max"] * found.largest:
        found.ratio = None
    return found


def _ratio(error: float, limit: float) -> float:
    if error == 0.0:
        return 0.0
    return error / limit if limit > 0.0 else float("inf")


def real_rows(tap: str, array: np.ndarray, targets: np.ndarray | None) -> np.ndarray:
    """The values of a tap at positions that are not masked.

    A masked query sees every key through the same -1e10, which float32 and float64 round to different things, so
    those rows say nothing. Only taps of the decoder that have the decoder's positions on an axis are concerned.

    Args:
        tap: its name.
        array: (b, l, …), or (b, h, l, k) for attention weights.
        targets: (b, l), 0 where masked; None if nothing is.
    """
    if targets is None or not tap.startswith("decoder") or tap.endswith("positions"):
        return array
    if "encoder_decoder_attention/" in tap and tap.endswith(("/key", "/value")):
        return array
    real = targets > 0
    if array.ndim == 4 and array.shape[0] == real.shape[0] and array.shape[2] == real.shape[1]:
        return np.moveaxis(array, 2, 1)[real]
    if array.shape[:2] == real.shape:
        return array[real]
    return array


def comparability(reference: Trace, candidate: Trace) -> tuple[list[Row], list[str]]:
    """Rows for what both sides were given and how they computed, and the reasons to refuse a verdict, if any."""
    rows, reasons = [], []

    def check(name: str, fine: bool, note: str, reason: str) -> None:
        rows.append(Row("comparability", name, "same" if fine else "refused", note=note if fine else reason))
        if not fine:
            reasons.append(reason)

    for name in sorted(reference.inputs.keys() | candidate.inputs.keys()):
        a, b = reference.inputs.get(name), candidate.inputs.get(name)
        if a is None or b is None:
            check(f"input {name}", False, "", f"only one side was given the input {name}")
        else:
            same = same_bits(a, b)
            reason = f"the sides were given different {name}: {_describe(a)} and {_describe(b)}"
            check(f"input {name}", same, f"same bytes, {_describe(a)}", reason)
    config = _differing(reference.config, candidate.config)
    check("config", not config, "equal", f"the configs differ: {'; '.join(config)}")
    a, b = list(reference.passes), list(candidate.passes)
    check("passes", a == b, ", ".join(a), f"different precisions were recorded: {', '.join(a)} and {', '.join(b)}")
    check(
        "float64 pass",
        "float64" in a,
        "budgets come from it",
        "no float64 pass was recorded, so there is nothing to derive budgets from; record with float64",
    )
    if "float64" in a and a == ["float64"]:
        check("float32 pass", False, "", "only float64 was recorded: budgets need a float32 or bfloat16 pass beside it")
    for precision in [p for p in a if p in b]:
        one, other = reference.passes[precision], candidate.passes[precision]
        for side, run in ((reference, one), (candidate, other)):
            label = f"{side.framework} {precision}"
            check(
                f"{label}: capture",
                run.capture_is_neutral,
                "logits bitwise the same with and without",
                f"{label}: observing changed the logits",
            )
            wrong = wrong_mode(run)
            check(f"{label}: precision", not wrong, _mode(run), f"{label}: {'; '.join(wrong)}")
        others = (one.mode.get("other dtypes"), other.mode.get("other dtypes"))
        check(
            f"{precision}: dtypes",
            others[0] == others[1],
            f"{len(one.outputs)} taps in {precision}, except {_listing(others[0] or {})}",
            f"{precision}: the sides computed in different dtypes: "
            f"{_listing(others[0] or {})} against {_listing(others[1] or {})}",
        )
        masks = (_masks(one), _masks(other))
        check(
            f"{precision}: masks",
            masks[0] == masks[1],
            f"{len(masks[0])} masks, same bytes" if masks[0] else "no masks",
            f"{precision}: the masks differ, first at {_first_difference(*masks)}",
        )
    return rows, reasons


def wrong_mode(run: Pass) -> list[str]:
    """What a pass's precision switches, as read back, forbid; empty if it computed in the precision it claims."""
    mode, wrong = run.mode, []
    dtype, tf32 = dtype_of(run.precision), run.precision == "tf32"
    if mode.get("inputs") not in (None, [], [dtype]):
        wrong.append(f"the inputs were {' and '.join(mode['inputs'])}")
    bits = mode.get("product_bits", None if tf32 else PRODUCT_BITS.get(run.precision))
    if bits != PRODUCT_BITS.get(run.precision):
        found = "nobody read back how many bits" if bits is None else f"{bits} bits"
        wrong.append(f"{found} went into a product, not {PRODUCT_BITS[run.precision]}")
    if "jax_enable_x64" in mode and mode["jax_enable_x64"] != (run.precision == "float64"):
        wrong.append(f"jax_enable_x64 was {mode['jax_enable_x64']}")
    switches = ("tensorfloat32",) if tf32 else ("highest", "float32")
    if mode.get("jax_default_matmul_precision", switches[0]) not in switches:
        wrong.append(f"jax_default_matmul_precision was {mode['jax_default_matmul_precision']}")
    if mode.get("float32_matmul_precision", "highest") != "highest" and not tf32:
        wrong.append(f"torch's float32 matmul precision was {mode['float32_matmul_precision']}")
    if mode.get("allow_tf32", tf32) != tf32:
        wrong.append("TF32 was not allowed" if tf32 else "TF32 was allowed")
    if mode.get("autocast"):
        wrong.append("autocast was on")
    if mode.get("deterministic") is False:
        wrong.append("torch was not deterministic")
    strangers = [
        f"{name} in {found}"
        for name, found in mode.get("other dtypes", {}).items()
        if not (name.endswith("positions") and found == "float32")
        and not (run.precision == "bfloat16" and found == "float32")
    ]
    if strangers:
        wrong.append(f"not everything was {run.precision}: {', '.join(strangers[:3])} ({len(strangers)} in all)")
    return wrong


def _mode(run: Pass) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.mode.items() if key != "other dtypes")


def _listing(named: dict[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in list(named.items())[:4]) or "nothing"


def _masks(run: Pass) -> dict[str, str]:
    return {
        tap: digest(value)
        for tap, call in run.calls.items()
        for value in call.args
        if isinstance(value, np.ndarray) and value.dtype == bool
    }


def _first_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    return next((key for key in [*a, *b] if a.get(key) != b.get(key)), "nowhere")


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {digest(array)[:12]}"


def _differing(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in [*a, *(key for key in b if key not in a)]:
            found += _differing(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        return found
    a, b = (list(x) if isinstance(x, tuple) else x for x in (a, b))
    return [] if a == b else [f"{path} is {a!r} and {b!r}"]


def compare_weights(reference: dict[str, list], candidate: dict[str, list]) -> list[Row]:
    """A row per array name of either side: bit for bit after each side's declared transform, or different."""
    rows = []
    for name in [*reference, *(name for name in candidate if name not in reference)]:
        a, b = reference.get(name), candidate.get(name)
        only = "candidate" if a is None else "reference" if b is None else ""
        if only:
            note = f"only the {only} has it"
        elif a[:2] != b[:2]:
            note = f"{a[0]} {tuple(a[1])} against {b[0]} {tuple(b[1])}"
        else:
            note = "" if a[2] == b[2] else "other values"
        rows.append(Row("weights", name, "different" if note else "same", note=note, only=only))
    return rows


def compare_taps(reference: Trace, candidate: Trace, precision: str) -> list[Row]:
    """A row per tap of either side in execution order: free-running and local error in multiples of their budgets."""
    truth, run, other = reference.passes["float64"], reference.passes[precision], candidate.passes[precision]
    low_name = next(name for name in reference.passes if name != "float64") if precision == "float64" else precision
    low = reference.passes[low_name]
    scale = EPSILON[precision] / EPSILON[low_name]
    targets = reference.inputs.get("decoder_target_tokens")
    rows: list[Row] = []
    culprits: list[str] = []
    for tap in [*run.outputs, *(tap for tap in other.outputs if tap not in run.outputs)]:
        if tap not in run.outputs or tap not in other.outputs:
            only = "reference" if tap in run.outputs else "candidate"
            missing = candidate.framework if tap in run.outputs else reference.framework
            rows.append(Row("taps", tap, "different", precision, note=f"{missing} has no such tap", only=only))
            continue
        a, b = run.outputs[tap], other.outputs[tap]
        if a.shape != b.shape:
            rows.append(Row("taps", tap, "different", precision, note=f"shape {a.shape} against {b.shape}"))
            continue
        absent = [
            name
            for name, found in (("local", other.local), ("exact", low.exact), ("float64", truth.outputs))
            if tap not in found
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
            row.note = "not finite"
        elif over(local):
            inside = next((name for name in culprits if name.startswith(f"{tap}/")), None)
            row.note = f"local: contains {inside}" if inside else "local: differs on the reference's own inputs"
            culprits.append(tap)
        elif over(free):
            row.note = "inherited: right on the reference's inputs"
        elif free.ratio is None:
            row.note = LOST
        rows.append(row)
    judged = [row.name for row in rows if row.local is not None and row.local.ratio is not None]
    for row in rows:
        if row.local is not None and row.local.ratio is None and not any(n.startswith(f"{row.name}/") for n in judged):
            row.verdict, row.note = "different", f"nothing in it could be judged: its noise in {precision} is too large"
    return rows


def excuse_amplified(rows: list[Row]) -> None:
    """Makes rows the same whose free-running error is rounding that grew: at most AMPLIFIED times its budget.

    Only where nothing else can have caused it: every tap is there on both sides and, on the reference's own inputs,
    within its budget in every precision; and nothing in float64 is more than AMPLIFIED times over, as wrong wiring is.
    """
    taps = [row for row in rows if row.section == "taps"]
    exact = [row for row in rows if row.precision == "float64"]
    if any(row.local is None or over(row.local) for row in taps):
        return
    if not exact or not all(row.free is not None and row.free.ratio <= AMPLIFIED for row in exact):
        return
    for row in rows:
        if row.verdict == "different" and over(row.free) and row.free.ratio <= AMPLIFIED:
            row.verdict = "same"
            row.note = f"{GREW} to {row.free.ratio:.1f} budgets: every module is right on its own inputs"


def amplification(tap: str, run: Pass, other: Pass, targets: np.ndarray | None) -> float | None:
    """Relative error of a tap over the largest relative error among its inputs, free-running; None if none came in."""
    if tap not in run.calls or tap not in other.calls:
        return None

    def error(a: np.ndarray, b: np.ndarray) -> float:
        found = measure(real_rows(tap, a, targets), real_rows(tap, b, targets))
        return found.rms / found.size if found.size else 0.0

    pairs = [
        (a, b)
        for a, b in zip(run.calls[tap].args, other.calls[tap].args)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind == "f" and a.shape == b.shape
    ]
    coming = max((error(a, b) for a, b in pairs), default=0.0)
    going = error(run.outputs[tap], other.outputs[tap])
    return going / coming if coming > 0.0 and np.isfinite(going) else None


def compare_logits(reference: Trace, candidate: Trace, precision: str) -> list[Row]:
    """One row: the logits in one precision, with the share of positions whose best token is another one."""
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
    note = f"best token differs at {moved} of {int(real.sum())} positions"
    if free.ratio is None:
        note += f"; {LOST}"
    return [Row("logits", "logits", "different" if over(free) else "same", precision, free, note=note)]


def compare(reference: Trace, candidate: Trace) -> Report:
    """The report on two traces: comparability first, then weights, taps and logits in every precision."""
    report = Report(sides={"reference": _side(reference), "candidate": _side(candidate)})
    rows, reasons = comparability(reference, candidate)
    report.rows += rows
    report.refusals += reasons
    if not reference.weights or not candidate.weights:
        report.refusals.append("no weights were recorded")
    report.rows += compare_weights(reference.weights, candidate.weights)
    if report.refusals:
        return report
    for precision in sorted(reference.passes, key=EPSILON.get):
        report.rows += compare_taps(reference, candidate, precision)
        report.rows += compare_logits(reference, candidate, precision)
    excuse_amplified(report.rows)
    report.worst = _worst_tap(report.rows, reference, candidate)
    return report


def _worst_tap(rows: list[Row], reference: Trace, candidate: Trace) -> tuple[str, str, list[int], list[float]] | None:
    judged = [row for row in rows if row.section == "taps" and row.free is not None and np.isfinite(row.free.max_abs)]
    row = max(judged, key=lambda row: max(row.free.ratio or 0.0, row.local.ratio or 0.0), default=None)
    if row is None:
        return None
    targets = reference.inputs.get("decoder_target_tokens")
    truth, found = (
        real_rows(row.name, trace.passes[precision].outputs[row.name], targets).astype(np.float64)
        for trace, precision in ((reference, "float64"), (candidate, row.precision))
    )
    difference = np.abs(found - truth).reshape(-1) / (row.free.largest or 1.0)
    decades = np.ceil(np.log10(difference[difference > 0.0])).clip(-17, 2)
    bounds = (int(decades.min()), int(decades.max())) if len(decades) else (-16, -16)
    edges = [float(e) for e in range(bounds[0], bounds[1] + 1)]
    counts = [int((difference == 0.0).sum()), *(int((decades == edge).sum()) for edge in edges)]
    return row.name, row.precision, counts, [-np.inf, *edges]


def _side(trace: Trace) -> dict[str, Any]:
    return {
        "framework": trace.framework,
        "environment": trace.environment,
        "created": trace.created,
        "modes": {precision: run.mode for precision, run in trace.passes.items()},
    }
