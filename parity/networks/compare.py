"""compare_modules: two networks of any framework to a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.compare.results import Report, Row, over
from parity.networks.causes import find_break, name_break, site_of
from parity.networks.names import NameMap, slashed
from parity.networks.network import Network, NetworkError, Weight, adapt, as_numpy, is_constant
from parity.networks.recording import Event
from parity.networks.taps import (
    TapPair,
    excuse,
    feeds,
    judge_arrays,
    leaf_names,
    match_arrays,
    names_shown,
    pair_taps,
    scale_between,
)
from parity.networks.weights import Cause, Pairing, compare_weights, pair_weights
from parity.trace.precision import EPSILON

# Relative error above which two values of one pass are different, where a cause is looked for.
APART = {"float64": 1e-10, "float32": 3e-6, "bfloat16": 0.1}


def compare_modules(
    reference: Any,
    candidate: Any,
    inputs: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    candidate_inputs: Mapping[str, Any] | None = None,
    precisions: Sequence[str] = ("float64", "float32"),
) -> Report:
    """Compare two networks: their weights, every module that both have, their outputs; and name what differs.

    Args:
        reference, candidate: a PyTorch module; (Flax module, variables or params); an nnx or Equinox module; (Haiku's
            transformed function, params[, state]); (function, parameters); a transformers model; an ONNX file, model or
            session. They are run in the mode (training or evaluation) in which they are given, on copies.
        inputs: name -> array, constant or tree of arrays. They are passed by name where a side's parameters have these
            names, else in this order. Floating ones follow the precision of the pass.
        names: reference name -> candidate name, where they differ: {'encoder.layers': 'enc.blocks'}, or regular
            expressions. What it leaves out is found by name, then by the content of the weights.
        candidate_inputs: what the candidate takes instead, where its layout differs: the same numbers, axes moved.
        precisions: 'float64' and at least one shorter one.

    Returns:
        A report: `verdict`, `causes` (sentences), `rows`, `facts`.

    Raises:
        NetworkError: a network is of no known kind, or does not run on the inputs, or these have no names.
        ValueError: the precisions or names are wrong.
    """
    if "float64" not in precisions or len(precisions) < 2 or any(name not in EPSILON for name in precisions):
        raise ValueError(f"precisions {', '.join(precisions)}: float64 and at least one of float32, bfloat16")
    for given in (inputs, candidate_inputs):
        if given is not None and not isinstance(given, Mapping):
            raise NetworkError(
                f"inputs are a {type(given).__name__}: give them by name, {{'x': array}}, in the order of the arguments"
            )
    return Comparison(reference, candidate, inputs, names, candidate_inputs, precisions).report()


class Comparison:
    """One comparison of two networks; `report` runs it."""

    def __init__(self, reference, candidate, inputs, names, candidate_inputs, precisions):
        self.networks: tuple[Network, Network] = (adapt(reference), adapt(candidate))
        given = {name: as_numpy(value) for name, value in inputs.items()}
        own = given if candidate_inputs is None else {n: as_numpy(v) for n, v in candidate_inputs.items()}
        self.inputs = (given, own)
        self.names = NameMap(names)
        self.precisions = tuple(sorted(precisions, key=EPSILON.__getitem__))
        self.low = next(name for name in self.precisions if name != "float64")
        self.notes: list[str] = []
        self.refusals: list[str] = []
        self.rows: list[Row] = []

    def report(self) -> Report:
        """Run both networks in every precision and judge them."""
        a, b = self.networks
        self.reference = {p: a.run(self.inputs[0], p) for p in self.precisions}
        self.candidate = {p: b.run(self.inputs[1], p) for p in self.precisions}
        self._check_inputs()
        self._check_repeatable()
        self._check_dropout()
        pairing = pair_weights(a.weights(), b.weights(), self.names)
        rows, causes, notes = compare_weights(pairing)
        self.notes += notes
        self.rows += rows
        exact = self.reference["float64"], self.candidate["float64"]
        self.pairs = pair_taps(*exact, self.names, pairing.modules())
        self._feed()
        for precision in self.precisions:
            self.rows += self._compare_taps(precision)
            self.rows += self._compare_outputs(precision)
        excuse([row for row in self.rows if row.section in ("taps", "logits")])
        self._excuse_composites()
        causes = _with_dtypes(causes + self._behaviour(pairing, causes), self._short_dtypes())
        return self._finish(causes)

    def _check_inputs(self) -> None:
        given, own = self.inputs
        self.rows.append(Row("comparability", "float64 pass", "same", note="budgets come from it"))
        for (name, a), (other, b) in zip(given.items(), own.items()):
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a is not b:
                same = a.size == b.size and np.array_equal(np.sort(a, axis=None), np.sort(b, axis=None))
                note = "the same numbers" if same else f"the sides are given different numbers as {name} and {other}"
                self.rows.append(Row("comparability", f"input {name}", "same" if same else "refused", note=note))
                if not same:
                    self.refusals.append(note)
        if all(is_constant(value) for value in given.values()):
            self.refusals.append("no array among the inputs")

    def _check_repeatable(self) -> None:
        for network, inputs, runs in zip(self.networks, self.inputs, (self.reference, self.candidate)):
            first, again = runs[self.low].outputs, network.run(inputs, self.low).outputs
            for x, y in zip(first, again):
                if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                    self.refusals.append(
                        f"{network.title} ({network.framework}) gives other outputs each time: dropout is active; "
                        "put it in evaluation mode"
                    )
                    return

    def _check_dropout(self) -> None:
        for network, runs in zip(self.networks, (self.reference, self.candidate)):
            events, kinds = runs["float64"].events, network.kinds()
            for event in events:
                kind = kinds.get(event.name.partition("#")[0])
                if event.part != "out" or kind is None or kind.sort != "dropout":
                    continue
                start = runs["float64"].find(event.name, "in")
                if start and start.arrays and event.arrays and not np.array_equal(start.arrays[0], event.arrays[0]):
                    self.refusals.append(
                        f"{network.title} ({network.framework}): dropout is active in {slashed(event.name)}; "
                        "put it in evaluation mode"
                    )
                    return

    def _feed(self) -> None:
        """Run the candidate's modules on the reference's inputs, and the reference's on its own in float64."""
        a, b = self.networks
        self.failures: dict[str, str] = {}
        for precision in self.precisions:
            arrays, failures = feeds(self.pairs, self.reference[precision], self.candidate[precision])
            self.failures |= failures
            if arrays:
                fed = b.run(self.inputs[1], precision, arrays)
                run = self.candidate[precision]
                run.local, run.inside = fed.local, fed.inside
                by_candidate = {pair.candidate: pair.reference for pair in self.pairs}
                self.failures |= {by_candidate[n]: why for n, why in fed.failures.items() if n in by_candidate}
        own = {event.name: event.arrays for event in self.reference[self.low].events if event.part == "in"}
        self.exact = a.run(self.inputs[0], "float64", own).local if own else {}

    def _effective(self, precision: str) -> str:
        """Return the precision whose rounding a pass has: float32 where a side computes in it inside of float64."""
        runs = self.reference[precision], self.candidate[precision]
        if precision == "float64" and any("float32" in run.shorter for run in runs):
            return "float32"
        return precision

    def _compare_taps(self, precision: str) -> list[Row]:
        run, other = self.reference[precision], self.candidate[precision]
        truth, low = self.reference["float64"], self.reference[self.low]
        effective = self._effective(precision)
        scale = scale_between(effective, self.low)
        events = [{(e.name, e.part): e for e in r.events} for r in (truth, run, other, low)]
        rows: list[Row] = []
        for pair in self.pairs:
            a, b = (events[0].get((pair.reference, "out")), events[2].get((pair.candidate, "out")))
            c = events[3].get((pair.reference, "out"))
            if a is None or b is None or c is None or not a.arrays:
                continue
            matched = match_arrays(a.arrays, b.arrays)
            name = slashed(pair.reference)
            if not matched:
                shapes = [[x.shape for x in side.arrays] for side in (a, b)]
                if pair.leaf:
                    rows.append(
                        Row("taps", name, "different", precision, note=f"shape {shapes[0]} against {shapes[1]}")
                    )
                continue
            free = judge_arrays(a.arrays, b.arrays, c.arrays, effective, matched, scale)
            if free is None:
                continue
            local = self._local(pair, precision, effective, scale, a, c)
            row = Row("taps", name, "different" if over(free) or over(local) else "same", precision, free, local)
            if not np.isfinite(free.max_abs):
                row.note = "not finite"
            elif over(local):
                row.note = "local: differs on the reference's own inputs"
            elif over(free):
                row.note = "inherited: right on the reference's inputs" if local else ""
            if local is None and pair.reference in self.failures:
                row.note = "; ".join(
                    x for x in (row.note, f"judged without its local check: {self.failures[pair.reference]}") if x
                )
            rows.append(row)
            rows += self._compare_input(pair, precision, effective, scale, events)
        return rows

    def _local(self, pair: TapPair, precision: str, effective: str, scale: float, a: Event, c: Event):
        local = self.candidate[precision].local.get(pair.candidate)
        truth = a.arrays if precision == "float64" else self.exact.get(pair.reference)
        if local is None or truth is None:
            return None
        exact = self.exact.get(pair.reference, a.arrays)
        if [x.shape for x in exact] != [x.shape for x in c.arrays] or len(truth) != len(c.arrays):
            return None
        # the rounding of this module alone, added to the truth, stands for the reference's shorter pass
        low = [t + (short.astype(np.float64) - e) for t, short, e in zip(truth, c.arrays, exact)]
        return judge_arrays(truth, local, low, effective, match_arrays(truth, local), scale)

    def _compare_input(self, pair: TapPair, precision: str, effective: str, scale: float, events) -> list[Row]:
        """Return a row if a leaf's input differs: its output can hide that, for instance behind weights of zero."""
        a, b = events[0].get((pair.reference, "in")), events[2].get((pair.candidate, "in"))
        c = events[3].get((pair.reference, "in"))
        if not pair.leaf or a is None or b is None or c is None or not a.arrays or not b.arrays:
            return []
        matched = match_arrays(a.arrays[:1], b.arrays)
        free = judge_arrays(a.arrays, b.arrays, c.arrays, effective, matched, scale) if matched else None
        if not over(free):
            return []
        return [Row("taps", f"{slashed(pair.reference)} (input)", "different", precision, free)]

    def _compare_outputs(self, precision: str) -> list[Row]:
        a, b = self.reference["float64"].outputs, self.candidate[precision].outputs
        low = self.reference[self.low].outputs
        effective = self._effective(precision)
        matched = match_arrays(a, b)
        rows = []
        for number, array in enumerate(a):
            name = "output" if len(a) == 1 else f"output {number}"
            pair = next((entry for entry in matched if entry[0] == number), None)
            if pair is None:
                shapes = f"shape {array.shape} against {[x.shape for x in b]}"
                rows.append(Row("logits", name, "different", precision, note=shapes))
                continue
            free = judge_arrays(a, b, low, effective, [pair], scale_between(effective, self.low))
            if free is not None:
                note = "" if pair[2].axes is None else f"axes of the candidate: {pair[2].axes}"
                rows.append(Row("logits", name, "different" if over(free) else "same", precision, free, note=note))
        extra = len(b) - len(matched)
        if extra and precision == "float64":
            outputs = f"{extra} of the candidate's outputs, {len(b)} in all,"
            self.notes.append(f"{outputs} have no counterpart and were not compared")
        if not a and precision == "float64":
            self.refusals.append("the reference has no output array")
        return rows

    def _excuse_composites(self) -> None:
        """Drop rows of modules around others that differ although their parts, the weights and the outputs agree.

        Such a module returns something else under the same name (a tuple, a sum before its norm); what it computes is
        compared in its parts.
        """
        leaves = {slashed(pair.reference) for pair in self.pairs if pair.leaf}
        around = [r for r in self.rows if r.section == "taps" and r.verdict == "different" and r.name not in leaves]
        around = [row for row in around if not row.name.endswith(" (input)")]
        rest = [row for row in self.rows if row.section != "comparability" and all(row is not r for r in around)]
        if around and leaves and all(row.verdict == "same" for row in rest):
            for name in dict.fromkeys(row.name for row in around):
                self.notes.append(f"{name}: returns something else on each side; its parts and the outputs agree")
            self.rows = [row for row in self.rows if all(row is not other for other in around)]

    def _short_dtypes(self) -> list[Cause]:
        """Name modules of the candidate that compute in half precision where the reference does not."""
        causes = []
        differing = any(row.verdict == "different" for row in self.rows if row.section in ("taps", "logits"))
        for dtype in ("float16", "bfloat16"):
            own = self.candidate["float64"].shorter.get(dtype, [])
            if own and dtype not in self.reference["float64"].shorter:
                shown = ", ".join(slashed(name) or "the network itself" for name in own[:3]) + (
                    ", …" if len(own) > 3 else ""
                )
                text = f"computes in {dtype} although float64 is asked for"
                if differing:
                    causes.append(Cause(shown, f"{dtype} arithmetic", text, 0.0))
                else:
                    self.notes.append(f"{shown}: {text}")
        for run, network in ((self.reference, self.networks[0]), (self.candidate, self.networks[1])):
            if "float32" in run["float64"].shorter:
                where = ", ".join(slashed(name) or "its own code" for name in run["float64"].shorter["float32"][:3])
                self.notes.append(
                    f"{network.title} ({network.framework}) computes in float32 inside of the float64 pass ({where}): "
                    "that pass is judged by float32's budget"
                )
        return causes

    def _behaviour(self, pairing: Pairing, known: list[Cause]) -> list[Cause]:
        """Name what modules, and the code between them, do otherwise; weights that differ are named already."""
        bad = [row for row in self.rows if row.section in ("taps", "logits") and row.verdict == "different"]
        if not bad:
            return []
        precision = "float64" if any(row.precision == "float64" for row in bad) else self.low
        run, other = self.reference[precision], self.candidate[precision]
        names = {pair.reference: pair.candidate for pair in self.pairs}
        tolerance = APART[self._effective(precision)]
        weights: dict[str, dict[str, Weight]] = {}
        for pair in pairing.pairs:
            weights.setdefault(pair.reference.module, {})[pair.reference.leaf] = pair.reference
        excused = {cause.site.rpartition("/")[0] for cause in known}
        excused |= {slashed(weight.module) for weight in pairing.reference_only}
        partners = {pair.candidate.module: pair.reference.module for pair in pairing.pairs}
        excused |= {slashed(partners.get(weight.module, weight.module)) for weight in pairing.candidate_only}
        inputs = [(f"the input {name}", x) for name, x in self.inputs[0].items() if isinstance(x, np.ndarray)]
        kinds, effective = self.networks[0].kinds(), self._effective(precision)
        causes: list[Cause] = []
        sites: set[str] = set()
        paired = {slashed(pair.reference) for pair in self.pairs}

        def examine(scope: str, events: list[Event], own: list[Event], entered, ends) -> None:
            index = {(event.name, event.part): event for event in own}
            gap = find_break(events, index, names, tolerance, entered, ends)
            if gap is None:
                return
            site = site_of(gap, scope)
            around = slashed(gap.module if gap.part == "out" else scope).partition("#")[0]
            hidden = [name for name in excused if gap.part == "out" or name not in paired]
            if site in sites or any(name == around or (around and name.startswith(f"{around}/")) for name in hidden):
                return
            inner = gap.part == "out" and gap.module not in leaf_names(events) and gap.module in other.inside
            if inner and scope == "":
                return
            sites.add(site)
            cause = name_break(gap, scope, effective, kinds, weights)
            if cause.cause == "unknown" and gap.part != "out":
                settings = _constants(run.find(scope, "in"), other.find(names.get(scope, ""), "in"))
                if settings:
                    cause.cause = cause.text = settings
            causes.append(cause)

        examine("", run.events, other.events, inputs, (run.outputs, other.outputs))
        for pair in self.pairs:
            local, event = other.local.get(pair.candidate), run.find(pair.reference, "out")
            if local is None or event is None:
                continue
            inside = _inside(run.events, pair.reference)
            start = run.find(pair.reference, "in")
            entered = [] if start is None else [(f"the input of {slashed(pair.reference)}", x) for x in start.arrays]
            if inside:
                examine(pair.reference, inside, other.inside.get(pair.candidate, []), entered, (event.arrays, local))
            else:
                own = [Event(pair.candidate, "in", [x for _, x in entered]), Event(pair.candidate, "out", local)]
                examine("", [e for e in (start, event) if e is not None], own, [], None)
        return _gathered(causes, self.pairs)

    def _finish(self, causes: list[Cause]) -> Report:
        a, b = self.networks
        report = Report(rows=self.rows, refusals=self.refusals)
        for side, network, runs in (("reference", a, self.reference), ("candidate", b, self.candidate)):
            modes = {p: {"shorter": run.shorter} for p, run in runs.items()}
            report.sides[side] = {"framework": network.framework, "environment": network.environment(), "modes": modes}
        taken = {pair.reference for pair in self.pairs}, {pair.candidate for pair in self.pairs}
        for side, names, run in zip(("reference", "candidate"), taken, (self.reference, self.candidate)):
            alone = [e.name for e in run["float64"].events if e.part == "out" and e.name not in names]
            if alone:
                report.facts[f"modules of the {side} alone"] = [slashed(name) for name in dict.fromkeys(alone)]
        mapped = names_shown(self.pairs)
        if mapped:
            report.facts["modules under other names"] = mapped
        by_content = [slashed(row.name) for row in self.rows if row.section == "weights" and "content: " in row.note]
        if by_content:
            report.facts["arrays paired by their content, not by a name"] = by_content
        if self.notes:
            report.facts["notes"] = self.notes
        report.facts["findings"] = [
            {"site": c.site, "cause": c.cause, "text": c.text, "error": c.error} for c in causes
        ]
        if report.exit_code == 1:
            report.causes = [cause.sentence() for cause in causes]
        return report


def _with_dtypes(causes: list[Cause], dtypes: list[Cause]) -> list[Cause]:
    """Return causes with those of a shorter dtype, at the places that nothing else explains."""
    unknown = [cause for cause in causes if cause.cause == "unknown"]
    if not dtypes:
        return causes
    if unknown:
        dtypes[0].site = unknown[0].site
    return [cause for cause in causes if cause.cause != "unknown"] + dtypes


def _constants(a: Event | None, b: Event | None) -> str:
    """Return the numbers and flags among two calls' arguments, where they are not the same values."""
    if a is None or b is None or sorted(map(repr, a.constants.values())) == sorted(map(repr, b.constants.values())):
        return ""
    shown = [", ".join(f"{name}={value!r}" for name, value in event.constants.items()) for event in (b, a)]
    return f"called with {shown[0] or 'no constants'}; the reference with {shown[1] or 'none'}"


def _inside(events: Sequence[Event], name: str) -> list[Event]:
    """Return the events between a module's start and its end."""
    start = next((n for n, event in enumerate(events) if (event.name, event.part) == (name, "in")), None)
    end = next((n for n, event in enumerate(events) if (event.name, event.part) == (name, "out")), None)
    return [] if start is None or end is None else list(events[start + 1 : end])


def _gathered(causes: list[Cause], pairs: Sequence[TapPair]) -> list[Cause]:
    """Return causes with equal ones of several places as one, and unknown ones last."""
    groups: dict[str, list[Cause]] = {}
    for cause in causes:
        groups.setdefault(cause.cause if cause.cause != "unknown" else cause.site, []).append(cause)
    result = []
    for group in groups.values():
        first = group[0]
        if len(group) > 1:
            shown = ", ".join(cause.site for cause in group[1:3]) + (", …" if len(group) > 3 else "")
            first.text += f" (and in {len(group) - 1} more: {shown})"
        result.append(first)
    return sorted(result, key=lambda cause: cause.cause == "unknown")
