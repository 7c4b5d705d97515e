"""`parity mutants`: how many planted faults are detected, localised and named, and how many false alarms are raised.

Every mutant is the real PyTorch twin with one fault (faults.py); the reference is the Flax twin; weights, inputs
and sites are seeded. Beside our verdicts stand those of the gates that other projects publish, on the same mutants and
clean pairs.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.io import atomic
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from parity.mutation import processors
from parity.mutation.faults import BLAMED, Mutant, kinds, modules_like
from parity.sides import numpy_network

SIZES = {
    "small": NetworkConfig(
        emb_dim=48, num_heads=3, head_dim=16, mlp_dim=40, num_encoder_layers=2, num_decoder_layers=3
    ),
    "full": NetworkConfig(),
}
PRECISIONS = ("float64", "float32")
# sites per kind, where a kind has so many: at least 250 mutants of either size
SITES = {"small": 5, "full": 4}
CLEAN_PAIRS = 200


# --- the bench ---


@dataclasses.dataclass
class Outcome:
    """The outcome of one mutant in one precision.

    Attributes:
        kind, group, site, seed, size, precision: which mutant.
        harness: the harness's verdict: 'same', 'different' or 'refused'.
        detected: the harness or the diagnosis saw it.
        blamed: the first site that the diagnosis names.
        localised: that is the module in which the fault was planted.
        cause: what the diagnosis calls it.
        named: that is right.
        located_in_trace: from the taps alone, without the weights, the right module is named; for group 'weights'.
        invisible: nothing was detected in float32, and in float64 no module's output changes (root mean square) by
            more than float32's unit roundoff, 2^-24: every element's change is smaller than its own rounding.
        logits_error: relative, against the reference's logits.
        gates: published gate -> whether it passes the mutant as the same.
        isa: the processor's instructions: 'native' or 'avx2'.
    """

    kind: str
    group: str
    site: str
    seed: int
    size: str
    precision: str
    harness: str = ""
    detected: bool = False
    blamed: str = ""
    localised: bool = False
    cause: str = ""
    named: bool = False
    located_in_trace: bool = False
    invisible: bool = False
    logits_error: float = math.nan
    gates: dict[str, bool] = dataclasses.field(default_factory=dict)
    isa: str = processors.NATIVE


def expected_sites(mutant: Mutant, config: NetworkConfig) -> set[str]:
    """The modules that may be blamed for a mutant: the one in which it lies, or either of a pair."""
    name, site = mutant.kind.name, mutant.site
    if name == "layers exchanged":
        stack, _, number = site.rpartition("_")
        return {site, f"{stack}_{1 if number == '0' else 0}"}
    if name in BLAMED:
        return set(modules_like(BLAMED[name].format(site=site), config))
    return {site}


def mutants(size: str, seed: int = 0, sites: int | None = None) -> list[Mutant]:
    """Every kind at up to `sites` sites (SITES by default), drawn with a seed."""
    chosen = []
    sites = SITES[size] if sites is None else sites
    for number, kind in enumerate(kinds()):
        possible = kind.sites(SIZES[size])
        random = np.random.default_rng([seed, number])
        for site in random.permutation(len(possible))[:sites]:
            chosen.append(Mutant(kind, possible[site], seed))
    return chosen


def bench_inputs(config: NetworkConfig, seed: int, frames: int = 24, length: int = 20) -> dict[str, np.ndarray]:
    """Frames of which the last are zero, and tokens of all ranges with padding inside and at the end."""
    random = np.random.default_rng([seed, 1])
    frames_in = random.standard_normal((2, frames, config.input_depth)).astype(np.float32)
    frames_in[1, frames - frames // 4 :] = 0
    # the last id has no next one: see 'ids off by 1'
    targets = random.integers(1, config.vocab_size - 1, (2, length)).astype(np.int32)
    targets[:, 1] = config.vocab_size - 2
    targets[0, [length // 3, length // 2]] = 0
    targets[1, length - length // 5 :] = 0
    tokens = np.concatenate([np.zeros((2, 1), np.int32), targets[:, :-1]], axis=1)
    return {numpy_network.FRAMES: frames_in, numpy_network.TOKENS: tokens, numpy_network.TARGETS: targets}


GATES = {
    "cosine 0.99": "cosine of the logits at least 0.99 (Megatron-Bridge)",
    "weights atol 0.1": "every weight within 0.1 (Megatron-Bridge's export check)",
    "atol = rtol = 1e-2": "numpy.allclose of the logits (MaxText)",
    "means 1e-7": "means of every layer's output within rtol 1e-7 (PaDiff's default)",
    "KL 0.1": "KL divergence at every position at most 0.1 (MaxText)",
    "elementwise 1e-5": "every logit within atol or rtol 1e-5 (Polygraphy's default)",
}


def published_gates(reference, candidate, targets, reference_weights, candidate_weights) -> dict[str, bool]:
    """Verdicts of published gates on a pair of passes: gate -> whether it passes them as the same.

    Args:
        reference, candidate: passes of parity.trace.trace.
        targets: (b, l).
        reference_weights, candidate_weights: weights of the two sides under MT3's names.
    """
    real = targets > 0
    a = reference.logits[real].astype(np.float64)
    b = candidate.logits[real].astype(np.float64)
    with np.errstate(all="ignore"):
        cosine = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
        log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (a, b))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1).max()
        close = np.abs(a - b)
        means = [
            np.allclose(candidate.outputs[tap].mean(dtype=np.float64), output.mean(dtype=np.float64), rtol=1e-7, atol=0)
            for tap, output in reference.outputs.items()
            if tap in candidate.outputs
        ]
        return {
            "cosine 0.99": bool(cosine >= 0.99),
            "weights atol 0.1": all(
                np.abs(reference_weights[name] - candidate_weights[name]).max() <= 0.1 for name in reference_weights
            ),
            "atol = rtol = 1e-2": bool(np.allclose(b, a, rtol=1e-2, atol=1e-2)),
            "means 1e-7": all(means),
            "KL 0.1": bool(divergence <= 0.1),
            "elementwise 1e-5": bool(((close <= 1e-5) | (close <= 1e-5 * np.abs(a))).all()),
        }


class Bench:
    """The Flax twin with random weights as the reference, and what is needed to judge candidates against it.

    Attributes:
        config, arrays, inputs: of both sides.
        reference: the Flax trace.
        indices: of the weights, for matching.
    """

    def __init__(self, config: NetworkConfig, seed: int, inputs: dict[str, np.ndarray] | None = None):
        from jax_mt3.checkpoint import to_params
        from parity.diagnosis import fibres
        from parity.sides import jax_side, record

        self.seed = seed
        self.config = Config(network=config, spectrogram=SpectrogramConfig(num_mel_bins=config.input_depth))
        self.arrays = numpy_network.random_arrays(config, seed)
        self.inputs = bench_inputs(config, seed) if inputs is None else inputs
        self.reference = record.record(
            jax_side.Side(to_params(self.arrays), self.config), self.inputs, precisions=PRECISIONS
        )
        self.indices = fibres.index_of(self.arrays)

    def side(self, mutant: Mutant | None):
        """The PyTorch twin, with a fault planted."""
        import torch

        from parity.sides import torch_side
        from torch_mt3.checkpoint import to_state_dict
        from torch_mt3.model import Transformer

        class Planted(torch_side.Side):
            """The twin; every copy of it for a precision gets the fault."""

            def cast(self, precision):
                model = super().cast(precision)
                if mutant is not None and _is_behaviour(mutant):
                    mutant.kind.plant(model, mutant.site, np.random.default_rng([mutant.seed, 7]))
                return model

        with torch.device("meta"):
            model = Transformer(self.config.network)
        model.load_state_dict(to_state_dict(self.arrays), strict=True, assign=True)
        if mutant is not None and not _is_behaviour(mutant):
            mutant.kind.plant(model, mutant.site, np.random.default_rng([mutant.seed, 7]))
        return Planted(model, self.config)

    def trace(self, mutant: Mutant | None):
        """The candidate's trace and its weights under MT3's names."""
        import torch

        from parity.sides import record

        torch.manual_seed(self.seed)
        side = self.side(mutant)
        return record.record(side, self.inputs, precisions=PRECISIONS, reference=self.reference), side.arrays()

    def judge(self, mutant: Mutant | None, size: str) -> list[Outcome]:
        """Verdicts of the harness, the diagnosis and the published gates on a mutant (None: of a clean pair)."""
        from parity.compare import comparability, conditioning, taps, traces
        from parity.diagnosis import arrays as array_diagnosis
        from parity.diagnosis import modules
        from parity.sides import perturbed

        candidate, arrays = self.trace(mutant)
        _, refusals = comparability.comparability(self.reference, candidate)
        weights = traces.compare_weights(self.reference.weights, candidate.weights)
        in_weights = array_diagnosis.compare_arrays(arrays, self.arrays, self.config.network, self.indices)
        targets = self.inputs[numpy_network.TARGETS]
        rows = []
        for precision in PRECISIONS:
            rows += taps.compare_taps(self.reference, candidate, precision)
            rows += taps.compare_logits(self.reference, candidate, precision)
        taps.excuse_amplified(rows)
        conditioning.excuse_ill_conditioned(
            rows,
            lambda: perturbed.exact(self.arrays, self.config),
            perturbed.Perturbed,
            conditioning.Questions(self.inputs),
            (self.reference, candidate),
        )
        outcomes = []
        for precision in PRECISIONS:
            run, reference = candidate.passes[precision], self.reference.passes[precision]
            taps = [row for row in rows if row.precision == precision]
            outcome = Outcome("clean", "clean", "", self.seed, size, precision, isa=processors.instruction_set())
            if mutant is not None:
                outcome.kind, outcome.group, outcome.site = mutant.kind.name, mutant.kind.group, mutant.site
            reasons = [
                reason for reason in refusals if precision in reason or not reason.startswith(("jax", "torch", "float"))
            ]
            same = all(row.verdict == "same" for row in [*weights, *taps])
            outcome.harness = "refused" if reasons else "same" if same else "different"
            findings = in_weights + modules.examine(run.outputs, self.inputs, arrays, self.config.network, precision)
            outcome.detected = outcome.harness != "same" or bool(findings)
            real = targets > 0
            truth = reference.logits[real]
            outcome.logits_error = float(np.abs(run.logits[real] - truth).max() / np.abs(truth).max())
            if findings:
                outcome.blamed, outcome.cause = findings[0].site, findings[0].cause
                outcome.localised = mutant is not None and bool(
                    {findings[0].site, *findings[0].sites} & expected_sites(mutant, self.config.network)
                )
                outcome.named = mutant is not None and bool(re.fullmatch(mutant.kind.causes, findings[0].cause))
            if in_weights and size != "full":
                blind = modules.examine(run.outputs, self.inputs, self.arrays, self.config.network, precision)
                if blind:
                    sites = expected_sites(mutant, self.config.network) if mutant is not None else set()
                    outcome.located_in_trace = any(
                        blind[0].site == s or blind[0].site.startswith(f"{s}/") for s in sites
                    )
            outcome.gates = published_gates(reference, run, targets, self.arrays, arrays)
            outcomes.append(outcome)
        low = outcomes[1]
        largest = self._largest_change(candidate, "float64")
        low.invisible = not low.detected and largest < 2.0**-24
        return outcomes

    def _largest_change(self, candidate, precision) -> float:
        """Largest change (root mean square, relative) of any module's output on the reference's inputs."""
        run = candidate.passes[precision]
        worst = 0.0
        for tap, truth in self.reference.passes[precision].outputs.items():
            output = run.local.get(tap)
            if output is None or output.shape != truth.shape:
                return math.inf
            from parity.compare.budget import real_rows

            a, b = (real_rows(tap, x, self.inputs[numpy_network.TARGETS]) for x in (truth, output))
            worst = max(worst, float(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1.0)))
        return worst


def _is_behaviour(mutant: Mutant) -> bool:
    return mutant.kind.group in ("behaviour", "unlisted") or mutant.kind.name == "no cross mask"


def clean_configs() -> list[NetworkConfig]:
    """Ten small networks of different proportions."""
    return [
        NetworkConfig(
            vocab_size=1536 if i % 2 else 1664,
            emb_dim=(16, 24, 32, 48, 64)[i % 5],
            num_heads=1 + i % 4,
            head_dim=(4, 8, 16)[i % 3],
            mlp_dim=(20, 40, 64)[i % 3],
            num_encoder_layers=1 + i % 3,
            num_decoder_layers=1 + (i + 1) % 3,
            input_depth=(32, 64)[i % 2],
            position_table="port" if i == 7 else "mt3",
        )
        for i in range(10)
    ]


class Record:
    """Outcomes as they come, in a file of JSON lines, so that a run that was stopped goes on where it was.

    Args:
        path: the file, of an earlier run of the same code with the same seed; None to keep nothing.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: str | None):
        self.path = path
        self.known: dict[tuple[str, ...], list[Outcome]] = {}
        text = Path(path).read_text(errors="replace") if path is not None and Path(path).exists() else ""
        *lines, half = text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                outcomes = [Outcome(**fields) for fields in parse_json(line)]
                self.known[self._key(outcomes[0])] = outcomes
            except (ValueError, TypeError, IndexError) as error:
                raise ValueError(f"{path}, line {number}: not outcomes of parity mutants") from error
        # what was stopped while it wrote has half a last line
        if half and not half.startswith("[{"[: len(half)]):
            raise ValueError(f"{path}, line {len(lines) + 1}: not outcomes of parity mutants")
        if half:
            atomic.write(path, "".join(f"{line}\n" for line in lines))

    @staticmethod
    def _key(outcome: Outcome) -> tuple[str, ...]:
        return outcome.kind, outcome.site, str(outcome.seed), outcome.size, outcome.isa

    def __call__(self, kind: str, site: str, seed: int, size: str, judge: Callable[[], list[Outcome]]) -> list[Outcome]:
        """The outcomes of one mutant: those of the file, else what judge() gives."""
        key = (kind, site, str(seed), size, processors.instruction_set())
        if key not in self.known:
            self.known[key] = judge()
            if self.path is not None:
                with open(self.path, "a") as file:
                    file.write(json.dumps([dataclasses.asdict(outcome) for outcome in self.known[key]]) + "\n")
        return self.known[key]


def clean_pairs(
    count: int, progress: Callable[[str], None] = lambda line: None, record: Record | None = None
) -> list[Outcome]:
    """Verdicts on clean pairs: ten configs, several weights and inputs each, every precision."""
    outcomes: list[Outcome] = []
    configs = clean_configs()
    record = Record(None) if record is None else record
    seed = 0
    while len(outcomes) < count:
        config = configs[seed % len(configs)]
        inputs = bench_inputs(config, 100 + seed, frames=24, length=20)
        if seed % 3 == 1:
            # silence, and very loud frames
            inputs[numpy_network.FRAMES][0] = -11.512925
            inputs[numpy_network.FRAMES][1] *= 8

        def judge(config=config, seed=seed, inputs=inputs) -> list[Outcome]:
            return Bench(config, 1000 + seed, inputs).judge(None, "clean")

        outcomes += record("clean", "", 1000 + seed, "clean", judge)
        seed += 1
        progress(f"{plural(len(outcomes), 'clean pair')}")
    return outcomes[:count]


# --- the table ---


def summarise(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts and rates of a benchmark's outcomes, for the table and the JSON file."""
    clean = [outcome for outcome in outcomes if outcome.group == "clean"]
    equivalent = [outcome for outcome in outcomes if outcome.group == "equivalent"]
    planted = [outcome for outcome in outcomes if outcome.group not in ("clean", "equivalent")]
    visible = [outcome for outcome in planted if not outcome.invisible]
    rows = {}
    for size, isa in dict.fromkeys((outcome.size, outcome.isa) for outcome in planted):
        for precision in PRECISIONS:
            group = (size, isa, precision)
            group_outcomes = [outcome for outcome in visible if (outcome.size, outcome.isa, outcome.precision) == group]
            hidden = sum(
                outcome.invisible for outcome in planted if (outcome.size, outcome.isa, outcome.precision) == group
            )
            rows[f"{size}, {precision}{', AVX2' if isa == processors.AVX2 else ''}"] = {
                "mutants": len(group_outcomes),
                "kinds": len({outcome.kind for outcome in group_outcomes}),
                "invisible": hidden,
                "by the harness alone": sum(outcome.harness != "same" for outcome in group_outcomes),
                "detected": sum(outcome.detected for outcome in group_outcomes),
                "localised": sum(outcome.localised for outcome in group_outcomes),
                "named": sum(outcome.named for outcome in group_outcomes),
            }
    # at full size there are more unknowns in a kernel than rows in the inputs: not asked there
    in_weights = [outcome for outcome in visible if outcome.group == "weights" and outcome.size != "full"]
    gates = {}
    for gate in GATES:
        gates[gate] = {
            "missed": sum(outcome.gates[gate] for outcome in visible),
            "of": len(visible),
            "false alarms": sum(not outcome.gates[gate] for outcome in clean),
            "clean": len(clean),
        }
    return {
        "table": rows,
        "weights from taps alone": {
            "mutants": len(in_weights),
            "localised": sum(outcome.located_in_trace for outcome in in_weights),
        },
        "clean pairs": len(clean),
        "false alarms": sum(outcome.detected for outcome in clean),
        "equivalents": {
            "mutants": len(equivalent),
            "same logits": sum(
                outcome.logits_error < (1e-12 if outcome.precision == "float64" else 1e-4) for outcome in equivalent
            ),
        },
        "gates": gates,
        "wrong": [
            dataclasses.asdict(outcome)
            for outcome in visible
            if not (outcome.detected and outcome.localised and outcome.named)
        ],
    }


def meets_targets(summary: dict[str, Any]) -> bool:
    """Detected 100 %, localised 99 %, named 95 % of the visible mutants, and no false alarm."""
    rows = list(summary["table"].values())
    total = sum(row["mutants"] for row in rows)
    return bool(
        sum(row["detected"] for row in rows) == total
        and sum(row["localised"] for row in rows) >= 0.99 * total
        and sum(row["named"] for row in rows) >= 0.95 * total
        and summary["false alarms"] == 0
        and summary["equivalents"]["same logits"] == summary["equivalents"]["mutants"]
    )
