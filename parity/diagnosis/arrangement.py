"""Layers arranged otherwise: norms after the sums, or blocks side by side on the layer's input.

A module of such a layer does what MT3's does, on other inputs. So the layer's steps are replaced by those of the
arrangement before they are judged: the layer alone is blamed, and a second fault inside it is still seen.
"""

from typing import NamedTuple

import numpy as np

from parity.diagnosis.finding import Finding
from parity.diagnosis.values import Values
from parity.sides.numpy_network import Step, run_step

# An arrangement is named if its prediction of the layer's norms leaves at most this share of MT3's error ...
LEFT = 0.1
# ... and MT3's error is at least this share of the largest value.
WRONG = 1e-2


class _Block(NamedTuple):
    """One block of a layer: its norm, its first and last steps, and its sum."""

    norm: Step
    inside: list[Step]
    sum: Step

    @property
    def branch(self) -> str:
        return self.sum.reads[1]


def rearranged(layer: str, outputs: dict[str, np.ndarray], values: Values) -> Finding | None:
    """Find that a layer is post-norm or parallel, and replace its steps in `values`; None if it is as MT3's, or other.

    Args:
        layer: 'encoder/layers_0'.
        outputs: tap -> what the candidate put out.
        values: of all steps before the layer.
    """
    blocks = _blocks(layer, values.sequence)
    norms = [block.norm.name for block in blocks]
    taps = {name: np.asarray(outputs[name], np.float64) for name in [*norms, layer] if name in outputs}
    branches = {}
    for block in blocks:
        # The dropout after the block, or where there is none the block itself.
        names = (block.branch, *values.by_name[block.branch].reads)
        recorded = next((name for name in names if name in outputs), None)
        if recorded is not None:
            branches[block.branch] = np.asarray(outputs[recorded], np.float64)
    source = blocks[0].norm.reads[0]
    x = values.exact[source].astype(np.float64)
    if len(taps) < len(norms) + 1 or len(branches) < len(blocks) or any(t.shape != x.shape for t in taps.values()):
        return None

    def normed(block: _Block, reads: np.ndarray) -> np.ndarray:
        return run_step(block.norm, {block.norm.reads[0]: reads}, values.arrays, values.config)

    # x, norm(x) -> what every norm and the layer put out, in the order of `taps`
    plain, post, stream, after = [], [], x, x
    for block in blocks:
        branch = branches[block.branch]
        plain.append(normed(block, stream))
        stream = stream + branch
        after = normed(block, after + branch)
        post.append(after)
    parallel = [normed(block, x) for block in blocks]
    wanted = {
        "pre": [*plain, stream],
        "post": [*post, after],
        "parallel": [*parallel, x + sum(branches[block.branch] for block in blocks)],
    }
    errors = {
        name: max(_error(a, b) for a, b in zip(taps.values(), want, strict=True)) for name, want in wanted.items()
    }
    best = min(("post", "parallel"), key=errors.__getitem__)
    if not (errors["pre"] > WRONG and errors[best] < LEFT * errors["pre"]):
        return None
    values.rewire(layer, _post(layer, source, blocks) if best == "post" else _parallel(layer, source, blocks))
    cause, text = {
        "post": ("post-norm", "post-norm: each norm comes after its sum, norm(x + block(x)), not before its block"),
        "parallel": ("parallel blocks", "its blocks run side by side: each one's norm reads the layer's input"),
    }[best]
    second = "parallel blocks" if best == "post" else "post-norm"
    runner_up = (second, errors["parallel" if best == "post" else "post"])
    return Finding(layer, cause, text, errors["pre"], errors[best], runner_up, sites=[layer])


def _error(tap: np.ndarray, want: np.ndarray) -> float:
    size = float(np.sqrt(np.mean(want**2))) or 1.0
    error = float(np.sqrt(np.mean((tap - want) ** 2))) / size
    return error if np.isfinite(error) else np.inf


def _blocks(layer: str, sequence: list[Step]) -> list[_Block]:
    blocks, norm, inside = [], None, []
    for step in sequence:
        if step.name != layer and not step.name.startswith(f"{layer}/"):
            continue
        if step.kind == "norm":
            norm, inside = step, []
        elif step.kind == "residual" and norm is not None:
            blocks.append(_Block(norm, inside, step))
        else:
            inside.append(step)
    return blocks


def _reading(step: Step, old: str, new: str) -> Step:
    return step._replace(reads=tuple(new if name == old else name for name in step.reads))


def _post(layer: str, source: str, blocks: list[_Block]) -> list[Step]:
    steps: list[Step] = []
    for number, block in enumerate(blocks):
        steps += [_reading(step, block.norm.name, source) for step in block.inside]
        total = f"{layer}/.sum_{number}"
        steps.append(Step(total, "residual", (source, block.branch, source)))
        steps.append(block.norm._replace(reads=(total,)))
        source = block.norm.name
    return [*steps, Step(layer, "same", (source,))]


def _parallel(layer: str, source: str, blocks: list[_Block]) -> list[Step]:
    steps: list[Step] = []
    total = source
    for block in blocks:
        steps += [block.norm._replace(reads=(source,)), *block.inside]
        steps.append(block.sum._replace(reads=(total, block.branch, block.norm.name)))
        total = block.sum.name
    return steps
