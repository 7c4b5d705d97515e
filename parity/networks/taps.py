"""Taps of two networks: which belong together, in which order of axes, and how far apart they are."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from parity.compare.budget import AMPLIFIED, judge
from parity.compare.results import Measure, Row, over, within
from parity.networks.names import NameMap, slashed
from parity.networks.recording import Event, Run
from parity.trace.precision import EPSILON

# A value below this is a mask: -1e9, -1e10 and the dtype's lowest number all hide a position.
MASKED = -1e4


@dataclasses.dataclass(frozen=True)
class View:
    """The way in which one side's array is read like the other side's: axes moved, another shape, or repeated rows.

    Attributes:
        axes: order of the candidate's axes.
        shape: the candidate's array is reshaped to it.
        batch: the first axis is 1 on one side and this long on the other; all its rows are equal.
    """

    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    batch: int = 0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Return the candidate's array as the reference has it."""
        if self.axes is not None:
            return np.transpose(array, self.axes)
        if self.batch:
            return np.broadcast_to(array, (self.batch, *array.shape[1:])) if len(array) == 1 else array[:1]
        return array if self.shape is None else array.reshape(self.shape)

    def back(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return the reference's array as the candidate has it."""
        if self.axes is not None:
            return np.transpose(array, np.argsort(self.axes))
        if self.batch:
            return np.broadcast_to(array, shape) if len(array) == 1 else array[:1]
        return array if self.shape is None else array.reshape(shape)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; masked values count as equal."""
    if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else np.inf
    x, y = a.astype(np.float64), b.astype(np.float64)
    if x.size == 0:
        return 0.0
    masked = (x <= MASKED) & (y <= MASKED)
    x, y = np.where(masked, 0.0, x), np.where(masked, 0.0, y)
    with np.errstate(invalid="ignore"):
        difference = np.abs(x - y).max()
    size = max(np.abs(x).max(), np.abs(y).max())
    return float(difference / size) if size > 0 else 0.0


def views(reference: np.ndarray, candidate: np.ndarray) -> list[View]:
    """Return the ways in which a candidate's array has the reference's shape, the plainest first.

    Axes are moved only as frameworks do: channels last or first, time first or batch first. A shape is changed only
    where axes are joined, split, or of length 1.
    """
    result = []
    if reference.shape == candidate.shape:
        result.append(View())
    count = candidate.ndim
    if count == reference.ndim and count >= 2:
        orders = [(0, *range(2, count), 1), (0, count - 1, *range(1, count - 1)), (1, 0, *range(2, count))]
        orders += [(*range(1, count), 0), (count - 1, *range(count - 1))]
        orders += [(0, 2, 1, 3)] if count == 4 else []
        for axes in dict.fromkeys(orders):
            if axes != tuple(range(count)) and tuple(candidate.shape[axis] for axis in axes) == reference.shape:
                result.append(View(axes=axes))
    shapes = reference.shape, candidate.shape
    if count == reference.ndim >= 2 and shapes[0][1:] == shapes[1][1:] and shapes[0] != shapes[1]:
        longer = reference if len(candidate) == 1 else candidate
        if min(len(reference), len(candidate)) == 1 and (longer == longer[:1]).all():
            result.append(View(batch=len(longer)))
    if reference.size == candidate.size and reference.shape != candidate.shape:
        result.append(View(shape=reference.shape))
    return result


def best_view(reference: np.ndarray, candidate: np.ndarray) -> View | None:
    """Return the view under which two arrays agree best; the plainest unless another one makes them agree."""
    options = views(reference, candidate)
    if not options:
        return None
    distances = [distance(reference, option(candidate)) for option in options]
    if distances[0] > 1e-6 and min(distances) < 1e-6:
        return options[int(np.argmin(distances))]
    return options[0]


def match_arrays(reference: list[np.ndarray], candidate: list[np.ndarray]) -> list[tuple[int, int, View]]:
    """Pair two calls' arrays: in order where shapes allow it, else with the nearest array of a fitting shape."""
    pairs: list[tuple[int, int, View]] = []
    free = list(range(len(candidate)))
    for number, array in enumerate(reference):
        options = []
        for other in free:
            kinds = {"f" if a.dtype.kind == "f" else "i" for a in (array, candidate[other])}
            view = best_view(array, candidate[other]) if len(kinds) == 1 else None
            if view is not None:
                options.append((distance(array, view(candidate[other])) > 1e-6, abs(other - number), other, view))
        if options:
            _, _, other, view = min(options, key=lambda option: option[:3])
            pairs.append((number, other, view))
            free.remove(other)
    return pairs


@dataclasses.dataclass
class TapPair:
    """A module of the reference and the candidate's module that stands for it.

    Attributes:
        reference, candidate: names.
        how: 'name', 'map' or 'content'.
        leaf: whether no other module runs inside.
    """

    reference: str
    candidate: str
    how: str
    leaf: bool


def leaf_names(events: Sequence[Event]) -> set[str]:
    """Return the modules inside of which no other one ran."""
    leaves = set()
    for event, following in zip(events, [*events[1:], None]):
        if event.part == "in" and following is not None and following.name == event.name and following.part == "out":
            leaves.add(event.name)
    started = {event.name for event in events if event.part == "in"}
    return leaves | {event.name for event in events if event.name not in started}


def pair_taps(reference: Run, candidate: Run, names: NameMap, modules: Mapping[str, str]) -> list[TapPair]:
    """Pair the taps of two runs by name, or by the weights that their modules hold, in the reference's order.

    Args:
        reference, candidate: runs in float64.
        names: the map of names.
        modules: reference module -> candidate module that holds the same weights.
    """
    outs = {event.name for event in candidate.events if event.part == "out"}
    leaves, other_leaves = leaf_names(reference.events), leaf_names(candidate.events)
    pairs, taken = [], set()
    for event in reference.events:
        if event.part != "out":
            continue
        base, mark, number = event.name.partition("#")
        name = names.candidate(event.name)
        how = "name" if name == event.name else "map"
        if name not in outs and base in modules and event.name in leaves:
            name, how = f"{modules[base]}{mark}{number}", "content"
            name = name if name in other_leaves else ""
        if name in outs and name not in taken:
            taken.add(name)
            leaf = event.name in leaves and name in other_leaves
            pairs.append(TapPair(event.name, name, how, leaf))
    return pairs


def feeds(
    pairs: Sequence[TapPair], reference: Run, candidate: Run
) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """Return what the candidate's modules are to be run on: the reference's inputs in the candidate's shapes.

    Returns:
        (candidate module -> arrays, reference module -> why its counterpart cannot be fed).
    """
    result, failures = {}, {}
    ins = {event.name: event.arrays for event in candidate.events if event.part == "in"}
    own = {event.name: event.arrays for event in reference.events if event.part == "in"}
    for pair in pairs:
        if pair.reference not in own or pair.candidate not in ins:
            continue
        arrays, taken = own[pair.reference], ins[pair.candidate]
        matched = {other: (number, view) for number, other, view in match_arrays(arrays, taken)}
        floats = [number for number, array in enumerate(taken) if array.dtype.kind == "f"]
        if any(number not in matched for number in floats[:1]) or (arrays and not matched):
            shapes = [[array.shape for array in side] for side in (taken, arrays)]
            failures[pair.reference] = (
                f"the candidate's module takes arrays of {shapes[0]}, the reference's {shapes[1]}"
            )
            continue
        result[pair.candidate] = [
            matched[number][1].back(arrays[matched[number][0]], array.shape) if number in matched else array
            for number, array in enumerate(taken)
        ]
    return result, failures


def worst(measures: Sequence[Measure]) -> Measure:
    """Return the measure with the largest ratio; one that is not finite counts most."""
    return max(measures, key=lambda m: np.inf if m.ratio is None or not np.isfinite(m.ratio) else m.ratio)


def judge_arrays(
    truth: list[np.ndarray],
    candidate: list[np.ndarray],
    low: list[np.ndarray],
    precision: str,
    views_of: list[tuple[int, int, View]],
    scale: float,
) -> Measure | None:
    """Judge paired arrays by the budget of compare/budget.py; None if none can be compared.

    Args:
        truth: the reference's, in float64.
        candidate: the candidate's, in `precision`.
        low: the reference's in the shorter precision, whose rounding is the budget.
        precision: whose unit roundoff sets the floor.
        views_of: which arrays are compared, and how the candidate's are read.
        scale: of the rounding.
    """
    measures = []
    for number, other, view in views_of:
        a, b, c = truth[number], candidate[other], low[number]
        if a.dtype.kind not in "fiub" or a.shape != c.shape:
            continue
        a, b, c = (x.astype(np.float64) for x in (a, view(b), c))
        masked = (a <= MASKED) & (b <= MASKED)
        if masked.any():
            a, b, c = (np.where(masked, 0.0, x) for x in (a, b, c))
        measures.append(judge(a, b, (c - a) * scale, precision))
    return worst(measures) if measures else None


def excuse(rows: list[Row]) -> None:
    """Turn float32 rows to 'same' whose free-running error is amplified rounding, as compare/taps.py does."""
    exact = [row for row in rows if row.precision == "float64"]
    if not exact or not all(within(row.free, 1.0) for row in exact):
        return
    if any(over(row.local) for row in rows):
        return
    for row in rows:
        if row.verdict == "different" and row.precision != "float64" and within(row.free, AMPLIFIED):
            row.verdict = "same"
            row.note = "rounding, amplified: in float64 everything is within its budget"


def names_shown(pairs: Sequence[TapPair]) -> dict[str, str]:
    """Return the pairs that were not made by equal names, for the report."""
    return {slashed(pair.reference): slashed(pair.candidate) for pair in pairs if pair.how != "name"}


def scale_between(precision: str, low: str) -> float:
    """Return the factor from one precision's rounding to another's."""
    return EPSILON[precision] / EPSILON[low]
