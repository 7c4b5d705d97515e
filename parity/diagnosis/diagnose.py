"""`parity diagnose`: what is wrong with somebody's weights, config or trace, held against the original checkpoint.

Weights are matched by content (fibres.py), so any naming will do; names are then read to see what each array
is *meant* to be, and what it is meant to be is held against what it holds. Modules of a recorded trace are examined
one by one (modules.py). Every cause named was tested: undoing it restores parity.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.checkpoint import checkpoint
from mt3_common.checkpoint.torch_pickle import PICKLES, read_tensors
from mt3_common.config import Config, NetworkConfig
from parity.compare.traces import DIFFERENT, EPSILON, REFUSED, SAME
from parity.diagnosis import fibres
from parity.diagnosis.modules import Finding, alternatives_at, examine
from parity.sides import numpy_network
from parity.trace.trace import read_npz

# relative difference up to which an array that matches nothing is the original with noise
NOISE = 0.1
# relative error up to which undoing a factor restores an array but for its last bit
TINY = 1e-6
# share of the original's arrays that a candidate must hold for a diagnosis to mean anything
RECOGNISABLE = 0.1


class DoctorError(ValueError):
    """A candidate that cannot be read, or is no candidate at all."""


@dataclasses.dataclass
class Candidate:
    """What was handed in.

    Attributes:
        path: where it lies.
        kind: 'weights', 'trace' or 'config'.
        arrays: name -> array, for weights, under the candidate's own names.
        config: its config.json or what was stored with the weights; {} where there is none.
        trace: the trace, where it is one.
    """

    path: str
    kind: str
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    trace: Any = None


@dataclasses.dataclass
class Diagnosis:
    """What is wrong, and what is not.

    Attributes:
        findings: faults.
        notes: things that look like faults and are none, or that do no harm.
        mapping: candidate array -> which originals it holds, and how it was changed.
        duplicates, unused, missing: as in matching.Matching.
        counts: 'found' and 'of': original arrays.
        refusal: why there is no verdict, or ''.
        placed: original name -> the candidate's array in MT3's layout.
        matched: of the candidate's arrays, for repair.
        logits_error: largest relative error of the logits with the candidate's weights; None where it has none.
        conventions: how arrays without readable names were mapped, in words, where all siblings share it.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    mapping: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    duplicates: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unused: list[str] = dataclasses.field(default_factory=list)
    missing: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    placed: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    matched: fibres.Matching | None = None
    logits_error: float | None = None
    conventions: list[str] = dataclasses.field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 nothing wrong, 1 faults, 2 refused."""
        if self.refusal:
            return REFUSED
        return DIFFERENT if self.findings else SAME

    def to_dict(self) -> dict[str, Any]:
        """For JSON; arrays left out."""
        return {
            "format": "mt3-parity-diagnosis",
            "version": 1,
            "verdict": ("same", "different", "refused")[self.exit_code],
            "refusal": self.refusal,
            "findings": [dataclasses.asdict(finding) | {"sentence": finding.sentence()} for finding in self.findings],
            "not_faults": self.notes,
            "arrays": self.counts,
            "mapping": self.mapping,
            "duplicates": self.duplicates,
            "unused": self.unused,
            "missing": self.missing,
            "logits_error": self.logits_error,
            "mapped_with": self.conventions,
        }


# --- reading ---


def read_candidate(path: str | os.PathLike, config: str | os.PathLike | None = None) -> Candidate:
    """Whatever lies at a path: weights under any names, a trace, or a config.json.

    Args:
        path: T5X or Orbax directory, .safetensors, .npz, a PyTorch file, a trace, or config.json.
        config: the config.json that goes with it; by default the one beside it.

    Raises:
        ValueError: nothing there, or nothing that can be read.
    """
    path = Path(path)
    name = path.name.lower()
    if "://" not in str(path) and not path.exists():
        raise DoctorError(f"{path}: no such file or directory")
    if name.endswith(".json"):
        return Candidate(str(path), "config", config=_read_json(path))
    beside = path.parent / "config.json" if path.is_file() else path / "config.json"
    settings = Path(config) if config is not None else beside
    found_config = _read_json(settings) if config is not None or beside.is_file() else {}
    if path.is_dir() or "://" in str(path):
        return Candidate(str(path), "weights", checkpoint.read(path, check=False).arrays, found_config)
    if name.endswith(".safetensors"):
        return _read_safetensors(path, found_config)
    if name.endswith(".npz"):
        return Candidate(str(path), "weights", read_npz(path), found_config)
    if name.endswith(PICKLES):
        return Candidate(str(path), "weights", _read_pickle(path), found_config)
    raise DoctorError(f"{path}: not a checkpoint folder, .safetensors, .npz, {', '.join(PICKLES)} or config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _parse_settings(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise DoctorError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DoctorError(f"{path}: not readable JSON ({error})") from error


def _parse_settings(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DoctorError(f"{where}: not readable JSON ({error})") from error
    if not isinstance(found, dict):
        raise DoctorError(f"{where}: holds no settings (a JSON object of names and values)")
    return found


_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _read_safetensors(path: Path, config: dict[str, Any]) -> Candidate:
    import ml_dtypes
    import safetensors

    from parity.trace import trace

    data = path.read_bytes()
    try:
        tensors = dict(safetensors.deserialize(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise DoctorError(f"{path}: not a readable .safetensors file ({error})") from error
    if "header" in header:
        return Candidate(str(path), "trace", trace=trace.load(path))
    if "config" in header and not config:
        config = _parse_settings(header["config"], f"{path}: its metadata 'config'")
    arrays = {}
    for name in sorted(tensors):
        kind = _SAFETENSORS.get(tensors[name]["dtype"])
        if kind is not None:
            dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
            arrays[name] = np.frombuffer(tensors[name]["data"], dtype).reshape(tensors[name]["shape"])
    return Candidate(str(path), "weights", arrays, config)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    floats = ("float16", "bfloat16", "float32", "float64")
    return {key: array for key, array in read_tensors(path).items() if array.dtype.name in floats}


# --- what an array is meant to be, by its name ---

_PARTS = {
    "query": {"q", "query", "q_proj", "wq", "to_q", "query_proj", "linear_q", "q_linear"},
    "key": {"k", "key", "k_proj", "wk", "to_k", "key_proj", "linear_k", "k_linear"},
    "value": {"v", "value", "v_proj", "wv", "to_v", "value_proj", "linear_v", "v_linear"},
    "out": {"o", "out", "o_proj", "out_proj", "to_out", "output", "linear_out", "out_linear", "wo"},
    "wi_0": {"wi_0", "wi0", "w1", "fc1", "gate_proj", "linear1"},
    "wi_1": {"wi_1", "wi1", "w3", "up_proj", "fc1_gate", "fc_gate", "fc3", "linear_gate", "gate"},
    "wo": {"wo", "w2", "fc2", "down_proj", "linear2"},
}
_CROSS = re.compile(r"cross|enc_?dec|encoder_decoder|encoder_attn|src_attn|context")
_ATTENTION = re.compile(r"att(n|ention)|selfatt")
_MLP = re.compile(r"mlp|ffn|feed_?forward|dense|^ff$|^fc\d|^wi_|^wo$")
_NORM = re.compile(r"norm|^ln\d?(_f)?$")
_HF_T5 = re.compile(
    r"(encoder|decoder)\.block\.\d+\.layer\.\d\.((SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.w\w+|layer_norm)"
    r"\.weight|(encoder|decoder)\.final_layer_norm\.weight|lm_head\.weight|decoder_embed_tokens\.weight|proj\.weight"
)


@dataclasses.dataclass(frozen=True)
class Meant:
    """What a name says: the original's array, and whether the naming is one that is known exactly."""

    name: str
    strict: bool


def read_name(key: str, originals: Mapping[str, Any]) -> Meant | None:
    """Which of the originals an array is meant to be, by its name; None where the name does not say.

    Args:
        key: 'encoder.block.0.layer.0.SelfAttention.q.weight', 'decoder/layers_3/mlp/wo/kernel', 'enc.h.2.attn.wq', …
        originals: MT3's names.
    """
    plain = re.sub(r"layers\.(\d+)", r"layers_\1", key).replace(".", "/")
    plain = re.sub(r"^(params|optimizer|target|state|model|module)/", "", re.sub(r"^(optimizer|state)/", "", plain))
    for leaf in ("", "/kernel", "/embedding", "/scale"):
        for name in (plain + leaf, plain.removesuffix("/weight") + leaf):
            if name in originals:
                return Meant(name, strict=True)
    tokens = [token.lower() for token in re.split(r"[./]", key)]
    name = _read_tokens(tokens)
    return Meant(name, strict=bool(_HF_T5.fullmatch(key))) if name in originals else None


def _read_tokens(tokens: list[str]) -> str | None:
    stack = next(
        ("encoder" if t.startswith("enc") else "decoder" for t in tokens[:2] if re.match(r"(en|de)c(oder)?s?$", t)),
        None,
    )
    leafless = [token for token in tokens if token not in ("weight", "kernel", "scale", "embedding", "w", "gamma")]
    numbers = [(i, int(found[1])) for i, t in enumerate(tokens) if (found := re.fullmatch(r"(?:[a-z_]*?_?)(\d+)", t))]
    layer = next((n for i, n in numbers if not re.search(r"^(ln|norm|fc|w|wi|linear)_?\d$", tokens[i])), None)
    last = leafless[-1] if leafless else ""
    if layer is None:
        return _read_top(stack, tokens, last)
    if stack is None:
        return None
    base = f"{stack}/layers_{layer}"
    rest = [
        t for t in leafless if not re.fullmatch(r"(en|de)c(oder)?s?|layers?|blocks?|h|\d+|layers?_\d+|block_\d+", t)
    ]
    path = " ".join(rest)
    cross = stack == "decoder" and any(_CROSS.search(token) for token in rest)
    attention = "encoder_decoder_attention" if cross else "self_attention" if stack == "decoder" else "attention"
    if any(_NORM.search(token) for token in rest):
        return _read_layer_norm(base, stack, tokens, rest, cross)
    part = next((part for part, words in _PARTS.items() if last in words), None)
    if part is None:
        return None
    if part in ("query", "key", "value") or (
        part in ("out", "wo") and any(_ATTENTION.search(token) for token in rest) and not _MLP.search(rest[0])
    ):
        return f"{base}/{attention}/{'out' if part in ('out', 'wo') else part}/kernel"
    if part in ("wi_0", "wi_1", "wo") and (len(rest) < 2 or _MLP.search(path)):
        return f"{base}/mlp/{part}/kernel"
    return None


def _read_layer_norm(base: str, stack: str, tokens: list[str], rest: list[str], cross: bool) -> str | None:
    order = {
        "encoder": ["pre_attention", "pre_mlp"],
        "decoder": ["pre_self_attention", "pre_cross_attention", "pre_mlp"],
    }
    names = order[stack]
    word = next(token for token in rest if _NORM.search(token))
    # HF-T5: block.N.layer.K.layer_norm
    position = next(
        (
            int(tokens[i + 1])
            for i, t in enumerate(tokens[:-1])
            if t == "layer" and "block" in tokens and tokens[i + 1].isdigit()
        ),
        None,
    )
    if position is None and (found := re.search(r"(\d)$", word)):
        position = int(found[1]) - 1
    if position is not None:
        return f"{base}/{names[position]}_layer_norm/scale" if position < len(names) else None
    if cross:
        return f"{base}/pre_cross_attention_layer_norm/scale"
    if any(_ATTENTION.search(token) or "self" in token for token in rest):
        return f"{base}/{names[0]}_layer_norm/scale"
    if any(_MLP.search(token) or "final" in token for token in rest):
        return f"{base}/pre_mlp_layer_norm/scale"
    return None


def _read_top(stack: str | None, tokens: list[str], last: str) -> str | None:
    if any(_NORM.search(token) for token in tokens):
        return f"{stack}/{stack}_norm/scale" if stack else None
    if last in ("proj", "input_projection", "input_proj", "continuous_inputs_projection", "mel_projection", "in_proj"):
        return "encoder/continuous_inputs_projection/kernel" if stack != "decoder" else None
    if last in ("lm_head", "logits_dense", "output_projection", "logits", "head", "to_logits"):
        return "decoder/logits_dense/kernel"
    if last in ("shared", "token_embedder", "decoder_embed_tokens", "token_embedding", "tok_embeddings", "embedding"):
        return "decoder/token_embedder/embedding"
    if last == "embed_tokens":
        # the known ports keep a copy of the projection under encoder.embed_tokens
        return "decoder/token_embedder/embedding" if stack == "decoder" else None
    return None


# --- weights ---


def explain(
    name: str, array: np.ndarray, original: Mapping[str, np.ndarray], indices: Any = None, head_dim: int = 0
) -> tuple[str, str, bool] | None:
    """(cause, text, whether it can be undone) of the difference between an array and the original of that name.

    Args:
        name: of the original that the array is meant to be.
        array: in MT3's layout.
        original: all originals.
        indices: matching.index_of(original), where it is at hand.
        head_dim: width of a head.

    Returns:
        None where the values are the same (in the narrower of the two dtypes, a wider copy included).
    """
    own = original[name]
    if array.shape == own.shape:
        if array.tobytes() == own.tobytes() and array.dtype == own.dtype:
            return None
        if np.array_equal(array.astype(np.float64), own.astype(np.float64)):
            return None
        if not np.isfinite(array.astype(np.float64)).all():
            return "not finite", "holds NaN or infinity", False
        if not array.any():
            return "zeros", "all zeros", False
        if array.ndim == 1 and np.all(array == 1):
            return "ones", "all ones, as if never loaded", False
        low = _rounding(array, own)
        if low:
            return f"{low} weights", f"rounded to {low}", False
    oblong = array.shape == own.shape and own.ndim == 2 and own.shape[0] != own.shape[1]
    if oblong and (np.array_equal(array.ravel(), own.T.ravel()) or np.array_equal(array.T.ravel(), own.ravel())):
        return "reshaped, not transposed", "reshaped where it should be transposed", True
    found = fibres.match({name: array}, original, indices).matches.get(name)
    if found is None:
        found = _found_reshaped(name, array, original, indices)
        if found:
            return found
        return _unexplained(array, own)
    axis_words = _changed(array, own) if found.owners == [name] and array.shape == own.shape else None
    if axis_words:
        return (*axis_words, False)
    words = fibres.describe(found, original, head_dim)
    words = [_with_axis(word, found, original) for word in words]
    undoable = (found.owner != -2).all() and not any("zeroed" in word or "cropped" in word for word in words)
    if found.owners == [name]:
        if not words:
            return _unexplained(array, own)
        return (", ".join(words), ", ".join(words), bool(undoable and found.error < TINY))
    if (name, found.owners) == ("decoder/logits_dense/kernel", ["decoder/token_embedder/embedding"]):
        words.append("the head is tied to the embedding; MT3's is separate")
        return (
            f"holds {found.owners[0]}, {words[0]}",
            f"holds the weights of {found.owners[0]}, {', '.join(words)}",
            False,
        )
    holds = f"holds {' and '.join(found.owners)}"
    text = f"holds the weights of {' and '.join(found.owners)}"
    return ", ".join([holds, *words]), ", ".join([text, *words]), False


def _with_axis(word: str, found: fibres.Match, original: Mapping[str, np.ndarray]) -> str:
    """The word with 'rows' (MT3's inputs) or 'columns' (outputs) put in where it speaks of an order."""
    if original[found.owners[0]].ndim == 1 or not re.match(r"permuted|rolled|reversed|\d+ and \d+ exchanged", word):
        return word
    return f"{'columns' if found.original_axis[0] == 0 else 'rows'} {word}"


def _rounding(array: np.ndarray, own: np.ndarray) -> str:
    """'bfloat16' or 'float16' where the array is the original rounded so, else ''."""
    import ml_dtypes

    for low in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            rounded = own.astype(np.float32).astype(low).astype(np.float64)
        if np.array_equal(array.astype(np.float64), rounded):
            return np.dtype(low).name
    return ""


def _changed(array: np.ndarray, own: np.ndarray) -> tuple[str, str] | None:
    """What is said of an array of which few elements differ; None if many do."""
    off = array.astype(np.float64) != own.astype(np.float64)
    count = int(off.sum())
    if own.ndim < 2:
        text = f"{count} element{'s' * (count > 1)} changed"
        return (text, text) if count <= max(1, own.size // 4) else None
    for axis, word in ((0, "row"), (1, "column")):
        lines = np.flatnonzero(off.any(axis=1 - axis))
        if len(lines) <= own.shape[axis] // 4 and count > len(lines):
            zeroed = not np.take(array, lines, axis).any()
            plural = "s" * (len(lines) > 1)
            where = ", ".join(map(str, lines[:4])) + (", …" if len(lines) > 4 else "")
            what = "zeroed" if zeroed else "changed"
            return f"{len(lines)} {word}{plural} {what}", f"{len(lines)} {word}{plural} {what} ({where})"
    if count <= own.size // 4:
        text = f"{count} element{'s' * (count > 1)} changed"
        return text, f"{text} (first at {tuple(int(i) for i in np.argwhere(off)[0])})"
    return None


def _found_reshaped(name, array, original, indices) -> tuple[str, str, bool] | None:
    """The cause where an array was reshaped instead of transposed on the way, and holds some original."""
    if array.ndim != 2:
        return None
    for other, own in original.items():
        if own.size == array.size and own.ndim == 2 and other != name:
            flat = array.ravel()
            if flat[0] in (own[0, 0],) and np.array_equal(flat, own.T.ravel()):
                return f"holds {other}, reshaped, not transposed", f"holds {other}, reshaped, not transposed", False
    return None


def _unexplained(array: np.ndarray, own: np.ndarray) -> tuple[str, str, bool]:
    if array.shape != own.shape:
        text = f"shape {array.shape}, not {own.shape}"
        return text, text, False
    difference = np.linalg.norm(array.astype(np.float64) - own) / (np.linalg.norm(own.astype(np.float64)) or 1.0)
    if difference <= NOISE:
        return "noise", f"the original with noise of {difference:.1e} (relative)", False
    if np.array_equal(np.sort(array, axis=None), np.sort(own, axis=None)):
        return "elements permuted", "the right numbers in another order", False
    return "other values", "other values: not of this checkpoint", False


def compare_arrays(
    candidate: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], config: NetworkConfig, indices: Any = None
) -> list[Finding]:
    """Faults of arrays that stand under MT3's names in MT3's layout, each with its cause.

    Args:
        candidate: name -> array; names that are missing are not judged here.
        original: name -> array.
        config: sizes.
        indices: matching.index_of(original), where it is at hand.
    """
    causes: dict[str, tuple[str, str, bool]] = {}
    differing = [
        name
        for name in original
        if name in candidate
        and not (
            candidate[name].dtype == original[name].dtype
            and candidate[name].shape == original[name].shape
            and np.array_equal(candidate[name], original[name])
        )
    ]
    if differing and indices is None:
        indices = fibres.index_of(original)
    for name in differing:
        cause = explain(name, candidate[name], original, indices, config.head_dim)
        if cause is not None:
            causes[name] = cause
    findings = _exchanged_layers(causes, original)
    for name in list(causes):
        if name not in causes:
            continue
        cause, text, undoable = causes.pop(name)
        other = re.fullmatch(r"holds ([^ ,]+)", cause)
        partner = other and causes.get(other[1])
        if partner and partner[0] == f"holds {name}":
            causes.pop(other[1])
            text = f"exchanged with {other[1]}"
            findings.append(
                Finding(_module(name), text, text, math.nan, undoable=True, sites=[_module(name), _module(other[1])])
            )
        else:
            alike = next((each for each in findings if each.cause == cause), None)
            if alike is not None:
                alike.sites.append(_module(name))
                alike.undoable = alike.undoable and undoable
                continue
            findings.append(Finding(_module(name), cause, text, math.nan, undoable=undoable, sites=[_module(name)]))
    return findings


def _module(array: str) -> str:
    return array.rpartition("/")[0]


def _exchanged_layers(causes: dict, original: Mapping[str, np.ndarray]) -> list[Finding]:
    """Findings for whole layers that hold other whole layers; takes their arrays out of causes."""
    held: dict[tuple[str, int], set[int]] = {}
    for name, (cause, _, _) in causes.items():
        mine = re.match(r"(encoder|decoder)/layers_(\d+)/(.*)", name)
        theirs = re.fullmatch(r"holds (encoder|decoder)/layers_(\d+)/(.*)", cause)
        if mine and theirs and mine[1] == theirs[1] and mine[3] == theirs[3]:
            held.setdefault((mine[1], int(mine[2])), set()).add(int(theirs[2]))
    whole = {}
    for (stack, layer), sources in held.items():
        names = [name for name in original if name.startswith(f"{stack}/layers_{layer}/")]
        if len(sources) == 1 and all(causes.get(name, ("",))[0].startswith("holds ") for name in names):
            whole[stack, layer] = sources.pop()
    findings = []
    for stack in ("encoder", "decoder"):
        moved = {layer: source for (where, layer), source in whole.items() if where == stack}
        if not moved:
            continue
        for layer in moved:
            for name in [name for name in causes if name.startswith(f"{stack}/layers_{layer}/")]:
                del causes[name]
        pairs = ", ".join(f"{layer} holds {source}" for layer, source in sorted(moved.items()))
        sites = [f"{stack}/layers_{layer}" for layer in sorted(moved)]
        text = f"layers exchanged: {stack} layer {pairs}"
        findings.append(Finding(sites[0], text, text, math.nan, undoable=True, sites=sites))
    return findings


def place(
    arrays: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], found: fibres.Matching
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str], bool | None]:
    """The candidate's arrays under the names that they are meant to have, in MT3's layout.

    Names are read; a naming that calls the same thing by another name throughout is believed for what its arrays hold.
    Kernels are turned if most of the candidate's kernels are (out, in), as PyTorch keeps them.

    Returns:
        (MT3's name -> array, MT3's name -> the candidate's name, notes, whether kernels are (out, in) or None where
        no kernel was placed).
    """
    meant = {key: read_name(key, original) for key in arrays}
    notes = []
    patterns: dict[str, list[str]] = {}
    for key in arrays:
        patterns.setdefault(re.sub(r"\d+", "#", key), []).append(key)
    for pattern, keys in patterns.items():
        roles: dict[str, list[str]] = {}
        for key in keys:
            match = found.matches.get(key)
            if match is not None and len(match.owners) == 1:
                roles.setdefault(re.sub(r"layers_\d+", "layers_#", match.owners[0]), []).append(key)
        if not roles:
            continue
        role = max(roles, key=lambda each: len(roles[each]))
        read = {re.sub(r"layers_\d+", "layers_#", meant[key].name) for key in keys if meant[key]}
        loose = not any(meant[key] and meant[key].strict for key in keys)
        if read == {role} or not loose or len(roles[role]) * 2 <= len(keys):
            continue
        numbered = {key: [int(n) for n in re.findall(r"\d+", key)] for key in keys}
        slot = next(
            (
                i
                for i in range(min(map(len, numbered.values()), default=0))
                if all(f"layers_{numbered[key][i]}/" in found.matches[key].owners[0] for key in roles[role])
            ),
            None,
        )
        if "#" in role and slot is None:
            continue
        for key in keys:
            name = role.replace("layers_#", f"layers_{numbered[key][slot]}") if "#" in role else role
            if name in original:
                meant[key] = Meant(name, strict=False)
        if read:
            notes.append(f"{pattern} holds {role} throughout; its name says {min(read)}: a matter of naming")
    turned = [
        fibres.is_transposed(found.matches[key], 2)
        for key, said in meant.items()
        if said and key in found.matches and said.name.endswith("kernel") and arrays[key].ndim == 2
    ]
    torch_layout = sum(turned) * 2 > len(turned)
    placed, source = {}, {}
    # of several arrays with one meaning the one that holds it comes first
    order = sorted(arrays, key=lambda key: meant[key] is None or not _holds(found, key, meant[key].name))
    for key in order:
        said = meant[key]
        if said is None or said.name in placed:
            continue
        array = arrays[key]
        if array.ndim == original[said.name].ndim:
            turn = torch_layout and said.name.endswith("kernel")
            placed[said.name] = array.T if turn else array
            source[said.name] = key
    return placed, source, notes, torch_layout if turned else None


def _holds(found: fibres.Matching, key: str, name: str) -> bool:
    return key in found.matches and found.matches[key].owners == [name]


def diagnose_weights(candidate: Candidate, original: Mapping[str, np.ndarray], config: Config) -> Diagnosis:
    """What is wrong with a set of weights, whatever its arrays are called.

    Args:
        candidate: arrays and settings.
        original: MT3's names -> arrays.
        config: the original's.
    """
    diagnosis = Diagnosis()
    if not candidate.arrays:
        raise DoctorError(f"{candidate.path}: holds no arrays of floating-point numbers")
    indices = fibres.index_of(original)
    found = fibres.match(candidate.arrays, original, indices)
    diagnosis.matched, diagnosis.duplicates, diagnosis.missing = found, found.duplicates, dict(found.missing)
    diagnosis.unused = found.unused
    head_dim = config.network.head_dim
    for key, match in found.matches.items():
        words = fibres.describe(match, original, head_dim)
        diagnosis.mapping[key] = {"holds": match.owners, "how": words or ["copied"], "exact": match.exact}
    placed, source, notes, torch_layout = place(candidate.arrays, original, found)
    diagnosis.notes += notes
    for name, array in list(placed.items()):
        placed[name] = _uncropped(name, array, original, diagnosis.notes)
    rest = [name for name in original if name not in placed]
    told = {*placed, *(said.name for key in candidate.arrays if (said := read_name(key, original)))}
    loaded = fibres.load_as_siblings(found, candidate.arrays, original, rest, told, torch_layout, head_dim)
    diagnosis.conventions = loaded.conventions
    _as_named(loaded, found)
    for name, array in loaded.arrays.items():
        placed[name] = _uncropped(name, array, original, diagnosis.notes)
    findings = compare_arrays(placed, original, config.network, indices)
    placed |= fibres.restore(found, candidate.arrays, {name: original[name] for name in loaded.odd})
    absent = [name for name in original if name not in placed and name not in loaded.odd]
    findings += _unexplained_findings(loaded, found, findings)
    diagnosis.counts = {"of": len(original), "found": len(original) - len(found.missing)}
    recognised = len(original) - len(found.missing) + sum(name in placed for name in found.missing)
    right_shapes = sum(name in placed and placed[name].shape == original[name].shape for name in found.missing)
    if len(original) - len(found.missing) < RECOGNISABLE * len(original):
        known = f"{len(original) - len(found.missing)} of {len(original)} arrays of the original are in it"
        if right_shapes > RECOGNISABLE * len(original):
            diagnosis.refusal = f"{candidate.path}: the same network with other weights: {known}"
        else:
            diagnosis.refusal = f"{candidate.path}: not this model: {known}" + (
                f" ({recognised} names are known)" if recognised else ""
            )
        return diagnosis
    findings += _missing_findings(absent, original, candidate, found)
    findings += _extra_findings(candidate, original, source, found, diagnosis.notes)
    diagnosis.findings = check_config(candidate.config, config, diagnosis.notes) + findings
    if _VOCABULARY not in " ".join(diagnosis.notes):
        diagnosis.notes += _vocabulary_note(config)
    diagnosis.placed = placed
    measure(diagnosis, original, config.network)
    return diagnosis


def _unexplained_findings(loaded: fibres.Loaded, found: fibres.Matching, findings: list[Finding]) -> list[Finding]:
    """Faults of arrays without readable names that no array under MT3's name shows: orders, and numbers too many."""
    known = {site for finding in findings for site in finding.sites}
    more = []
    for name, why in loaded.odd.items():
        text = f"{why}; what is meant cannot be told without its name"
        more.append(Finding(_module(name), "order", text, math.nan, sites=[name]))
    for key, match in found.matches.items():
        sites = list(dict.fromkeys(_module(name) for name in match.owners if name in loaded.arrays))
        if not sites or known & set(sites) or any(name in found.missing for name in match.owners):
            continue
        used = sum(len(np.unique(match.fibre[match.owner == i])) for i in range(len(match.owners)))
        extra = int((match.owner != -1).sum()) - used
        if extra:
            text = f"{extra} rows or columns of {key} are none of the original's, or are there twice"
            more.append(Finding(sites[0], "rows too many", text, math.nan, sites=[key]))
    return more


def _as_named(loaded: fibres.Loaded, found: fibres.Matching) -> None:
    """Gives the parts of a fused array to those that its name says, in its order: 'qkv_proj', 'to_kv'."""
    for key, match in found.matches.items():
        said = _FUSED.search(key.lower())
        if not said:
            continue
        parts = [_LETTERS[letter] for letter in said[1] if letter != "_"]
        held: dict[str, list[str]] = {}
        for name in sorted(set(match.owners) & set(loaded.starts), key=lambda name: loaded.starts[name]):
            held.setdefault(name.rsplit("/", 2)[0], []).append(name)
        for module, names in held.items():
            meant = [f"{module}/{part}/kernel" for part in parts]
            if set(meant) == set(names):
                loaded.arrays |= dict(zip(meant, [loaded.arrays[name] for name in names]))


_LETTERS = {"q": "query", "k": "key", "v": "value"}
_FUSED = re.compile(r"(?:^|[^a-z])(?:w|c_|to_|in_|fused_)?([qkv](?:_?[qkv]){1,2})(?![a-z])")


def _uncropped(name: str, array: np.ndarray, original: Mapping[str, np.ndarray], notes: list[str]) -> np.ndarray:
    """The array with the padding of the vocabulary put back, where that is all that is missing, and a note."""
    own = original[name]
    axis = {"decoder/token_embedder/embedding": 0, "decoder/logits_dense/kernel": 1}.get(name)
    if axis is None or array.ndim != 2 or array.shape[1 - axis] != own.shape[1 - axis]:
        return array
    length, full = array.shape[axis], own.shape[axis]
    if full - 128 < length < full:
        kept = np.take(own, np.arange(length), axis)
        if np.array_equal(array.astype(np.float64), kept.astype(np.float64)):
            notes.append(
                f"{name}: {length} of {full} rows: {_VOCABULARY}; the rows left out belong to no event: not a fault"
            )
            return np.concatenate([array, np.take(own, np.arange(length, full), axis).astype(array.dtype)], axis)
    if length > full:
        rest = np.take(array, np.arange(full, length), axis)
        if not rest.any():
            notes.append(f"{name}: {length} rows for {full}, the rest zeros: not a fault")
            return np.take(array, np.arange(full), axis)
    return array


_VOCABULARY = "the vocabulary's size rounded up to a multiple of 128"


def _vocabulary_note(config: Config) -> list[str]:
    ids, rows = config.vocabulary.num_ids + 100, config.network.vocab_size
    if not 0 <= rows - ids < 128:
        return []
    return [f"{ids} ids against {rows} rows of the embedding is no mismatch: {_VOCABULARY}"]


def _missing_findings(absent, original, candidate, found) -> list[Finding]:
    findings = []
    groups: dict[str, list[str]] = {}
    for stack in ("encoder", "decoder"):
        layers = sorted({int(n) for name in original for n in re.findall(rf"^{stack}/layers_(\d+)/", name)})
        lost = [
            n for n in layers if all(name in absent for name in original if name.startswith(f"{stack}/layers_{n}/"))
        ]
        if lost and len(lost) < len(layers):
            sites = [f"{stack}/layers_{n}" for n in lost]
            text = f"missing whole: {len(layers) - len(lost)} {stack} layers, not {len(layers)}"
            cause = f"num_{stack}_layers={len(layers) - len(lost)}"
            findings.append(Finding(sites[0], cause, text, math.nan, sites=sites))
            absent = [name for name in absent if not any(name.startswith(f"{site}/") for site in sites)]
    for name in absent:
        groups.setdefault("norm scales" if name.endswith("scale") else name, []).append(name)
    for what, names in groups.items():
        sites = [_module(name) for name in names]
        if what == "norm scales":
            total = sum(name.endswith("scale") for name in original)
            text = (
                f"{len(names)} of {total} norm scales are missing"
                + (" (they lie inline in T5X's msgpack file, not in folders)" if len(names) == total else "")
                + "; loading it needs strict=False, which leaves them at ones"
            )
            findings.append(Finding(sites[0], "norm scales missing", text, math.nan, sites=sites))
        elif what == "decoder/logits_dense/kernel" and not any(
            key.endswith("lm_head.weight") for key in candidate.arrays
        ):
            text = "missing: the head is tied to the embedding; MT3's is separate"
            findings.append(Finding(sites[0], "tied head", text, math.nan, sites=sites))
        else:
            share = found.missing.get(names[0], 0.0)
            text = "missing" if share == 0 else f"{share:.0%} of it found"
            findings.append(Finding(sites[0], "missing", text, math.nan, sites=sites))
    return findings


def _extra_findings(candidate, original, source, found, notes) -> list[Finding]:
    """Faults shown by arrays that MT3 does not have: relative biases, biases, position tables."""
    findings = []
    used = set(source.values())
    width = original["decoder/token_embedder/embedding"].shape[1]
    biases: dict[str, list[str]] = {}
    for key in found.unused:
        if key in used:
            continue
        array, lower = candidate.arrays[key], key.lower()
        if "relative_attention_bias" in lower or "relative_position" in lower or "rel_bias" in lower:
            biases.setdefault("relative bias", []).append(key)
        elif lower.endswith("inv_freq"):
            biases.setdefault(_frequency_table(array, width), []).append(key)
        elif array.ndim == 1 and lower.endswith("bias"):
            biases.setdefault("bias" if array.any() else "zero bias", []).append(key)
        else:
            biases.setdefault(_position_table(np.squeeze(array), width) or "unused", []).append(key)
    texts = {
        "relative bias": "a relative position bias; MT3 has none (fixed sinusoids are added to the inputs)",
        "positions=port": "the ports' position table (2k/d) in place of MT3's",
        "bias": "biases that are not zero; MT3 has none",
    }
    for cause, keys in biases.items():
        if cause == "unused" and not used and any(candidate.arrays[key].any() for key in keys):
            shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
            text = f"nothing of the original, and no name says what is meant ({len(keys)} in all: {shown})"
            findings.append(Finding(keys[0], "unexplained", text, math.nan, sites=keys))
        elif cause == "unused":
            notes.append(f"unused: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''} ({len(keys)} in all)")
        elif cause in texts:
            shown = f"{texts[cause]}: {', '.join(keys[:2])}" + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
            findings.append(Finding(keys[0], cause, shown, math.nan, sites=keys))
        else:
            notes.append(
                f"{len(keys)} arrays ({keys[0]}, …): {cause}, no harm"
                if len(keys) > 1
                else f"{keys[0]}: {cause}, no harm"
            )
    for name, keys in found.duplicates.items():
        others = [key for key in keys if key != source.get(name)]
        if source.get("decoder/logits_dense/kernel") not in others:
            notes.append(f"{name} is there {len(keys)} times: {', '.join(keys)}")
    return findings


def _frequency_table(array: np.ndarray, width: int) -> str:
    for table, divisor in (("MT3's frequencies", width // 2 - 1), ("positions=port", width // 2)):
        expected = np.exp(-np.log(10000.0) / divisor * np.arange(width // 2))
        if array.shape == expected.shape and np.allclose(array, expected, rtol=1e-4, atol=0):
            return table
    return "unused"


def _position_table(array: np.ndarray, width: int) -> str:
    if array.ndim != 2 or array.shape[1] != width:
        return ""
    for table in ("mt3", "port", "interleaved", "paper", "cosine_first"):
        expected = numpy_network.positions(len(array), width, numpy_network.Behaviour(positions=table))
        if np.allclose(array, expected, rtol=0, atol=1e-3):
            return "MT3's position table" if table == "mt3" else f"positions={table}"
    return ""


def probe(config: NetworkConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs that reach everything: 24 frames, the last ones zero, and 24 tokens, the last ones padding."""
    random = np.random.default_rng(seed)
    frames = random.standard_normal((2, 24, config.input_depth)).astype(np.float32)
    frames[1, 18:] = 0
    targets = random.integers(1, config.vocab_size, (2, 24)).astype(np.int32)
    targets[:, 1] = config.vocab_size - 1
    targets[1, 18:] = 0
    tokens = np.concatenate([np.zeros((2, 1), np.int32), targets[:, :-1]], axis=1)
    return {numpy_network.FRAMES: frames, numpy_network.TOKENS: tokens, numpy_network.TARGETS: targets}


def measure(diagnosis: Diagnosis, original: Mapping[str, np.ndarray], config: NetworkConfig) -> None:
    """Sets the error before and after of every finding about an array, its runner-up, and the error of the logits.

    Each module runs in float64 on the original's own inputs, once with the candidate's array and once with the array
    put right.
    """
    inputs = probe(config)
    values = numpy_network.forward(original, config, inputs)
    by_array = {step.array: step for step in numpy_network.steps(config) if step.array}
    loaded = {}
    for name, array in original.items():
        mine = diagnosis.placed.get(name, np.ones_like(array) if array.ndim == 1 else np.zeros_like(array))
        if mine.shape != array.shape:
            mine = np.zeros_like(array)
        loaded[name] = mine
    for finding in diagnosis.findings:
        names = [name for site in finding.sites for name in by_array if _module(name) == site]
        if not names and finding.sites and finding.sites[0] + "/" in " ".join(by_array):
            names = [name for name in by_array if any(name.startswith(f"{site}/") for site in finding.sites)]
        if not names:
            continue
        errors = []
        for name in names:
            step, truth = by_array[name], values[by_array[name].name]
            output = numpy_network.run_step(step, values, loaded, config)
            errors.append(float(np.abs(output - truth).max() / np.abs(truth).max()))
        finding.before, finding.in_weights = max(errors), True
        worst = names[int(np.argmax(errors))]
        fixed = numpy_network.run_step(by_array[worst], values, original, config)
        truth = values[by_array[worst].name]
        finding.after = float(np.abs(fixed - truth).max() / np.abs(truth).max())
        if finding.undoable:
            output = numpy_network.run_step(by_array[worst], values, loaded, config)
            step, cause = by_array[worst], finding.cause
            finding.runner_up = alternatives_at(step, output, inputs, values, original, config, cause)
    logits = numpy_network.forward(loaded, config, inputs)[""]
    real = inputs[numpy_network.TARGETS] > 0
    diagnosis.logits_error = float(np.abs(logits - values[""])[real].max() / np.abs(values[""][real]).max())


# --- config ---

_NAMES = {
    "emb_dim": ("emb_dim", "d_model", "hidden_size", "model_dim", "embed_dim", "embedding_dim"),
    "vocab_size": ("vocab_size", "num_embeddings", "n_vocab", "vocabulary_size"),
    "mlp_dim": ("mlp_dim", "d_ff", "ffn_dim", "intermediate_size", "ff_dim", "feed_forward_dim"),
    "num_heads": ("num_heads", "n_heads", "num_attention_heads", "nhead", "encoder_attention_heads", "n_head"),
    "head_dim": ("head_dim", "d_kv", "d_head", "key_dim"),
    "num_encoder_layers": ("num_encoder_layers", "num_layers", "encoder_layers", "n_layer", "n_encoder_layers"),
    "num_decoder_layers": ("num_decoder_layers", "decoder_layers", "n_decoder_layers"),
    "input_depth": ("input_depth", "num_mel_bins", "n_mels", "input_dim"),
}
_ACTIVATIONS = {
    "gelu_tanh": ("gated-gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_tanh", "gelu_fast", "gelu,linear", "geglu"),
    "gelu_erf": ("gelu", "gelu_python", "gelu_erf"),
    "relu": ("relu", "gated-relu", "relu,linear", "reglu"),
    "silu": ("silu", "swish", "gated-silu", "swiglu", "silu,linear", "swish,linear"),
}
_ACTIVATION_KEYS = (
    "feed_forward_proj",
    "dense_act_fn",
    "activation",
    "hidden_act",
    "activation_function",
    "mlp_activations",
)
_NORM_KEYS = ("normalization", "norm", "norm_type", "layer_norm_type", "normalization_type")
_RMS_NORMS = ("rms_norm", "rmsnorm", "rms", "t5", "t5layernorm", "t5_layer_norm", "t5norm")
_EPSILON_KEYS = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps", "eps", "epsilon")
_ID_KEYS = (("decoder_start_token_id", 0), ("bos_token_id", 0), ("pad_token_id", 0), ("eos_token_id", 1))
_TIED_KEYS = ("tie_word_embeddings", "logits_via_embedding", "tied_head", "tie_embeddings", "share_embeddings")
_STRICT_KEYS = ("strict", "strict_loading", "load_strict")
# settings of which None says "not set": the usual default is MT3's
_MAY_BE_NONE = frozenset({*_ACTIVATION_KEYS, *_NORM_KEYS, *_TIED_KEYS, "bos_token_id", "decoder_start_token_id"})
_WRONG_ACTIVATION = {
    "gelu_erf": "exact GELU (erf) in place of the tanh approximation",
    "relu": "ReLU in place of GELU",
    "silu": "SiLU in place of GELU",
}


def check_config(values: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    """Settings that contradict the original.

    Args:
        values: a config.json, in anybody's spelling, flat or in sections.
        config: the original's.
        notes: gets what looks like a fault and is none.
    """
    flat = _flat(values)
    findings = []

    def fault(key: str, cause: str, text: str) -> None:
        findings.append(Finding(f"config: {key}", cause, text, math.nan, undoable=True, sites=[f"config: {key}"]))

    def mistyped(key: str, expected: str) -> None:
        shown = json.dumps(flat[key], default=str)
        text = f"{shown if len(shown) < 60 else shown[:57] + '...'} is not {expected}"
        fault(key, f"{key} of the wrong type", text)

    wrong: dict[str, tuple[str, int]] = {}
    right = dataclasses.asdict(config.network)
    for field, names in _NAMES.items():
        for key in names:
            if key not in flat:
                continue
            value = flat[key]
            if not _whole(value):
                mistyped(key, f"a whole number; the checkpoint has {right[field]}")
                continue
            if value == right[field]:
                continue
            if field == "vocab_size" and value in (config.vocabulary.num_ids, config.vocabulary.num_ids + 100):
                notes.append(f"config: {key} {value} against {right[field]} is no fault: {_VOCABULARY}")
                continue
            wrong[field] = (key, value)
    for field, (key, value) in list(wrong.items()):
        for other, (other_key, other_value) in list(wrong.items()):
            if field < other and field in wrong and value == right[other] and other_value == right[field]:
                text = f"swapped with {other_key}: {key} is {right[field]} and {other_key} is {right[other]}"
                fault(key, f"{key} and {other_key} swapped", text)
                del wrong[field], wrong[other]
    for field, (key, value) in wrong.items():
        text = f"{value}; the checkpoint has {right[field]}"
        joined = config.network.num_heads * config.network.head_dim
        if field == "num_heads" and joined != config.network.emb_dim:
            text += f" heads of {config.network.head_dim}: {joined} in all, not {config.network.emb_dim}"
        fault(key, f"{field}={value}", text)
    for key in _ACTIVATION_KEYS:
        value = flat.get(key)
        if value is None:
            continue
        parts = value if isinstance(value, list | tuple) else [value]
        if not parts or not all(isinstance(part, str) for part in parts):
            mistyped(key, "the name of an activation; MT3 has gated GELU, tanh approximation")
            continue
        spelled = ",".join(parts).lower()
        found = next((name for name, spellings in _ACTIVATIONS.items() if spelled in spellings), None)
        if found is None:
            fault(key, f"activation {spelled}", f"{spelled!r}; MT3 has gated GELU, tanh approximation")
        elif found in _WRONG_ACTIVATION:
            fault(key, found, f"{value!r}: {_WRONG_ACTIVATION[found]}")
    if "is_gated_act" in flat and flat["is_gated_act"] is not True:
        fault("is_gated_act", "no gate", f"{flat['is_gated_act']!r}; MT3's MLP is gated (true)")
    for key in _NORM_KEYS:
        value = flat.get(key)
        if value is not None and (not isinstance(value, str) or re.sub(r"[\s-]", "_", value.lower()) not in _RMS_NORMS):
            layer = isinstance(value, str) and re.sub(r"[\s_-]", "", value.lower()) == "layernorm"
            fault(key, "LayerNorm" if layer else f"{key}={value}", f"{value!r}; MT3 has RMSNorm")
    for key in (*_TIED_KEYS, *_STRICT_KEYS):
        if key in flat and not isinstance(flat[key], bool) and not (flat[key] is None and key in _MAY_BE_NONE):
            mistyped(key, f"true or false; MT3 has {'false' if key in _TIED_KEYS else 'true'}")
    for key in _TIED_KEYS:
        if flat.get(key) is True:
            fault(key, "tied head", "the head is tied to the embedding; MT3's is separate")
    if flat.get("scale_embedding"):
        fault("scale_embedding", "scaled by sqrt(emb_dim)", "embeddings times sqrt(emb_dim); MT3's are not scaled")
    relative = [key for key in flat if re.search(r"relative_(attention|position)|position_bias", key) and flat[key]]
    if relative:
        fault(relative[0], "relative bias", "a relative position bias; MT3 has none (fixed sinusoids are added)")
    for key in _EPSILON_KEYS:
        if key not in flat:
            continue
        value = flat[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
            mistyped(key, "a number; MT3 has 1e-06")
        elif value != 1e-6:
            fault(key, f"eps={value:g}", f"{value:g} in place of 1e-06")
    for key, right_id in _ID_KEYS:
        if key not in flat or (flat[key] is None and key in _MAY_BE_NONE):
            continue
        value = flat[key]
        if not _whole(value):
            mistyped(key, f"a whole number; MT3 has {right_id}")
        elif value != right_id:
            cause = f"start token {value}" if right_id == 0 and "pad" not in key else f"{key}={value}"
            fault(key, cause, f"{value}; MT3 has {right_id}")
    for key in _STRICT_KEYS:
        if flat.get(key) is False:
            fault(key, "strict=False", "arrays that are missing or too many are passed over in silence")
    if flat.get("position_table") == "port" and config.network.position_table != "port":
        fault("position_table", "positions=port", "the ports' position table (2k/d) in place of MT3's")
    if any(flat.get(key) is not None for key in _NAMES["vocab_size"]) and not notes:
        notes += _vocabulary_note(config)
    return findings


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without their sections."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(value if isinstance(value, Mapping) else {key: value})
    return found


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- everything together ---


def diagnose(candidate: Candidate, original: Mapping[str, np.ndarray], config: Config) -> Diagnosis:
    """What is wrong with a candidate of any kind.

    Raises:
        DoctorError: the candidate holds nothing to judge.
    """
    if candidate.kind == "weights":
        return diagnose_weights(candidate, original, config)
    diagnosis = Diagnosis()
    if candidate.kind == "config":
        known = {name for names in _NAMES.values() for name in names}
        flat = _flat(candidate.config)
        stated = sorted(known & set(flat))
        if not stated:
            shown = ", ".join(sorted(map(str, flat))[:4])
            raise DoctorError(f"{candidate.path}: none of its settings is a network's size ({shown})")
        if not any(_whole(flat[name]) for name in stated):
            shown = ", ".join(f"{name} is {json.dumps(flat[name], default=str)[:40]}" for name in stated[:3])
            raise DoctorError(f"{candidate.path}: no size of the network can be read: {shown}, not whole numbers")
        diagnosis.findings = check_config(candidate.config, config, diagnosis.notes)
        return diagnosis
    return diagnose_trace(candidate, original, config)


def diagnose_trace(candidate: Candidate, original: Mapping[str, np.ndarray], config: Config) -> Diagnosis:
    """What is wrong with the model that made a trace: every module, in every precision that was recorded."""
    trace = candidate.trace
    diagnosis = Diagnosis()
    inputs = trace.inputs
    absent = [name for name in numpy_network.INPUTS if name not in inputs]
    if absent:
        raise DoctorError(f"{candidate.path}: the trace does not say what its {' and '.join(absent)} were")
    depth = inputs[numpy_network.FRAMES].shape[-1]
    if depth != config.network.input_depth:
        diagnosis.refusal = (
            f"{candidate.path}: frames of {depth} values; the original's model takes {config.network.input_depth}"
        )
        return diagnosis
    from parity.trace import trace as traces

    prints = traces.fingerprint(dict(original))
    differing = [name for name, entry in trace.weights.items() if name in prints and entry[1:] != prints[name][1:]]
    unknown = [name for name in trace.weights if name not in prints]
    if differing:
        shown = ", ".join(differing[:3]) + (", …" if len(differing) > 3 else "")
        diagnosis.notes.append(
            f"{len(differing)} of {len(prints)} weights of the trace are not the original's bits ({shown}); "
            "diagnose the weights themselves too"
        )
    if unknown:
        diagnosis.notes.append(f"{len(unknown)} weights of the trace have names that are not MT3's ({unknown[0]}, …)")
    diagnosis.findings = name_faults(trace, original, config)
    return diagnosis


def name_faults(
    trace: Any,
    original: Mapping[str, np.ndarray],
    config: Config,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> list[Finding]:
    """The causes of everything that a traced model does other than MT3, most exact precision first.

    Args:
        trace: of parity.trace.trace; its inputs and taps are read.
        original: the weights that the model should have.
        config: the original's.
        arrays: the weights that it has, under MT3's names, where they are at hand: faults of weights are then named
            from the weights, and modules are judged with the weights that they have.
    """
    findings = [] if arrays is None else compare_arrays(arrays, original, config.network)
    held = original if arrays is None else arrays
    seen: set[tuple[str, str]] = set()
    for precision in sorted(trace.passes, key=list(EPSILON).index):
        news = []
        for finding in examine(trace.passes[precision].outputs, trace.inputs, held, config.network, precision):
            # an epsilon that float64 has read is not read again, with fewer digits, off float32
            sort = "eps" if finding.cause.startswith("eps") else finding.cause
            sites = [site for site in finding.sites if (site, sort) not in seen]
            if sites:
                finding.sites = sites
                finding.site = finding.site if finding.site in sites else sites[0]
                findings.append(finding)
                news += [(site, sort) for site in sites]
        seen.update(news)
    return findings


def read_original(path: str, preset: str | None = None) -> tuple[dict[str, np.ndarray], Config]:
    """Arrays and config of the original checkpoint, complete and checked."""
    found = checkpoint.read(path)
    return found.arrays, checkpoint.network_config(found.arrays, path, preset=preset)
