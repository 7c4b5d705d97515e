"""Arrays without readable names, loaded as most of their siblings are to be loaded."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping

import numpy as np

from parity.diagnosis.claims import BY_HEAD
from parity.diagnosis.fibres import Match, Matching, describe, positions


@dataclasses.dataclass
class Standing:
    """The position of one original in one candidate array.

    Attributes:
        name: the original.
        match: the match that holds it.
        start: its first number's position in the flattened candidate.
        order: fingerprint of where all its numbers stand after start; '' where some are missing.
        plain: they ascend along every axis: turned, cut or joined, but not permuted.
        turned: the candidate has (out, in).
        stacked: the candidate holds other layers' arrays of the same kind too.
    """

    name: str
    match: Match
    start: int
    order: str
    plain: bool
    turned: bool
    stacked: bool

    def key(self) -> tuple:
        """Key that siblings have in common: layers of a stack start where they may, parts of a fused array do not."""
        return self.match.shape, self.order, "stacked" if self.stacked else self.start


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
    """Kind of an original, wherever it stands: 'query/kernel', 'scale'."""
    return "scale" if name.endswith("scale") else "/".join(name.split("/")[-2:])


def _standing(match: Match, name: str, shape: tuple[int, ...]) -> Standing:
    places = positions(match, name, shape)
    whole = bool((places >= 0).all())
    start = int(places[places >= 0].min())
    plain = whole and all((np.diff(places, axis=axis) > 0).all() for axis in range(places.ndim))
    turned = False
    if places.ndim == 2 and min(shape) > 1:
        down, along = (np.median(np.abs(np.diff(line))) for line in (places[:, 0], places[0]))
        turned = bool(down < along)
    order = hashlib.blake2b((places - start).astype(np.int32).tobytes()).hexdigest() if whole else ""
    stacked = sum(role_of(other) == role_of(name) for other in match.owners) > 1
    return Standing(name, match, start, order, plain, turned, stacked)


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
    cut, joined) is a convention and is undone; what one has alone is left in, so that it shows, and numbers that differ
    are, in one array or in all. Layers of a stack are taken in the order of the stack.

    Args:
        matching: of candidate against original.
        candidate: the arrays that were matched.
        original: what they should be.
        names: originals to load.
        believed: originals that names tell, whose siblings are not alone.
        transposed: whether kernels found by name are (out, in); None where there are none.
        head_dim: width of a head, for words.
    """
    names, believed = list(names), list(believed)
    standings: dict[str, Standing] = {}
    for name in names:
        holders = matching.holders(name)
        if holders:
            counts = [int((holder.owner == holder.owners.index(name)).sum()) for holder in holders]
            best = max(range(len(holders)), key=lambda i: (counts[i], holders[i].exact))
            if counts[best]:
                standings[name] = _standing(holders[best], name, np.atleast_1d(original[name]).shape)
    templates = _templates(standings, original)
    kernels = [sibling.turned for name, sibling in standings.items() if name.endswith("kernel") and sibling.order]
    turned = sum(kernels) * 2 > len(kernels) if transposed is None else transposed
    arrays: dict[str, np.ndarray] = {}
    starts: dict[str, int] = {}
    odd: dict[str, str] = {}
    words: dict[str, dict[str, None]] = {}
    for name, standing in standings.items():
        template = templates.get((role_of(name), standing.match.shape))
        array = np.squeeze(candidate[standing.match.candidate])
        if template is not None:
            values, start = _as_template(standing, template, standings, array, original[name].shape)
        else:
            start = standing.start
            siblings = [sibling for sibling in standings.values() if role_of(sibling.name) == role_of(name)]
            votes = sum(sibling.turned for sibling in siblings) * 2
            role_turned = turned
            if name.endswith("kernel") and len(siblings) > 1 and votes != len(siblings):
                role_turned = votes > len(siblings)
            alone = len(siblings) + sum(role_of(other) == role_of(name) for other in believed) < 2
            values = _as_it_stands(standing, array, original[name], role_turned, alone)
        if values is None:
            odd[name] = f"stands in {standing.match.candidate} in an order that no sibling shows"
            continue
        arrays[name], starts[name] = values, start
        shared = words.setdefault(role_of(name), {})
        if template is not None or standing.plain:
            model = template or standing
            how = [*_joined(model), *describe(model.match, original, head_dim)]
            shared |= dict.fromkeys(word for word in how if not _OF_ONE.match(word))
    return Loaded(arrays, starts, _conventions(words, {role_of(name) for name in original}), odd)


# what describe says of one array's factor and losses, which are no convention
_OF_ONE = re.compile(r"times|each row|[+-][\d.]+ added|\d+ of \d+ rows|padded|cropped|\d+ arrays in one")


def _parts(match: Match) -> list[str]:
    """Kinds of originals in a candidate array in its order, layers together: ['query/kernel', 'key/kernel', …]."""
    first = {name: int(np.argmax(match.owner == i)) for i, name in enumerate(match.owners)}
    return list(dict.fromkeys(family_of(name) for name in sorted(first, key=lambda name: first[name])))


def _interleaved(match: Match) -> bool:
    """Tell whether a matrix holds pieces of its originals in turn."""
    runs = 1 + int(np.count_nonzero(np.diff(match.owner[match.owner >= 0])))
    return len(match.shape) == 2 and runs > len(match.owners)


# the order in which parts are joined where nothing says otherwise
_USUAL = ("query/kernel", "key/kernel", "value/kernel", "out/kernel", "wi_0/kernel", "wi_1/kernel", "wo/kernel")


def _is_usual(match: Match) -> bool:
    parts = [part for part in _USUAL if part in _parts(match)]
    in_turn = _interleaved(match) and not BY_HEAD.search(match.candidate.lower())
    return not in_turn and _parts(match) in (parts, _parts(match)[:1])


def _joined(standing: Standing) -> list[str]:
    parts = [part.split("/")[0] for part in _parts(standing.match)]
    words = ["stacked by layer"] if standing.stacked else []
    if len(parts) > 1:
        words.append(f"joined as {', '.join(parts)}" + (", interleaved" if _interleaved(standing.match) else ""))
    return words


def _templates(standings: Mapping[str, Standing], original: Mapping[str, np.ndarray]) -> dict[tuple, Standing]:
    """(role, candidate's shape) -> the standing that most siblings share, where there are siblings that share one."""
    groups: dict[tuple, list[Standing]] = {}
    families: dict[tuple, collections.Counter] = {}
    for name, standing in standings.items():
        if standing.order:
            groups.setdefault((role_of(name), standing.match.shape), []).append(standing)
            families.setdefault((family_of(name), standing.match.shape), collections.Counter())[standing.key()] += 1
    templates = {}
    for (role, shape), group in groups.items():
        own, family = collections.Counter(standing.key() for standing in group), families[family_of(role), shape]
        best = max(
            group,
            key=lambda standing: (
                own[standing.key()],
                family[standing.key()],
                standing.plain,
                _is_usual(standing.match),
            ),
        )
        if max(len(group), family[best.key()]) > 1:
            templates[role, shape] = best
    return {
        key: standing
        for key, standing in templates.items()
        if standing.plain or _is_shared(key[0], standing, templates, original)
    }


def _is_shared(
    role: str, standing: Standing, templates: Mapping[tuple, Standing], original: Mapping[str, np.ndarray]
) -> bool:
    """Tell whether all kernels of a module are in another order, query, key and value in the same one."""
    module = role.rsplit("/", 2)[0]
    partners = {role_of(name) for name in original if role_of(name).rsplit("/", 2)[0] == module}
    orders = {partner: other for (partner, _), other in templates.items() if partner in partners and not other.plain}
    parts = ("/query/kernel", "/key/kernel", "/value/kernel")
    same = {orders[partner].order for partner in orders if partner.endswith(parts)}
    return set(orders) == partners and len(same) < 2


def _as_template(standing, template, standings, array, shape) -> tuple[np.ndarray | None, int]:
    """The numbers that stand in an array where a sibling's stand in its own, and where the first of them stands."""
    places = positions(template.match, template.name, shape) - template.start
    start = template.start
    if template.stacked:
        role = role_of(standing.name)
        layers = [name for name in standing.match.owners if role_of(name) == role]
        if any(name not in standings or not standings[name].order for name in layers):
            own = positions(standing.match, standing.name, shape)
            start = int(np.median((own - places)[own >= 0]))
        else:
            starts = sorted(standings[name].start for name in layers)
            start = starts[sorted(layers, key=_layer).index(standing.name)]
    places += start
    if places.min() < 0 or places.max() >= array.size:
        return None, start
    return array.ravel()[places].reshape(shape), start


def _layer(name: str) -> int:
    number = re.search(r"layers_(\d+)", name)
    return int(number[1]) if number else 0


def _as_it_stands(standing, array, own, turned, alone) -> np.ndarray | None:
    """An array that is like none of its siblings: as its shape, or else the candidate's other kernels, have it."""
    if len(standing.match.owners) == 1 and array.ndim == own.ndim:
        if own.ndim < 2:
            return array
        if own.shape[0] != own.shape[1] and alone:
            fits = any(a == b for a, b in zip(array.shape, own.shape))
            return array if fits else array.T
        return array.T if turned and standing.name.endswith("kernel") else array
    if standing.plain and _is_usual(standing.match) and (own.ndim < 2 or standing.turned == turned):
        return array.ravel()[positions(standing.match, standing.name, own.shape)]
    return None


def _conventions(words: Mapping[str, Iterable[str]], roles: Iterable[str]) -> list[str]:
    """'every kernel transposed', 'encoder/layers_#/attention/query split to 48x3x16 (and 2 more)'."""
    sentences = []
    for word in dict.fromkeys(word for by_role in words.values() for word in by_role):
        left = [role for role in words if word in words[role]]
        for ending, what in (("kernel", "every kernel"), ("scale", "every norm scale")):
            of = [role for role in roles if role.endswith(ending)]
            if set(of) <= set(left):
                sentences.append(f"{what} {word}")
                left = [role for role in left if role not in of]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            sentences.append(f"{left[0].rpartition('/')[0]} {word}{more}")
    return sentences
