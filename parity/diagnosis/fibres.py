"""Matches of a candidate's arrays with an original's by content: names are not looked at.

A *fibre* is a vector along one axis of an array. Splitting, merging and permuting heads, fusing q, k and v, stacking
over layers, transposing and padding all move fibres about and leave each one whole along the other axis. So every
fibre gets a fingerprint (random projections divided by its norm, which a scalar factor does not change), every fibre
of the candidate is looked up among those of the original, and every match is then compared bit for bit.

Longer than 500 lines: one search, read in one piece.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

PROJECTIONS = 8
# of a fingerprint's entries, which are of size 1: exact copies and copies scaled in float32 ...
TIGHT = 2e-6
# ... and copies rounded to bfloat16, whose entries are off by 1.1e-3 (one standard deviation)
LOOSE = 1e-2
# share of an array's fibres that must be found for the array to count as matched
ENOUGH = 0.5
SAMPLED_FIBRES = 64


@dataclasses.dataclass
class Match:
    """One candidate array, explained by fibres of the original.

    Attributes:
        candidate: its name.
        axis: the candidate's axis along which its fibres run (singleton axes taken out first).
        shape: the candidate's shape without singletons.
        owners: names of the originals found, in order of first appearance.
        owner: (fibres,) index into owners; -1 where a fibre is all zero, -2 where it was not found.
        fibre: (fibres,) index of the original's fibre.
        original_axis: (owners,) axis of the original along which its fibres run.
        factor: (fibres,) candidate / original, per fibre.
        exact: every element found equals the original's after the factor and the cast to the candidate's dtype.
        error: largest difference, relative to the largest value; 0.0 where exact.
        offset: added to the original first (norm scales kept as scale - 1 have -1.0).
    """

    candidate: str
    axis: int
    shape: tuple[int, ...]
    owners: list[str]
    owner: np.ndarray
    fibre: np.ndarray
    original_axis: list[int]
    factor: np.ndarray
    exact: bool = False
    error: float = np.inf
    offset: float = 0.0

    def uniform_factor(self) -> float | None:
        """The one factor of all fibres, or None where they differ."""
        return one_factor(self.factor[self.owner >= 0])


@dataclasses.dataclass
class Matching:
    """The outcome of match.

    Attributes:
        matches: candidate name -> Match, for every candidate array that was explained.
        unused: candidate arrays that hold nothing of the original.
        missing: originals of which no fibre was found, or not all: name -> share found.
        duplicates: original -> the candidates that hold all of it, where there are several.
        alike: groups of originals with equal bits: any assignment among them gives the same weights.
        names: of the originals.
    """

    matches: dict[str, Match]
    unused: list[str]
    missing: dict[str, float]
    duplicates: dict[str, list[str]]
    alike: list[list[str]]
    names: list[str] = dataclasses.field(default_factory=list)

    def last_layer(self, stack: str | None) -> int:
        """Return the number of the last layer of a stack; -1 where there is none."""
        layers = [re.match(rf"{stack}/layers_(\d+)/", name) for name in self.names]
        return max((int(layer[1]) for layer in layers if layer), default=-1)

    def holders(self, original: str) -> list[Match]:
        """The matches that hold fibres of an original."""
        return [match for match in self.matches.values() if original in match.owners]


@functools.lru_cache(maxsize=64)
def _directions(length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((length, PROJECTIONS))


def fibres_of(array: np.ndarray, axis: int) -> np.ndarray:
    """(fibres, length) view or copy of an array's fibres along an axis, the other axes in C order."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _fingerprints(fibres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(fibres, PROJECTIONS) float64 with a positive first entry, and (fibres,) norms that carry the sign taken off."""
    fibres = fibres.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", fibres, fibres))
    projected = fibres @ _directions(fibres.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        projected = projected / norms[:, np.newaxis]
    sign = np.where(projected[:, 0] < 0, -1.0, 1.0)
    return projected * sign[:, np.newaxis], norms * sign


class _Index:
    """Fingerprints of all the original's fibres of one length, sorted by the first entry."""

    def __init__(self, entries: list[tuple[int, int, np.ndarray, np.ndarray]]):
        prints = np.concatenate([entry[2] for entry in entries])
        self.owner = np.concatenate([np.full(len(entry[2]), entry[0]) for entry in entries])
        self.axis = np.concatenate([np.full(len(entry[2]), entry[1]) for entry in entries])
        self.fibre = np.concatenate([np.arange(len(entry[2])) for entry in entries])
        self.norm = np.concatenate([entry[3] for entry in entries])
        keep = np.isfinite(prints).all(axis=1) & (self.norm != 0)
        order = np.flatnonzero(keep)[np.argsort(prints[keep, 0], kind="stable")]
        self.prints = prints[order]
        self.owner, self.axis, self.fibre = self.owner[order], self.axis[order], self.fibre[order]
        self.norm = self.norm[order]

    def find(
        self, prints: np.ndarray, tolerance: float, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(queries,) position of the nearest fingerprint within tolerance in every entry, or -1; (queries,) its sign.

        Args:
            prints: (queries, PROJECTIONS).
            tolerance: of every entry.
            only: positions to look among; all by default.
        """
        table = self.prints if only is None else self.prints[only]
        best, sign = np.full(len(prints), -1), np.ones(len(prints))
        if not len(table):
            return best, sign
        usable = np.isfinite(prints).all(axis=1)
        start = np.searchsorted(table[:, 0], prints[:, 0] - tolerance)
        stop = np.searchsorted(table[:, 0], prints[:, 0] + tolerance)
        distance = np.full(len(prints), np.inf)
        active = np.flatnonzero(usable & (stop > start))
        step = 0
        while len(active):
            at = start[active] + step
            off = np.abs(table[at] - prints[active]).max(axis=1)
            closer = off < np.minimum(distance[active], tolerance)
            distance[active[closer]] = off[closer]
            best[active[closer]] = at[closer]
            step += 1
            active = active[start[active] + step < stop[active]]
        # rounding may have turned the sign of a first entry near zero, and with it the whole fingerprint
        low = int(np.searchsorted(table[:, 0], tolerance, side="right"))
        for row in np.flatnonzero(usable & (best < 0) & (prints[:, 0] <= tolerance)) if low else ():
            off = np.abs(table[:low] + prints[row]).max(axis=1)
            if off.min() <= tolerance:
                best[row], sign[row] = int(off.argmin()), -1.0
        return (best if only is None else np.where(best >= 0, only[best], -1)), sign


def index_of(original: Mapping[str, np.ndarray]) -> dict[int, _Index]:
    """Length -> fingerprints of all fibres of that length; match builds it itself unless it is given."""
    entries: dict[int, list[tuple[int, int, np.ndarray, np.ndarray]]] = {}
    for number, name in enumerate(original):
        array = np.atleast_1d(original[name])
        for axis in range(array.ndim):
            entries.setdefault(array.shape[axis], []).append((number, axis, *_fingerprints(fibres_of(array, axis))))
    return {length: _Index(group) for length, group in entries.items()}


def match(
    candidate: Mapping[str, np.ndarray],
    original: Mapping[str, np.ndarray],
    indices: dict[int, _Index] | None = None,
) -> Matching:
    """Match the arrays of a candidate with the originals that they hold, whatever they are called.

    It sees transposition, any split, merge, exchange or permutation of axes that keeps one axis whole (heads), fusing
    (q, k, v), stacking (layers), a scalar factor for the array or for each fibre, a cast to another float type, zero
    padding, cropping, single fibres zeroed, norm scales stored as scale - 1.

    Args:
        candidate: name -> array of any floating dtype.
        original: name -> array with at most two axes.
        indices: index_of(original), where several candidates are matched against one original.

    Returns:
        The matching; every match compared element by element.
    """
    names = list(original)
    if indices is None:
        indices = index_of(original)
    matches, unused = {}, []
    for name, array in candidate.items():
        holder = _match_one(name, array, original, names, indices)
        if holder is None:
            unused.append(name)
        else:
            matches[name] = holder
    by_bits: dict[tuple, list[str]] = {}
    for name in names:
        array = np.ascontiguousarray(original[name])
        by_bits.setdefault((array.shape, array.dtype.name, array.tobytes()), []).append(name)
    alike = [group for group in by_bits.values() if len(group) > 1]
    _spread(matches, alike)
    _spread_multiples(matches, candidate, original, indices)
    missing, duplicates = {}, {}
    for name in names:
        holders = [holder for holder in matches.values() if name in holder.owners]
        shares = [_share(holder, name, original[name]) for holder in holders]
        whole = [holder.candidate for holder, share in zip(holders, shares) if share == 1.0]
        if len(whole) > 1:
            duplicates[name] = whole
        together = _share_together(holders, name, original[name])
        if together < 1.0:
            missing[name] = together
    return Matching(matches, unused, missing, duplicates, alike, names)


def _match_one(name, array, original, names, indices) -> Match | None:
    array = np.squeeze(array)
    if (
        array.ndim == 0
        or array.size == 0
        or array.dtype.kind not in "fV"
        or not np.isfinite(array.astype(np.float64)).all()
    ):
        return None
    for offset in (0.0, -1.0) if array.ndim <= 2 else (0.0,):
        shifted = array if not offset else (array.astype(np.float64) - offset)
        best = None
        for axis in sorted(range(array.ndim), key=lambda axis: -array.shape[axis]):
            match = _match_axis(name, shifted, axis, names, indices)
            if match is None:
                continue
            if best is None or (match.owner != -2).mean() > (best.owner != -2).mean():
                best = match
        if best is not None:
            best.offset = offset
            _verify(best, array, original)
            return best
    return None


def _match_axis(name, array, axis, names, indices) -> Match | None:
    index = indices.get(array.shape[axis])
    if index is None:
        return None
    prints, norms = _fingerprints(fibres_of(array, axis))
    zero = norms == 0
    if zero.all():
        return None
    at, sign = index.find(prints, TIGHT)
    if (at[~zero] >= 0).mean() < ENOUGH:
        nonzero = np.flatnonzero(~zero)
        sample = nonzero[np.linspace(0, len(nonzero) - 1, min(SAMPLED_FIBRES, len(nonzero))).astype(int)]
        seen, _ = index.find(prints[sample], LOOSE)
        if (seen >= 0).mean() < ENOUGH:
            return None
        owners = np.unique(index.owner[seen[seen >= 0]])
        at, sign = index.find(prints, LOOSE, np.flatnonzero(np.isin(index.owner, owners)))
        if (at[~zero] >= 0).mean() < ENOUGH:
            return None
    hit = at >= 0
    numbers = np.where(hit, index.owner[at], -2)
    # an owner of which only a handful of fibres appear among many others is a coincidence
    order = list(dict.fromkeys(numbers[hit].tolist()))
    owner = np.full(len(at), -2)
    for position, number in enumerate(order):
        owner[numbers == number] = position
    owner[zero] = -1
    axes = [int(np.median(index.axis[at[hit & (numbers == number)]])) for number in order]
    factor = np.where(hit, sign * norms / np.where(hit, index.norm[at], 1.0), 0.0)
    fibre = np.where(hit, index.fibre[at], -1)
    return Match(name, axis, array.shape, [names[number] for number in order], owner, fibre, axes, factor)


def expected(match: Match, original: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (fibres, length) float64, the candidate's fibres as the original's make them; zero where none matches."""
    length = match.shape[match.axis]
    values = np.zeros((len(match.owner), length))
    for position, name in enumerate(match.owners):
        at = np.flatnonzero(match.owner == position)
        fibres = fibres_of(np.atleast_1d(original[name]), match.original_axis[position])
        values[at] = (fibres[match.fibre[at]].astype(np.float64)) * match.factor[at, np.newaxis] + match.offset
    return values


def one_factor(factors: np.ndarray) -> float | None:
    """The factor that fibres share, exactly a power of two or its root where it is near one; None where they differ."""
    middle = float(np.median(factors))
    if not np.all(np.abs(factors - middle) <= 1e-2 * abs(middle)):
        return None
    near = float(np.sign(middle) * 2.0 ** (np.round(np.log2(np.abs(middle)) * 2) / 2))
    # casts to bfloat16 move the norm of a fibre by less than this
    return near if abs(near - middle) <= 3e-3 * abs(middle) else middle


def _verify(match: Match, array: np.ndarray, original: Mapping[str, np.ndarray]) -> None:
    factor = match.uniform_factor()
    if factor is not None:
        match.factor[match.owner >= 0] = factor
    values = expected(match, original)
    usable = match.owner != -2
    have = fibres_of(array, match.axis)[usable]
    want = values[usable].astype(array.dtype)
    if have.tobytes() == want.tobytes() or np.array_equal(have, want):
        match.exact, match.error = True, 0.0
        return
    scale = np.abs(values).max() or 1.0
    match.error = float(np.abs(have.astype(np.float64) - values[usable]).max() / scale)


def _share(match: Match, name: str, array: np.ndarray) -> float:
    return _share_together([match], name, array)


def _share_together(holders: list[Match], name: str, array: np.ndarray) -> float:
    """Share of an original's fibres that are in any of the matches; fibres of zeros need no holder."""
    array = np.atleast_1d(array)
    best = 0.0
    for axis in range(array.ndim):
        fibres = fibres_of(array, axis)
        seen = ~np.any(fibres != 0, axis=1)
        touched = False
        for match in holders:
            position = match.owners.index(name)
            if match.original_axis[position] == axis:
                seen[match.fibre[match.owner == position]] = True
                touched = True
        if touched:
            best = max(best, float(seen.mean()))
    return best


def _spread(matches: dict[str, Match], alike: list[list[str]]) -> None:
    """Give each of several candidates its own of several originals with equal bits, in order."""
    for group in alike:
        holders = [(match, i) for match in matches.values() for i, name in enumerate(match.owners) if name in group]
        # a stack of equal arrays is one match whose fibres all point at the first: deal them out
        for match, i in holders:
            at = np.flatnonzero(match.owner == i)
            runs = [run for run in np.split(at, np.flatnonzero(np.diff(match.fibre[at]) <= 0) + 1) if len(run)]
            if len(runs) > 1:
                free = [name for name in group if name not in match.owners]
                for run, name in zip(runs[1:], free):
                    match.owners.append(name)
                    match.original_axis.append(match.original_axis[i])
                    match.owner[run] = len(match.owners) - 1
        used = [name for match, _ in holders for name in match.owners if name in group]
        free = [name for name in group if name not in used]
        for match, i in holders[1:]:
            first = next(other for other, j in holders if other.owners[j] == match.owners[i])
            if first is not match and free:
                match.owners[i] = free.pop(0)


def _spread_multiples(
    matches: dict[str, Match],
    candidate: Mapping[str, np.ndarray],
    original: Mapping[str, np.ndarray],
    indices: dict[int, _Index],
) -> None:
    """Tell the candidates of two originals apart that have the same numbers, up to a factor and whichever way round.

    A head that is the embedding, say: its fibres are found in both. The factor decides, then the shape; where both are
    alike any choice is right, and that of the likest names raises no question.
    """
    names = list(original)
    for number, name in enumerate(names):
        array = np.squeeze(original[name])
        held_by = [match for match in matches.values() if name in match.owners]
        if array.ndim != 2 or _share_together(held_by, name, original[name]) == 1.0:
            continue
        others = set()
        for axis in range(array.ndim):
            index = indices[array.shape[axis]]
            at, _ = index.find(_fingerprints(fibres_of(array, axis))[0], TIGHT, np.flatnonzero(index.owner != number))
            if (at >= 0).all():
                others |= set(index.owner[at].tolist())
        for other in (names[number] for number in others):
            pairs = []
            for match in [match for match in matches.values() if set(match.owners) <= {name, other}]:
                key = match.candidate
                one, two = (
                    _match_one(key, candidate[key], original, [own], _alone(own, original)) for own in (name, other)
                )
                if one and two:
                    pairs.append((_distance(one, original) - _distance(two, original), one, two))
            pairs.sort(key=lambda pair: pair[0])
            for position, (distance, one, two) in enumerate(pairs):
                is_first = position == 0 and (len(pairs) > 1 or distance < 0)
                matches[one.candidate] = one if is_first else two


def _alone(name: str, original: Mapping[str, np.ndarray]) -> dict[int, _Index]:
    """Return the fingerprints of one original."""
    return index_of({name: original[name]})


def _distance(match: Match, original: Mapping[str, np.ndarray]) -> float:
    """Return how little a candidate looks like the original that it holds: by factor, then shape, then name."""
    name = match.owners[0]
    factor = abs(match.uniform_factor() or math.inf)
    is_same_shape = match.shape == np.squeeze(original[name]).shape
    likeness = difflib.SequenceMatcher(None, match.candidate, name).ratio()
    return round(abs(math.log(factor)), 3) + (0 if is_same_shape else 1e-4) + 1e-6 * (1 - likeness)


def restore(
    matching: Matching, candidate: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The originals put together again out of the candidate's numbers, factors divided out; float64 before the cast.

    Args:
        matching: of candidate against original.
        candidate: the arrays that were matched.
        original: gives names, shapes and dtypes; its values are not read.

    Returns:
        Every original of which all fibres were found, under its own name, shape and dtype.
    """
    rebuilt = {}
    for name, array in original.items():
        if name in matching.missing:
            continue
        array = np.atleast_1d(array)
        for axis in range(array.ndim):
            fibres = np.zeros(fibres_of(array, axis).shape)
            seen = np.zeros(len(fibres), bool)
            for match in matching.holders(name):
                position = match.owners.index(name)
                if match.original_axis[position] != axis:
                    continue
                at = np.flatnonzero(match.owner == position)
                rows = fibres_of(np.squeeze(candidate[match.candidate]), match.axis)[at].astype(np.float64)
                fibres[match.fibre[at]] = (rows - match.offset) / match.factor[at, np.newaxis]
                seen[match.fibre[at]] = True
            if seen.any():
                whole = fibres.reshape(np.moveaxis(array, axis, -1).shape)
                rebuilt[name] = np.ascontiguousarray(np.moveaxis(whole, -1, axis)).astype(array.dtype)
                if seen.all():
                    break
    return rebuilt


def positions(match: Match, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """(shape) int64: where each number of an original stands in the flattened candidate; -1 where it does not."""
    owner = match.owners.index(name)
    axis = match.original_axis[owner]
    at = np.flatnonzero(match.owner == owner)
    places = fibres_of(np.arange(math.prod(match.shape)).reshape(match.shape), match.axis)[at]
    moved = [*(size for i, size in enumerate(shape) if i != axis), shape[axis]]
    rows = np.full((math.prod(moved[:-1]), shape[axis]), -1)
    rows[match.fibre[at]] = places
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), -1, axis))


def is_transposed(match: Match, ndim: int) -> bool:
    """Tell whether a match of originals with ndim axes has (out, in) where the original has (in, out)."""
    if ndim != 2 or len(match.shape) < 2:
        return False
    rest = [size for axis, size in enumerate(match.shape) if axis != match.axis]
    fibre = np.where(match.owner == 0, match.fibre, -1).reshape(rest)
    varying = []
    for axis in range(len(rest)):
        ahead, behind = (np.take(fibre, range(i, rest[axis] - 1 + i), axis) for i in (1, 0))
        if np.any((ahead != behind) & (ahead >= 0) & (behind >= 0)):
            varying.append(axis + (axis >= match.axis))
    if not varying:
        return False
    fibres_first = match.axis < varying[-1]
    return fibres_first != (match.original_axis[0] == 0)


def describe(match: Match, original: Mapping[str, np.ndarray], head_dim: int = 0) -> list[str]:
    """Describe in words what was done to the original to make the candidate; [] for a plain copy.

    Args:
        match: one match.
        original: the originals.
        head_dim: width of an attention head, so that permutations of whole heads are called so.
    """
    words = []
    usable = match.owner >= 0
    first = np.atleast_1d(original[match.owners[0]])
    if len(match.owners) > 1:
        number = len(match.owners)
        words.append(f"{number} arrays in one")
    if len(match.shape) > 2:
        words.append(f"split to {'x'.join(map(str, match.shape))}")
    if is_transposed(match, first.ndim):
        words.append("transposed")
    if len(match.owners) == 1:
        words += _order(match.fibre[usable], match.owner, first, match, head_dim)
    else:
        for position, name in enumerate(match.owners):
            order = match.fibre[match.owner == position]
            if not np.array_equal(order, np.arange(len(order))) and len(match.shape) < 3:
                words.append(f"{name} permuted inside")
    if match.offset:
        words.append(f"{match.offset:+g} added")
    factor = match.uniform_factor()
    if factor is None:
        words.append("each row or column scaled by itself")
    elif factor != 1:
        words.append(f"times {factor:.6g}")
    lost = int((match.owner == -2).sum())
    if lost:
        total = len(match.owner)
        words.append(f"{lost} of {total} rows or columns changed")
    return words


def _order(order, owner, first, match, head_dim) -> list[str]:
    """Words for the order in which an original's fibres stand in the candidate."""
    if first.ndim == 1:
        return []
    count = fibres_of(first, match.original_axis[0]).shape[0]
    words = []
    zeros = np.flatnonzero(owner == -1)
    if len(owner) > count:
        words.append(f"padded from {count} to {len(owner)} with zeros")
    elif len(owner) < count:
        words.append(f"cropped from {count} to {len(owner)}")
    elif len(zeros):
        words.append(f"{len(zeros)} of {count} rows or columns zeroed")
    if (owner == -2).any() or len(order) < 2:
        return words
    place = np.flatnonzero(owner >= 0)
    if np.array_equal(order, place):
        return words
    if len(order) == count and np.array_equal(np.sort(order), np.arange(count)):
        if np.array_equal(order, np.arange(count)[::-1]):
            return [*words, "reversed"]
        if head_dim and count % head_dim == 0:
            heads = order.reshape(-1, head_dim)
            if (
                np.array_equal(heads - heads[:, :1], np.broadcast_to(np.arange(head_dim), heads.shape))
                and (heads[:, 0] % head_dim == 0).all()
            ):
                return [*words, f"heads in the order {(heads[:, 0] // head_dim).tolist()}"]
            grid = np.arange(count).reshape(-1, head_dim)
            if np.array_equal(order, grid.T.ravel()):
                return [*words, "head axes exchanged (d h for h d)"]
            if np.array_equal(order, np.argsort(grid.T.ravel())):
                return [*words, "head axes exchanged (h d for d h)"]
        shift = int(order[0])
        if np.array_equal(order, np.roll(np.arange(count), -shift)):
            return [*words, f"rolled by {shift if shift <= count // 2 else shift - count}"]
        if head_dim and count % head_dim == 0 and len(match.shape) > 2:
            return words
        moved = int((order != np.arange(count)).sum())
        if moved == 2:
            pair = np.flatnonzero(order != np.arange(count)).tolist()
            return [*words, f"{pair[0]} and {pair[1]} exchanged"]
        return [*words, f"permuted ({moved} of {count} moved)"]
    if len(set(np.diff(order).tolist())) == 1 and order[1] - order[0] == 1:
        return [*words, f"shifted by {int(order[0] - place[0])}"]
    return [*words, "repeated or out of order"]
