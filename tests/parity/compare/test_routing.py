"""Choices of experts: the same, a tie, real, and what a tie excuses."""

import numpy as np

from mt3_common.yourmt3_config import PerceiverConfig, YourMT3Config
from parity.compare.results import Measure, Report, Row
from parity.compare.routing import compare_routing, excuse_ties
from parity.trace.trace import Pass, Trace

ROUTER, EXPERT, BEHIND = "encoder/mlp/gate", "encoder/mlp/experts_0", "encoder/mlp"
NETWORK = YourMT3Config(perceiver=PerceiverConfig(num_experts=3, experts_per_token=2))
LOGITS = np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 1.0 - 1e-8]])


def trace(low, exact=LOGITS):
    passes = {}
    for precision, logits in (("float64", exact), ("float32", low)):
        outputs = {"encoder/norm": logits, ROUTER: logits, EXPERT: logits, BEHIND: logits}
        passes[precision] = Pass(precision, {}, outputs, logits, True)
    return Trace("torch", {}, {}, {}, {}, passes, "now")


def rounded(row, column, change):
    low = LOGITS.copy()
    low[row, column] += change
    return low


def test_the_same_experts_are_the_same_and_the_margin_is_shown():
    rows = compare_routing(trace(LOGITS), trace(LOGITS), NETWORK)
    assert [row.verdict for row in rows] == ["same", "same"]
    assert rows[0].note == "2 of 2 tokens take the same 2 experts; smallest margin to the next 1e-08"


def test_another_expert_within_the_noise_is_a_tie():
    rows = compare_routing(trace(rounded(1, 1, 1e-8)), trace(rounded(1, 2, 3e-8)), NETWORK)
    assert [row.verdict for row in rows] == ["same", "same"]
    assert "1 tie, 0 real; first token 1: experts 0, 1 against 0, 2" in rows[1].note


def test_another_expert_beyond_the_noise_is_real():
    wrong = rounded(0, 2, 2.0)
    rows = compare_routing(trace(rounded(1, 1, 1e-8)), trace(wrong, wrong), NETWORK)
    assert [row.verdict for row in rows] == ["different", "different"]
    assert "0 ties, 1 real" in rows[0].note


def test_a_router_of_another_number_of_experts_differs():
    rows = compare_routing(trace(LOGITS), trace(LOGITS[:, :2], LOGITS[:, :2]), NETWORK)
    assert all(row.verdict == "different" for row in rows)


def report(*rows):
    over = Measure(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, ratio=1e5)
    return Report(rows=[Row("taps", name, "different", precision, over) for name, precision in rows])


def test_what_is_behind_a_tie_is_excused_and_nothing_else():
    sides = trace(LOGITS), trace(rounded(1, 2, 3e-8))
    result = report((BEHIND, "float32"), ("encoder/norm", "float32"))
    excuse_ties(result, *sides, NETWORK)
    assert [row.verdict for row in result.rows] == ["same", "different"]
    assert "behind a tie of experts at encoder/mlp/gate" in result.rows[0].note


def test_a_tie_excuses_nothing_where_float64_differs_or_no_choice_does():
    sides = trace(LOGITS), trace(rounded(1, 2, 3e-8))
    result = report((BEHIND, "float32"), (BEHIND, "float64"))
    excuse_ties(result, *sides, NETWORK)
    assert all(row.verdict == "different" for row in result.rows)
    result = report((BEHIND, "float32"))
    excuse_ties(result, trace(LOGITS), trace(LOGITS), NETWORK)
    assert result.rows[0].verdict == "different"
