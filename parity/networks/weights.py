"""Pairs of two networks' arrays, by name, by a map of names, or by content; and what differs in a pair."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from parity.compare.results import Row
from parity.diagnosis import fibres
from parity.networks.names import NameMap, slashed
from parity.networks.network import Weight

# Widths of an attention head that are tried, to call a permutation one of heads.
HEAD_WIDTHS = (64, 32, 16, 8, 4, 2)


@dataclasses.dataclass
class Cause:
    """A fault with a name.

    Attributes:
        site: the module or array, as Flax writes names, or 'between a and b'.
        cause: short and stable, for programs; 'unknown' if nothing explains it.
        text: for people.
        error: what the explanation leaves, relative to the largest value; None without an explanation.
    """

    site: str
    cause: str
    text: str
    error: float | None = None

    def sentence(self) -> str:
        """Return 'mlp/down: transposed'."""
        return f"{self.site}: {self.text}"


@dataclasses.dataclass
class Pair:
    """Two arrays that stand for one another; `how` is 'name', 'map' or 'content'."""

    reference: Weight
    candidate: Weight
    how: str


@dataclasses.dataclass
class Pairing:
    """All pairs, what is joined in one array, and what is left over."""

    pairs: list[Pair] = dataclasses.field(default_factory=list)
    joined: list[tuple[Weight, list[Weight], list[str]]] = dataclasses.field(default_factory=list)
    reference_only: list[Weight] = dataclasses.field(default_factory=list)
    candidate_only: list[Weight] = dataclasses.field(default_factory=list)

    def modules(self) -> dict[str, str]:
        """Return the candidate's module of every module of the reference whose arrays have a pair there."""
        votes: dict[str, list[str]] = {}
        for pair in self.pairs:
            votes.setdefault(pair.reference.module, []).append(pair.candidate.module)
        return {module: max(set(names), key=names.count) for module, names in votes.items()}


def _content(array: np.ndarray) -> str:
    """Return a digest of an array's values that no permutation changes."""
    return hashlib.sha256(np.sort(array.astype(np.float64), axis=None).tobytes()).hexdigest()


def pair_weights(reference: Sequence[Weight], candidate: Sequence[Weight], names: NameMap) -> Pairing:
    """Find the candidate's array for each of the reference's: by name, then by content."""
    pairing = Pairing()
    by_name = {name: weight for weight in candidate for name in (*weight.aliases, weight.name)}
    taken: set[int] = set()
    left = []
    for weight in reference:
        for own in (weight.name, *weight.aliases):
            name = names.candidate(own)
            partner = by_name.get(name)
            if partner is not None and id(partner) not in taken:
                pairing.pairs.append(Pair(weight, partner, "name" if name == own else "map"))
                taken.add(id(partner))
                break
        else:
            left.append(weight)
    rest = [weight for weight in candidate if id(weight) not in taken]
    left, rest = _pair_by_content(pairing, left, rest)
    left, rest = _pair_in_modules(pairing, left, rest)
    left, rest = _pair_joined(pairing, left, rest)
    left, rest = _pair_by_content(pairing, left, rest, repeated=True)
    left, rest = _pair_by_fibres(pairing, left, rest)
    pairing.reference_only, pairing.candidate_only = left, rest
    return pairing


def _take(
    pairing: Pairing, left: list[Weight], rest: list[Weight], chosen: list[tuple[Weight, Weight]]
) -> tuple[list[Weight], list[Weight]]:
    pairing.pairs += [Pair(a, b, "content") for a, b in chosen]
    gone = {id(weight) for pair in chosen for weight in pair}
    return [w for w in left if id(w) not in gone], [w for w in rest if id(w) not in gone]


def _pair_by_content(
    pairing: Pairing, left: list[Weight], rest: list[Weight], repeated: bool = False
) -> tuple[list[Weight], list[Weight]]:
    """Pair arrays with the same values in any order; several with equal values (zeros, ones) in order, if asked."""
    groups: dict[str, tuple[list[Weight], list[Weight]]] = {}
    for number, side in enumerate((left, rest)):
        for weight in side:
            groups.setdefault(_content(weight.array), ([], []))[number].append(weight)
    chosen = []
    for a, b in groups.values():
        if len(a) == len(b) == 1 or (repeated and len(a) == len(b)):
            chosen += list(zip(a, b))
    return _take(pairing, left, rest, chosen)


def _pair_in_modules(pairing: Pairing, left: list[Weight], rest: list[Weight]) -> tuple[list[Weight], list[Weight]]:
    """Pair the arrays with one word in modules of which another array has a pair."""
    modules, chosen = pairing.modules(), []
    for weight in left:
        module = modules.get(weight.module)
        partner = next((w for w in rest if w.module == module and w.leaf == weight.leaf), None)
        if partner is not None and all(partner is not other for _, other in chosen):
            chosen.append((weight, partner))
    return _take(pairing, left, rest, chosen)


# The order in which the parts of a joined array stand, by the words of its name.
_JOINED_ORDER = {
    "in_proj": "qkv",
    "qkv": "qkv",
    "query_key_value": "qkv",
    "c_attn": "qkv",
    "kv": "kv",
    "key_value": "kv",
}


def _pair_joined(pairing: Pairing, left: list[Weight], rest: list[Weight]) -> tuple[list[Weight], list[Weight]]:
    """Pair arrays of either side that are several of the other side's, one behind the other along an axis."""
    for swapped in (False, True):
        whole, parts = (left, rest) if swapped else (rest, left)
        contents = {_content(weight.array): weight for weight in parts}
        for holder in list(whole):
            owners = _joined_owners(holder, contents)
            if owners is None or any(all(w is not o for w in parts) for o in owners):
                continue
            pairing.joined.append((holder, owners, _wrong_order(holder, owners)))
            gone = {id(holder), *(id(owner) for owner in owners)}
            left = [w for w in left if id(w) not in gone]
            rest = [w for w in rest if id(w) not in gone]
            whole, parts = (left, rest) if swapped else (rest, left)
    return left, rest


def _joined_owners(holder: Weight, contents: dict[str, Weight]) -> list[Weight] | None:
    for axis in range(min(holder.array.ndim, 2)):
        for count in (3, 2, 4):
            if holder.array.shape[axis] % count == 0:
                pieces = [_content(piece) for piece in np.split(holder.array, count, axis)]
                if len(set(pieces)) == count and all(piece in contents for piece in pieces):
                    return [contents[piece] for piece in pieces]
    return None


def _wrong_order(holder: Weight, owners: list[Weight]) -> list[str]:
    """Return what is wrong with the order of a joined array's parts, where its name says what the order should be."""
    words = (word for word in _JOINED_ORDER if re.search(rf"(^|[._]){word}([._]|$)", holder.own_name))
    order = next((_JOINED_ORDER[word] for word in words), "")
    roles = "".join(role_of(owner.module) for owner in owners)
    if not order or sorted(roles) != sorted(order) or roles == order:
        return []
    full = {"q": "query", "k": "key", "v": "value"}
    return [f"joined as {', '.join(full[r] for r in roles)}, not as {', '.join(full[r] for r in order)}"]


def role_of(module: str) -> str:
    """Return 'q', 'k' or 'v' for a projection of an attention that is called so, else ''."""
    last = re.split(r"[./]", re.sub(r"#\d+$", "", module))[-1].lower()
    for role, word in (("q", "query"), ("k", "key"), ("v", "value")):
        if last in (role, word, f"w{role}", f"{role}_proj", f"to_{role}", f"linear_{role}", f"{role}_lin"):
            return role
    return ""


def _matrices(weights: list[Weight]) -> list[dict[str, np.ndarray]]:
    """Return arrays as matrices, those of more axes joined in both ways in which heads are."""
    forms = [{w.name: _matrix(w.array) for w in weights if w.array.size > 1}]
    if any(w.array.ndim > 2 for w in weights):
        forms.append({w.name: w.array.reshape(w.array.shape[0], -1) for w in weights if w.array.ndim > 2})
    return [form for form in forms if form]


def _matrix(array: np.ndarray) -> np.ndarray:
    return array if array.ndim < 3 else array.reshape(-1, array.shape[-1])


def _pair_by_fibres(pairing: Pairing, left: list[Weight], rest: list[Weight]) -> tuple[list[Weight], list[Weight]]:
    """Pair what was scaled, rounded, permuted, padded or joined, as the diagnosis of checkpoints finds it."""
    for whole, parts, swapped in ((rest, left, False), (left, rest, True)):
        matches = []
        for originals in _matrices(parts) if whole else ():
            matching = fibres.match({w.name: _matrix(w.array) for w in whole}, originals)
            matches += [(name, match, originals) for name, match in matching.matches.items()]
        for name, match, originals in matches:
            holder = next(w for w in whole if w.name == name)
            owners = [w for w in parts if w.name in match.owners]
            current_left, current_rest = (rest, left) if swapped else (left, rest)
            free = all(any(w is o for w in current_left) for o in owners) and any(w is holder for w in current_rest)
            if not free:
                continue
            if len(owners) == 1:
                chosen = [(holder, owners[0]) if swapped else (owners[0], holder)]
                left, rest = _take(pairing, left, rest, chosen)
            elif not swapped or match.exact:
                words = fibres.describe(match, originals)
                words = [word for word in words if not word.endswith("arrays in one") and word != "transposed"]
                pairing.joined.append((holder, owners, [] if match.exact and not words else words or ["changed"]))
                gone = {id(holder), *(id(owner) for owner in owners)}
                left = [w for w in left if id(w) not in gone]
                rest = [w for w in rest if id(w) not in gone]
    return left, rest


def without_effect(weight: Weight) -> bool:
    """Tell whether an array changes nothing where it is: a bias of zeros, a scale of ones."""
    neutral = {"bias": 0.0, "scale": 1.0, "mean": 0.0}.get(weight.leaf)
    return neutral is not None and bool((weight.array == neutral).all())


def compare_weights(pairing: Pairing) -> tuple[list[Row], list[Cause], list[str]]:
    """Compare all pairs bit for bit in the shared layout: rows, the causes of differences, notes."""
    rows, causes, notes = [], [], []
    originals = [pair.reference for pair in pairing.pairs] + pairing.reference_only
    for pair in pairing.pairs:
        cause, text, note = judge_pair(pair, originals)
        name = slashed(pair.reference.name)
        paired = f"{pair.how}: {pair.candidate.own_name}" if pair.how != "name" else ""
        shown = "; ".join(part for part in (text or note, paired) if part)
        rows.append(Row("weights", name, "different" if cause else "same", note=shown))
        if cause:
            causes.append(Cause(name, cause, text, 0.0 if cause != "other values" else None))
    for holder, owners, words in pairing.joined:
        text = f"joined in one array with {', '.join(slashed(w.name) for w in owners[1:])} ({holder.own_name})"
        rows.append(Row("weights", slashed(owners[0].name), "different" if words else "same", note=text))
        if words:
            causes.append(Cause(slashed(owners[0].name), ", ".join(words), f"{', '.join(words)}; {text}"))
    for weights, side in ((pairing.reference_only, "reference"), (pairing.candidate_only, "candidate")):
        for weight in weights:
            name = slashed(weight.name)
            if without_effect(weight):
                notes.append(f"{name}: only the {side} has it, and it has no effect ({weight.leaf} of constants)")
            elif not weight.learned:
                notes.append(f"{name}: only the {side} has this constant")
            else:
                text = f"only the {side} has it"
                rows.append(Row("weights", name, "different", note=text, only=side))
                missing = "missing" if side == "reference" else "not in the reference"
                causes.append(Cause(name, f"{weight.leaf} {missing}", f"{weight.leaf} {missing}: {text}", 0.0))
    return rows, causes, notes


def judge_pair(pair: Pair, originals: Sequence[Weight]) -> tuple[str, str, str]:
    """Return (cause, text, note) of a pair: cause and text are '' where the arrays are the same."""
    a, b = pair.reference.array, pair.candidate.array
    if a.shape == b.shape and np.array_equal(a, b):
        return "", "", ""
    known = pair.reference.known and pair.candidate.known
    if a.shape != b.shape and _joins(a.shape, b.shape) and np.array_equal(a.reshape(-1), b.reshape(-1)):
        return "", "", f"the same numbers as {a.shape} and {b.shape}"
    for axes in itertools.permutations(range(b.ndim)) if 2 <= b.ndim <= 5 else ():
        turned = np.transpose(b, axes)
        if turned.size == a.size and np.array_equal(turned.reshape(-1), a.reshape(-1)):
            if not known:
                return "", "", f"axes {axes}"
            if turned.ndim == a.ndim and turned.shape != a.shape:
                return "reshaped, not transposed", "reshaped where it should be transposed", ""
            text = "transposed" if b.ndim == 2 else f"axes in the order {axes}"
            return text, text, ""
    for cause, text, test in _simple_edits(pair, originals):
        if test(a, b):
            return cause, text, ""
    words = _fibre_words(a, b)
    if words:
        return words, words, ""
    if a.shape != b.shape:
        return "shape", f"shape {a.shape} against {b.shape}", ""
    changed = int((a != b).sum())
    text = f"{changed} of {a.size} values differ" if changed < a.size else "other values"
    return "other values", text, ""


def _joins(a: Sequence[int], b: Sequence[int]) -> bool:
    """Tell whether one shape is the other one with neighbouring axes joined, as heads are."""
    one, other = (set(np.cumprod([size for size in shape if size > 1]).tolist()) for shape in (a, b))
    return one <= other or other <= one


def _simple_edits(
    pair: Pair, originals: Sequence[Weight]
) -> list[tuple[str, str, Callable[[np.ndarray, np.ndarray], bool]]]:
    def same(x: np.ndarray, y: np.ndarray) -> bool:
        return x.shape == y.shape and np.array_equal(x, y)

    def rounded(dtype: type) -> Callable[[np.ndarray, np.ndarray], bool]:
        return lambda a, b: same(a.astype(dtype).astype(b.dtype), b)

    def holds(other: Weight) -> Callable[[np.ndarray, np.ndarray], bool]:
        return lambda a, b: same(other.array, b) or (b.ndim == 2 and same(other.array, b.T))

    edits: list[tuple[str, str, Callable[[np.ndarray, np.ndarray], bool]]] = [
        ("zeros", "all zeros", lambda a, b: not b.any()),
        ("times -1", "negated", lambda a, b: same(-a, b)),
        ("-1 added", "scale - 1 in place of scale", lambda a, b: same((a - 1).astype(b.dtype), b)),
        ("bfloat16 weights", "rounded to bfloat16", rounded(ml_dtypes.bfloat16)),
        ("float16 weights", "rounded to float16", rounded(np.float16)),
    ]
    for other in originals:
        if other is not pair.reference and other.array.size == pair.reference.array.size and other.array.std() > 0:
            name = slashed(other.name)
            edits.append((f"holds {name}", f"holds the weights of {name}", holds(other)))
    return edits


def _fibre_words(a: np.ndarray, b: np.ndarray) -> str:
    """Return what the doctor says of an array that holds the fibres of another one; '' if nothing."""
    if a.size < 2 or a.ndim == 0:
        return ""
    match = fibres.match({"candidate": _matrix(b)}, {"original": _matrix(a)}).matches.get("candidate")
    if match is None:
        return ""
    best: list[str] = []
    for width in HEAD_WIDTHS:
        words = fibres.describe(match, {"original": _matrix(a)}, width)
        if any("head" in word for word in words):
            return ", ".join(words)
        best = best or words
    return ", ".join(best)
