"""The benchmark of `parity mutants --family yourmt3`: faults planted in small networks of every architecture.

Every mutant is the PyTorch twin with one fault (yourmt3_faults.py); the reference is the Flax twin, or the PyTorch twin
where nothing is to be compiled; weights, inputs and sites are seeded.
"""

import importlib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.io.plural import plural
from mt3_common.yourmt3_config import YourMT3Settings
from parity.compare.comparability import comparability
from parity.compare.results import Report
from parity.compare.routing import compare_routing, excuse_ties
from parity.compare.taps import compare_logits, compare_taps, excuse_amplified
from parity.compare.traces import compare_weights
from parity.diagnosis import yourmt3_frontend
from parity.diagnosis.yourmt3 import name_faults
from parity.mutation.mutants import Outcome, Record
from parity.mutation.yourmt3_faults import kinds
from parity.mutation.yourmt3_frontends import FRONT_ENDS, planted_frames
from parity.mutation.yourmt3_kinds import BEHAVIOUR, EQUIVALENT, Kind
from parity.mutation.yourmt3_networks import MELSPEC, NETWORKS, SPEC, random_checkpoint, random_settings
from parity.trace.trace import Trace

PRECISIONS = ("float64", "float32")
FRONT_END = "front end"
# sites of a kind at most
SITES = 3
# positions of the decoder; frames are as many as the settings say
LENGTH = 20
# largest difference of frames that is no fault, as in compare/frontend_yourmt3.py
SAME_FRAMES = 1e-8


class Bench:
    """A twin with random arrays as the reference, and what is needed to judge candidates against it.

    Attributes:
        checkpoint: of both sides.
        reference: its trace.

    Args:
        framework: of the reference.
    """

    def __init__(self, settings: YourMT3Settings, seed: int, name: str, framework: str = "jax"):
        from parity.sides import record

        self.name, self.seed, self.settings = name, seed, settings
        self.checkpoint = random_checkpoint(settings, seed)
        self.inputs = bench_inputs(settings, seed)
        side = importlib.import_module(f"parity.sides.yourmt3_{framework}").Side(self.checkpoint)
        self.reference = record.record(side, self.inputs, PRECISIONS)

    def trace(self, kind: Kind | None, site: str) -> tuple[Trace, dict[str, np.ndarray]]:
        """Return the candidate's trace and its arrays."""
        from parity.sides import record, yourmt3_torch

        class Planted(yourmt3_torch.Side):
            """The twin; every copy of it for a precision gets the fault."""

            def cast(self, precision: str):
                network = super().cast(precision)
                if kind is not None and kind.group in (BEHAVIOUR, EQUIVALENT):
                    kind.plant(network, site)
                return network

        side = Planted(self.checkpoint)
        if kind is not None and kind.group not in (BEHAVIOUR, EQUIVALENT):
            kind.plant(side.model, site)
        return record.record(side, self.inputs, PRECISIONS, reference=self.reference), side.arrays()

    def sites(self, kind: Kind) -> list[str]:
        """Return the taps where a kind is planted, drawn with the seed."""
        possible = kind.sites(list(self.reference.passes["float64"].outputs))
        order = np.random.default_rng([self.seed, len(kind.name)]).permutation(len(possible))
        return [possible[number] for number in order]

    def judge(self, kind: Kind | None, site: str = "") -> list[Outcome]:
        """Return the verdicts of the harness and the diagnosis, an outcome per precision; None is a clean pair."""
        candidate, arrays = self.trace(kind, site)
        _, refusals = comparability(self.reference, candidate)
        weights = compare_weights(self.reference.weights, candidate.weights)
        report = Report()
        for precision in PRECISIONS:
            report.rows += compare_taps(self.reference, candidate, precision)
            report.rows += compare_logits(self.reference, candidate, precision)
        report.rows += compare_routing(self.reference, candidate, self.settings.network)
        excuse_amplified(report.rows)
        excuse_ties(report, self.reference, candidate, self.settings.network)
        outcomes = []
        for precision in PRECISIONS:
            rows = [row for row in report.rows if row.precision == precision]
            same = all(row.verdict == "same" for row in [*weights, *rows])
            run, truth = candidate.passes[precision], self.reference.passes[precision].logits
            outcome = Outcome("clean", "clean", site, self.seed, self.name, precision)
            outcome.harness = "refused" if refusals else "same" if same else "different"
            outcome.logits_error = float(np.abs(run.logits - truth).max() / np.abs(truth).max())
            findings = name_faults(run, self.inputs, arrays, self.checkpoint.arrays, self.settings)
            outcome.detected = outcome.harness != "same" or bool(findings)
            if findings:
                outcome.blamed, outcome.cause = findings[0].site, findings[0].cause
            if kind is not None:
                outcome.kind, outcome.group = kind.name, kind.group
                outcome.localised = any(kind.accepts(site, blamed) for f in findings[:1] for blamed in f.sites)
                outcome.named = bool(findings) and re.fullmatch(kind.causes, findings[0].cause) is not None
            outcomes.append(outcome)
        outcomes[1].invisible = not outcomes[1].detected and self._largest_change(candidate) < 2.0**-24
        return outcomes

    def _largest_change(self, candidate: Trace) -> float:
        """Return the largest change (root mean square, relative) of any module's output on the reference's inputs."""
        run, worst = candidate.passes["float64"], 0.0
        for tap, truth in self.reference.passes["float64"].outputs.items():
            output = run.local.get(tap)
            if output is None or output.shape != truth.shape:
                return math.inf
            worst = max(worst, float(np.linalg.norm(output - truth) / (np.linalg.norm(truth) or 1.0)))
        return worst


def bench_inputs(settings: YourMT3Settings, seed: int) -> dict[str, np.ndarray]:
    """Return frames in [0, 1] of two segments, of which one ends in silence, and drawn ids with the start in front."""
    random = np.random.default_rng([seed, 1])
    network = settings.network
    frames = random.random((2, network.num_frames, network.num_bins), np.float32)
    frames[1, -3:] = 0
    channels = (network.num_channels,) if network.decoder == "multi-t5" else ()
    tokens = random.integers(1, network.vocab_size, (2, *channels, LENGTH)).astype(np.int32)
    tokens[..., 0] = 0
    return {"frames": frames, "decoder_input_tokens": tokens}


def judge_front_ends(seed: int) -> list[Outcome]:
    """Return the outcomes of faults planted in the front ends, and of right ones."""
    outcomes = []
    for config in (SPEC, MELSPEC):
        front_end = FrontEnd(config)
        random = np.random.default_rng([seed, 2])
        samples = random.normal(0, 0.1, (2, config.input_frames)).astype(np.float32)
        # segments of other loudness, so that their ranges differ
        samples[1] *= 0.05
        truth = np.stack([front_end.frames(segment) for segment in samples])
        for fault in FRONT_ENDS:
            if config.codec not in fault.codecs:
                continue
            frames = planted_frames(front_end, samples, fault)
            is_clean = not fault.causes
            outcome = Outcome(fault.name, "clean" if is_clean else FRONT_END, "", seed, config.codec, "float64")
            outcome.logits_error = 0.0
            same = frames.shape == truth.shape and float(np.abs(frames - truth).max()) <= SAME_FRAMES
            outcome.harness, outcome.detected = ("same", False) if same else ("different", True)
            if not same:
                cause, _, _ = yourmt3_frontend.explain(front_end, samples, frames)
                outcome.blamed, outcome.cause, outcome.localised = FRONT_END, cause, True
                outcome.named = re.fullmatch(fault.causes, cause) is not None
            outcomes.append(outcome)
    return outcomes


def judge_all(
    seed: int,
    limit: int | None,
    record: Record,
    progress: Callable[[str], None] = lambda line: None,
    framework: str = "jax",
    num_sites: int = SITES,
) -> list[Outcome]:
    """Return the outcomes of all kinds, at up to `num_sites` sites each.

    Args:
        limit: kinds at most, spread over the table; None for all.
        record: of an earlier run.
        progress: is told how far it is.
        framework: of the reference.
    """
    chosen = kinds()
    if limit is not None:
        chosen = [chosen[number] for number in np.unique(np.linspace(0, len(chosen) - 1, limit).astype(int))]
    outcomes = judge_front_ends(seed)
    for network in dict.fromkeys(kind.network for kind in chosen):
        bench = Bench(NETWORKS[network], seed, network, framework)
        for kind in (kind for kind in chosen if kind.network == network):
            sites = bench.sites(kind)[:num_sites]
            if not sites:
                raise ValueError(f"the fault {kind.name!r} has no site in the network {network!r}")
            for site in sites:
                outcomes += record(kind.name, site, seed, network, lambda k=kind, s=site, b=bench: b.judge(k, s))
        progress(f"{network}: {plural(len(outcomes), 'outcome')}")
    return outcomes


def clean_pairs(count: int, record: Record, progress: Callable[[str], None] = lambda line: None) -> list[Outcome]:
    """Return the outcomes of pairs without a fault: other sizes and arrays each time, all architectures."""
    outcomes: list[Outcome] = []
    for number in range(count):
        seed = 1000 + number

        def judge(seed: int = seed) -> list[Outcome]:
            return Bench(random_settings(seed), seed, "clean").judge(None)

        outcomes += record("clean", "", seed, "clean", judge)
        progress(f"{number + 1} of {plural(count, 'clean pair')}")
    return outcomes


def summarise(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return counts and rates of outcomes, for the table and the JSON file."""
    clean = [outcome for outcome in outcomes if outcome.group == "clean"]
    equivalent = [outcome for outcome in outcomes if outcome.group == EQUIVALENT]
    planted = [outcome for outcome in outcomes if outcome.group not in ("clean", EQUIVALENT)]
    rows = {}
    for precision in PRECISIONS:
        group = [outcome for outcome in planted if outcome.precision == precision]
        visible = [outcome for outcome in group if not outcome.invisible]
        rows[precision] = {
            "kinds": len({outcome.kind for outcome in visible}),
            "mutants": len(visible),
            "by the harness alone": sum(outcome.harness != "same" for outcome in visible),
            "detected": sum(outcome.detected for outcome in visible),
            "localised": sum(outcome.localised for outcome in visible),
            "named": sum(outcome.named for outcome in visible),
            "invisible": len(group) - len(visible),
        }
    wrong = [o for o in planted if not o.invisible and not (o.detected and o.localised and o.named)]
    return {
        "table": rows,
        "clean pairs": len({o.seed for o in clean if o.size == "clean"}),
        "false alarms": sum(outcome.detected for outcome in clean),
        "equivalents": len(equivalent),
        "alarms of equivalents": sum(outcome.detected for outcome in equivalent),
        "wrong": wrong,
    }


def meets_targets(summary: dict[str, Any]) -> bool:
    """Return whether all mutants are detected, 99 % localised, 95 % named, and nothing else raised an alarm."""
    rows = list(summary["table"].values())
    total = sum(row["mutants"] for row in rows)
    return bool(
        sum(row["detected"] for row in rows) == total
        and sum(row["localised"] for row in rows) >= 0.99 * total
        and sum(row["named"] for row in rows) >= 0.95 * total
        and not summary["false alarms"]
        and not summary["alarms of equivalents"]
    )
