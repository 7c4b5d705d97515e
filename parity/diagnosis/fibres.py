"""Which array of a candidate holds which weights of an original, found from the numbers alone; names are not looked at.

A *fibre* is a vector along one axis of an array. Splitting, merging and permuting heads, fusing q, k and v, stacking
over layers, transposing and padding all move fibres about and leave each one whole along the other axis. So every
fibre gets a fingerprint (random projections divided by its norm, which a scalar factor does not change), every fibre
of the candidate is looked up among those of the original, and what was found is then compared bit for bit.
"""

import collections
import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

PROJECTIONS = 8
# of a fingerprint's entries, which are of size 1: exact copies and copies scaled in float32 ...
TIGHT = 2e-6
# ... and copies rounded to bfloat16, whose entries are off by 1.1e-3 (one standard deviation)
LOOSE = 1e-2
# share of an array's fibres that must be found for the array to count as matched
ENOUGH = 0.5
SAMPLED_FIBRES = 64
# relative difference up to which two factors, each read off an array that may be rounded, are one
ONE_FACTOR = 1e-3
# elements multiplied in float32 by a factor that is no power of two are within two units of their last place
LAST_PLACE = 2.0**-22


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
        return _one_factor(self.factor[self.owner >= 0])


@dataclasses.dataclass
class Matching:
    """The outcome of match.

    Attributes:
        matches: candidate name -> Match, for every candidate array that was explained.
        unused: candidate arrays that hold nothing of the original.
        missing: originals of which no fibre was found, or not all: name -> share found.
        duplicates: original -> the candidates that hold all of it, where there are several.
        alike: groups of originals with equal bits: any assignment among them gives the same weights.
    """

    matches: dict[str, Match]
    unused: list[str]
    missing: dict[str, float]
    duplicates: dict[str, list[str]]
    alike: list[list[str]]

    def holders(self, original: str) -> list[Match]:
        """The matches that hold fibres of an original."""
        return [match for match in self.matches.values() if original in match.owners]


@functools.lru_cache(maxsize=64)
def _directions(length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((length, PROJECTIONS))


def _fibres(array: np.ndarray, axis: int) -> np.ndarray:
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
            entries.setdefault(array.shape[axis], []).append((number, axis, *_fingerprints(_fibres(array, axis))))
    return {length: _Index(found) for length, found in entries.items()}


def match(
    candidate: Mapping[str, np.ndarray],
    original: Mapping[str, np.ndarray],
    indices: dict[int, _Index] | None = None,
) -> Matching:
    """Which arrays of candidate hold which of original, whatever they are called.

    Found: transposition, any split, merge, exchange or permutation of axes that keeps one axis whole (heads), fusing
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
        found = _match_one(name, array, original, names, indices)
        if found is None:
            unused.append(name)
        else:
            matches[name] = found
    by_bits: dict[tuple, list[str]] = {}
    for name in names:
        array = np.ascontiguousarray(original[name])
        by_bits.setdefault((array.shape, array.dtype.name, array.tobytes()), []).append(name)
    alike = [group for group in by_bits.values() if len(group) > 1]
    _spread(matches, alike)
    missing, duplicates = {}, {}
    for name in names:
        holders = [found for found in matches.values() if name in found.owners]
        shares = [_share(found, name, original[name]) for found in holders]
        whole = [found.candidate for found, share in zip(holders, shares) if share == 1.0]
        if len(whole) > 1:
            duplicates[name] = whole
        together = _share_together(holders, name, original[name])
        if together < 1.0:
            missing[name] = together
    return Matching(matches, unused, missing, duplicates, alike)


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
            found = _match_axis(name, shifted, axis, names, indices)
            if found is None:
                continue
            if best is None or (found.owner != -2).mean() > (best.owner != -2).mean():
                best = found
        if best is not None:
            best.offset = offset
            _verify(best, array, original)
            return best
    return None


def _match_axis(name, array, axis, names, indices) -> Match | None:
    index = indices.get(array.shape[axis])
    if index is None:
        return None
    prints, norms = _fingerprints(_fibres(array, axis))
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


def expected(found: Match, original: Mapping[str, np.ndarray]) -> np.ndarray:
    """(fibres, length) float64: what the original's fibres say the candidate's should be, zero where not found."""
    length = found.shape[found.axis]
    values = np.zeros((len(found.owner), length))
    for position, name in enumerate(found.owners):
        at = np.flatnonzero(found.owner == position)
        fibres = _fibres(np.atleast_1d(original[name]), found.original_axis[position])
        values[at] = (fibres[found.fibre[at]].astype(np.float64)) * found.factor[at, np.newaxis] + found.offset
    return values


def _one_factor(factors: np.ndarray) -> float | None:
    """The factor that fibres share, exactly a power of two or its root where it is near one; None where they differ."""
    middle = float(np.median(factors))
    if not np.all(np.abs(factors - middle) <= 1e-2 * abs(middle)):
        return None
    near = float(np.sign(middle) * 2.0 ** (np.round(np.log2(np.abs(middle)) * 2) / 2))
    # casts to bfloat16 move the norm of a fibre by less than this
    return near if abs(near - middle) <= 3e-3 * abs(middle) else middle


def _verify(found: Match, array: np.ndarray, original: Mapping[str, np.ndarray]) -> None:
    factor = found.uniform_factor()
    if factor is not None:
        found.factor[found.owner >= 0] = factor
    values = expected(found, original)
    usable = found.owner != -2
    have = _fibres(array, found.axis)[usable]
    want = values[usable].astype(array.dtype)
    if have.tobytes() == want.tobytes() or np.array_equal(have, want):
        found.exact, found.error = True, 0.0
        return
    scale = np.abs(values).max() or 1.0
    found.error = float(np.abs(have.astype(np.float64) - values[usable]).max() / scale)


def _share(found: Match, name: str, array: np.ndarray) -> float:
    return _share_together([found], name, array)


def _share_together(holders: list[Match], name: str, array: np.ndarray) -> float:
    """Share of an original's fibres that are in any of the matches; fibres of zeros need no holder."""
    array = np.atleast_1d(array)
    best = 0.0
    for axis in range(array.ndim):
        fibres = _fibres(array, axis)
        seen = ~np.any(fibres != 0, axis=1)
        touched = False
        for found in holders:
            position = found.owners.index(name)
            if found.original_axis[position] == axis:
                seen[found.fibre[found.owner == position]] = True
                touched = True
        if touched:
            best = max(best, float(seen.mean()))
    return best


def _spread(matches: dict[str, Match], alike: list[list[str]]) -> None:
    """Gives each of several candidates its own of several originals with equal bits, in order."""
    for group in alike:
        holders = [(found, i) for found in matches.values() for i, name in enumerate(found.owners) if name in group]
        # a stack of equal arrays is one match whose fibres all point at the first: deal them out
        for found, i in holders:
            at = np.flatnonzero(found.owner == i)
            runs = [run for run in np.split(at, np.flatnonzero(np.diff(found.fibre[at]) <= 0) + 1) if len(run)]
            if len(runs) > 1:
                free = [name for name in group if name not in found.owners]
                for run, name in zip(runs[1:], free):
                    found.owners.append(name)
                    found.original_axis.append(found.original_axis[i])
                    found.owner[run] = len(found.owners) - 1
        used = [name for found, _ in holders for name in found.owners if name in group]
        free = [name for name in group if name not in used]
        for found, i in holders[1:]:
            first = next(other for other, j in holders if other.owners[j] == found.owners[i])
            if first is not found and free:
                found.owners[i] = free.pop(0)


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
    found_arrays = {}
    for name, array in original.items():
        if name in matching.missing:
            continue
        array = np.atleast_1d(array)
        for axis in range(array.ndim):
            fibres = np.zeros(_fibres(array, axis).shape)
            seen = np.zeros(len(fibres), bool)
            for found in matching.holders(name):
                position = found.owners.index(name)
                if found.original_axis[position] != axis:
                    continue
                at = np.flatnonzero(found.owner == position)
                rows = _fibres(np.squeeze(candidate[found.candidate]), found.axis)[at].astype(np.float64)
                fibres[found.fibre[at]] = (rows - found.offset) / found.factor[at, np.newaxis]
                seen[found.fibre[at]] = True
            if seen.any():
                whole = fibres.reshape(np.moveaxis(array, axis, -1).shape)
                found_arrays[name] = np.ascontiguousarray(np.moveaxis(whole, -1, axis)).astype(array.dtype)
                if seen.all():
                    break
    return found_arrays


@dataclasses.dataclass
class Standing:
    """How one original stands in one candidate array.

    Attributes:
        name: the original.
        found: the match that holds it.
        start: its first number's position in the flattened candidate.
        order: fingerprint of where all its numbers stand after start; '' where some were not found.
        plain: they ascend along every axis: turned, cut or joined, but not permuted.
        turned: the candidate has (out, in).
        stacked: the candidate holds other layers' arrays of the same kind too.
        factor: candidate / original; None where it is not one number.
    """

    name: str
    found: Match
    start: int
    order: str
    plain: bool
    turned: bool
    stacked: bool
    factor: float | None

    def key(self) -> tuple:
        """What siblings have in common: layers of a stack start where they may, parts of a fused array do not."""
        return self.found.shape, self.order, "stacked" if self.stacked else self.start


@dataclasses.dataclass
class Loaded:
    """Originals as a loader would get them that treats every array as it treats the array's siblings.

    Attributes:
        arrays: MT3's names -> arrays in MT3's layout.
        starts: original -> where in the flattened candidate array its first number was taken.
        conventions: what all siblings share, in words: 'every kernel transposed'.
        odd: original -> why nothing can be said of it without names.
    """

    arrays: dict[str, np.ndarray]
    starts: dict[str, int]
    conventions: list[str]
    odd: dict[str, str]


def role_of(name: str) -> str:
    """An original's name without the number of its layer."""
    return re.sub(r"layers_\d+", "layers_#", name)


def family_of(name: str) -> str:
    """What an original is, wherever it stands: 'query/kernel', 'scale'."""
    return "scale" if name.endswith("scale") else "/".join(name.split("/")[-2:])


def positions(found: Match, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """(shape) int64: where each number of an original stands in the flattened candidate; -1 where it does not."""
    owner = found.owners.index(name)
    axis = found.original_axis[owner]
    at = np.flatnonzero(found.owner == owner)
    places = _fibres(np.arange(math.prod(found.shape)).reshape(found.shape), found.axis)[at]
    moved = [*(size for i, size in enumerate(shape) if i != axis), shape[axis]]
    rows = np.full((math.prod(moved[:-1]), shape[axis]), -1)
    rows[found.fibre[at]] = places
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), -1, axis))


def _standing(found: Match, name: str, shape: tuple[int, ...]) -> Standing:
    places = positions(found, name, shape)
    whole = bool((places >= 0).all())
    start = int(places[places >= 0].min())
    plain = whole and all((np.diff(places, axis=axis) > 0).all() for axis in range(places.ndim))
    turned = False
    if places.ndim == 2 and min(shape) > 1:
        down, along = (np.median(np.abs(np.diff(line))) for line in (places[:, 0], places[0]))
        turned = bool(down < along)
    order = hashlib.blake2b((places - start).astype(np.int32).tobytes()).hexdigest() if whole else ""
    stacked = sum(role_of(other) == role_of(name) for other in found.owners) > 1
    factor = _one_factor(found.factor[found.owner == found.owners.index(name)])
    return Standing(name, found, start, order, plain, turned, stacked, factor)


def load_as_siblings(
    matching: Matching,
    candidate: Mapping[str, np.ndarray],
    original: Mapping[str, np.ndarray],
    names: Iterable[str],
    believed: Iterable[str] = (),
    transposed: bool | None = None,
    head_dim: int = 0,
) -> Loaded:
    """Originals whose place in the candidate no name tells, loaded as most of their siblings are to be loaded.

    Siblings are the same array of other layers, and of the other attentions or norms. What they all share (turned,
    cut, joined, scaled by one factor) is a convention and is undone; what one has alone is left in, so that it shows.
    Layers of a stack are taken in the order of the stack.

    Args:
        matching: of candidate against original.
        candidate: the arrays that were matched.
        original: what they should be.
        names: originals to load.
        believed: originals that names tell, of which and of whose siblings no factor is a convention.
        transposed: whether kernels found by name are (out, in); None where there are none.
        head_dim: width of a head, for words.
    """
    names, believed = list(names), list(believed)
    standings: dict[str, Standing] = {}
    for name in names:
        holders = matching.holders(name)
        if holders:
            held = [int((found.owner == found.owners.index(name)).sum()) for found in holders]
            best = max(range(len(holders)), key=lambda i: (held[i], holders[i].exact))
            if held[best]:
                standings[name] = _standing(holders[best], name, np.atleast_1d(original[name]).shape)
    templates, factors = _templates(standings, original), _factors(standings, believed)
    kernels = [each.turned for name, each in standings.items() if name.endswith("kernel") and each.order]
    turned = sum(kernels) * 2 > len(kernels) if transposed is None else transposed
    arrays: dict[str, np.ndarray] = {}
    starts: dict[str, int] = {}
    odd: dict[str, str] = {}
    words: dict[str, dict[str, None]] = {}
    for name, standing in standings.items():
        template, (factor, offset) = templates.get((role_of(name), standing.found.shape)), factors[role_of(name)]
        array = np.squeeze(candidate[standing.found.candidate])
        if template is not None:
            values, start = _as_template(standing, template, standings, array, original[name].shape)
        else:
            start = standing.start
            siblings = [each for each in standings.values() if role_of(each.name) == role_of(name)]
            votes = sum(each.turned for each in siblings) * 2
            role_turned = turned
            if name.endswith("kernel") and len(siblings) > 1 and votes != len(siblings):
                role_turned = votes > len(siblings)
            alone = len(siblings) + sum(role_of(other) == role_of(name) for other in believed) < 2
            values = _as_it_stands(standing, array, original[name], role_turned, alone)
        if values is None:
            odd[name] = f"stands in {standing.found.candidate} in an order that no sibling shows"
            continue
        arrays[name], starts[name] = _undone(values, np.asarray(original[name]), factor, offset), start
        said = words.setdefault(role_of(name), {})
        if template is not None or standing.plain:
            model = template or standing
            told = [*_joined(model), *describe(model.found, original, head_dim)]
            said |= dict.fromkeys(word for word in told if not _OF_ONE.match(word))
        if factor != 1:
            said[f"times {factor:.6g}"] = None
        if offset:
            said[f"{offset:+g} added"] = None
    return Loaded(arrays, starts, _conventions(words, {role_of(name) for name in original}), odd)


# what describe says of one array's factor and losses, which are no convention
_OF_ONE = re.compile(r"times|each row|[+-][\d.]+ added|\d+ of \d+ rows|padded|cropped|\d+ arrays in one")


def _parts(found: Match) -> list[str]:
    """What stands in a candidate array, in its order, layers taken together: ['query/kernel', 'key/kernel', …]."""
    first = {name: int(np.argmax(found.owner == i)) for i, name in enumerate(found.owners)}
    return list(dict.fromkeys(family_of(name) for name in sorted(first, key=lambda name: first[name])))


def _interleaved(found: Match) -> bool:
    """Whether a matrix holds pieces of its originals in turn."""
    runs = 1 + int(np.count_nonzero(np.diff(found.owner[found.owner >= 0])))
    return len(found.shape) == 2 and runs > len(found.owners)


# the order in which parts are joined where nothing says otherwise
_USUAL = ("query/kernel", "key/kernel", "value/kernel", "out/kernel", "wi_0/kernel", "wi_1/kernel", "wo/kernel")


def _is_usual(found: Match) -> bool:
    parts = [part for part in _USUAL if part in _parts(found)]
    return not _interleaved(found) and _parts(found) in (parts, _parts(found)[:1])


def _joined(standing: Standing) -> list[str]:
    parts = [part.split("/")[0] for part in _parts(standing.found)]
    words = ["stacked by layer"] if standing.stacked else []
    if len(parts) > 1:
        words.append(f"joined as {', '.join(parts)}" + (", interleaved" if _interleaved(standing.found) else ""))
    return words


def _templates(standings: Mapping[str, Standing], original: Mapping[str, np.ndarray]) -> dict[tuple, Standing]:
    """(role, candidate's shape) -> the standing that most siblings share, where there are siblings that share one."""
    groups: dict[tuple, list[Standing]] = {}
    families: dict[tuple, collections.Counter] = {}
    for name, each in standings.items():
        if each.order:
            groups.setdefault((role_of(name), each.found.shape), []).append(each)
            families.setdefault((family_of(name), each.found.shape), collections.Counter())[each.key()] += 1
    found = {}
    for (role, shape), group in groups.items():
        own, family = collections.Counter(each.key() for each in group), families[family_of(role), shape]
        best = max(group, key=lambda each: (own[each.key()], family[each.key()], each.plain, _is_usual(each.found)))
        if max(len(group), family[best.key()]) > 1:
            found[role, shape] = best
    return {key: each for key, each in found.items() if each.plain or _is_shared(key[0], each, found, original)}


def _is_shared(role: str, each: Standing, found: Mapping[tuple, Standing], original: Mapping[str, np.ndarray]) -> bool:
    """Whether all kernels of a module are in another order, query, key and value in the same one."""
    module = role.rsplit("/", 2)[0]
    partners = {role_of(name) for name in original if role_of(name).rsplit("/", 2)[0] == module}
    orders = {partner: other for (partner, _), other in found.items() if partner in partners and not other.plain}
    parts = ("/query/kernel", "/key/kernel", "/value/kernel")
    same = {orders[partner].order for partner in orders if partner.endswith(parts)}
    return set(orders) == partners and len(same) < 2


def _factors(standings: Mapping[str, Standing], believed: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Role -> (factor, offset) that most siblings share; (1, 0) where none do, or where names tell the role."""
    votes = [(name, each.factor, each.found.offset) for name, each in standings.items() if each.factor is not None]
    votes += [(name, 1.0, 0.0) for name in believed]
    chosen, named = {}, {role_of(name) for name in believed}
    for role in {role_of(name) for name in standings}:
        family = [(factor, offset) for name, factor, offset in votes if family_of(name) == family_of(role)]
        own = [(factor, offset) for name, factor, offset in votes if role_of(name) == role]

        def count(pair: tuple[float, float], among: list[tuple[float, float]]) -> int:
            return sum(abs(f - pair[0]) <= ONE_FACTOR * abs(f) and o == pair[1] for f, o in among)

        best = max(
            own or family or [(1.0, 0.0)],
            key=lambda pair: (count(pair, own), count(pair, family), pair == (1.0, 0.0)),
        )
        shared = max(count(best, own), count(best, family)) > 1 and role not in named
        chosen[role] = best if shared else (1.0, 0.0)
    return chosen


def _as_template(standing, template, standings, array, shape) -> tuple[np.ndarray | None, int]:
    """The numbers that stand in an array where a sibling's stand in its own, and where the first of them stands."""
    places = positions(template.found, template.name, shape) - template.start
    start = template.start
    if template.stacked:
        role = role_of(standing.name)
        layers = [name for name in standing.found.owners if role_of(name) == role]
        if any(name not in standings or not standings[name].order for name in layers):
            own = positions(standing.found, standing.name, shape)
            start = int(np.median((own - places)[own >= 0]))
        else:
            starts = sorted(standings[name].start for name in layers)
            start = starts[sorted(layers, key=_layer).index(standing.name)]
    places += start
    if places.min() < 0 or places.max() >= array.size:
        return None, start
    return array.ravel()[places].reshape(shape), start


def _layer(name: str) -> int:
    found = re.search(r"layers_(\d+)", name)
    return int(found[1]) if found else 0


def _as_it_stands(standing, array, own, turned, alone) -> np.ndarray | None:
    """An array that is like none of its siblings: as its shape, or else the candidate's other kernels, have it."""
    if len(standing.found.owners) == 1 and array.ndim == own.ndim:
        if own.ndim < 2:
            return array
        if own.shape[0] != own.shape[1] and alone:
            fits = any(a == b for a, b in zip(array.shape, own.shape))
            return array if fits else array.T
        return array.T if turned and standing.name.endswith("kernel") else array
    if standing.plain and _is_usual(standing.found) and (own.ndim < 2 or standing.turned == turned):
        return array.ravel()[positions(standing.found, standing.name, own.shape)]
    return None


def _undone(values: np.ndarray, own: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Numbers with a convention's factor and offset taken off; the original's bits where these explain every bit."""
    import ml_dtypes

    wide = np.result_type(own.dtype, values.dtype)
    exact = values.astype(np.float64)
    if offset == 0 and abs(math.frexp(factor)[0]) == 0.5:
        return (exact / factor).astype(wide)
    if values.shape == own.shape:
        for each in _near(factor):
            want = own.astype(np.float64) * each + offset
            if any(np.array_equal(exact, want.astype(kind).astype(np.float64)) for kind in (wide, own.dtype)):
                return own.copy()
            for low in (ml_dtypes.bfloat16, np.float16):
                if np.array_equal(exact, want.astype(np.float32).astype(low).astype(np.float64)):
                    return own.astype(np.float32).astype(low).astype(own.dtype)
        if offset == 0 and np.all(np.abs(exact - want) <= LAST_PLACE * np.abs(want)):
            return own.copy()
    return ((exact - offset) / factor).astype(wide)


def _near(factor: float) -> list[float]:
    """A factor as it was read, in float32, and the root of a whole number or its inverse that is next to it."""
    found = [factor, float(np.float32(factor))]
    square = factor**2 if abs(factor) > 1 else factor**-2
    root = math.copysign(round(square) ** (0.5 if abs(factor) > 1 else -0.5), factor)
    return [*found, root, float(np.float32(root))] if abs(root - factor) <= ONE_FACTOR * abs(factor) else found


def _conventions(words: Mapping[str, Iterable[str]], roles: Iterable[str]) -> list[str]:
    """'every kernel transposed', 'encoder/layers_#/attention/query times 0.25 (and 2 more)'."""
    said = []
    for word in dict.fromkeys(word for each in words.values() for word in each):
        left = [role for role in words if word in words[role]]
        for ending, what in (("kernel", "every kernel"), ("scale", "every norm scale")):
            of = [role for role in roles if role.endswith(ending)]
            if set(of) <= set(left):
                said.append(f"{what} {word}")
                left = [role for role in left if role not in of]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            said.append(f"{left[0].rpartition('/')[0]} {word}{more}")
    return said


def is_transposed(found: Match, ndim: int) -> bool:
    """Whether a match of originals with ndim axes has (out, in) where the original has (in, out)."""
    if ndim != 2 or len(found.shape) < 2:
        return False
    rest = [size for axis, size in enumerate(found.shape) if axis != found.axis]
    fibre = np.where(found.owner == 0, found.fibre, -1).reshape(rest)
    varying = []
    for axis in range(len(rest)):
        ahead, behind = (np.take(fibre, range(i, rest[axis] - 1 + i), axis) for i in (1, 0))
        if np.any((ahead != behind) & (ahead >= 0) & (behind >= 0)):
            varying.append(axis + (axis >= found.axis))
    if not varying:
        return False
    fibres_first = found.axis < varying[-1]
    return fibres_first != (found.original_axis[0] == 0)


def describe(found: Match, original: Mapping[str, np.ndarray], head_dim: int = 0) -> list[str]:
    """What was done to the original to make the candidate, in words; [] for a plain copy.

    Args:
        found: one match.
        original: the originals.
        head_dim: width of an attention head, so that permutations of whole heads are called so.
    """
    words = []
    usable = found.owner >= 0
    first = np.atleast_1d(original[found.owners[0]])
    if len(found.owners) > 1:
        words.append(f"{len(found.owners)} arrays in one")
    if len(found.shape) > 2:
        words.append(f"split to {'x'.join(map(str, found.shape))}")
    if is_transposed(found, first.ndim):
        words.append("transposed")
    if len(found.owners) == 1:
        words += _order(found.fibre[usable], found.owner, first, found, head_dim)
    else:
        for position, name in enumerate(found.owners):
            order = found.fibre[found.owner == position]
            if not np.array_equal(order, np.arange(len(order))) and len(found.shape) < 3:
                words.append(f"{name} permuted inside")
    if found.offset:
        words.append(f"{found.offset:+g} added")
    factor = found.uniform_factor()
    if factor is None:
        words.append("each row or column scaled by itself")
    elif factor != 1:
        words.append(f"times {factor:.6g}")
    lost = int((found.owner == -2).sum())
    if lost:
        words.append(f"{lost} of {len(found.owner)} rows or columns changed")
    return words


def _order(order, owner, first, found, head_dim) -> list[str]:
    """Words for the order in which an original's fibres stand in the candidate."""
    if first.ndim == 1:
        return []
    count = _fibres(first, found.original_axis[0]).shape[0]
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
        shift = int(order[0])
        if np.array_equal(order, np.roll(np.arange(count), -shift)):
            return [*words, f"rolled by {shift if shift <= count // 2 else shift - count}"]
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
            if len(found.shape) > 2:
                return words
        moved = int((order != np.arange(count)).sum())
        if moved == 2:
            pair = np.flatnonzero(order != np.arange(count)).tolist()
            return [*words, f"{pair[0]} and {pair[1]} exchanged"]
        return [*words, f"permuted ({moved} of {count} moved)"]
    if len(set(np.diff(order).tolist())) == 1 and order[1] - order[0] == 1:
        return [*words, f"shifted by {int(order[0] - place[0])}"]
    return [*words, "repeated or out of order"]
