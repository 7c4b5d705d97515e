"""Names of modules and arrays in one spelling, and maps between two sides' names.

One spelling: parts joined by dots, numbers as parts of their own: 'encoder.layers.0.mlp' for Flax's
'encoder/layers_0/mlp', PyTorch's 'encoder.layers.0.mlp' and Haiku's 'encoder/~/layers_0/mlp'.
"""

import os
import re
from collections.abc import Mapping

# A name without any of these characters is taken as it stands; with one of them it is a regular expression.
_REGULAR = re.compile(r"[\\^$*+?()\[\]{}|]")


def plain(name: str) -> str:
    """Return a name in the one spelling.

    A number at the end of a part becomes a part of its own only behind an underscore: 'layers_0' is 'layers.0', but
    'conv1' and 'wi_0.kernel' of two siblings 'wi_0' and 'wi_1' become 'conv1' and 'wi.0.kernel' on both sides.
    """
    parts = [part for part in re.split(r"[./]", name) if part not in ("", "~")]
    return re.sub(r"_(\d+)(?=\.|$|#)", r".\1", ".".join(parts))


def slashed(name: str) -> str:
    """Return a name in the one spelling as Flax writes it: 'encoder/layers_0/mlp'."""
    return re.sub(r"\.(\d+)(?=\.|$|#)", r"_\1", name).replace(".", "/")


class NameMap:
    """A map from the reference's names to the candidate's.

    Args:
        entries: reference name -> candidate name. A plain name stands for itself and everything below it
            ({'encoder.layers': 'enc.blocks'}); a name with characters of a regular expression is one, and its
            replacement may use its groups ({r'layers\\.(\\d+)\\.attn': r'blocks.\\1.attention'}). Entries are tried in
            order and the first that fits is used.

    Raises:
        ValueError: a regular expression is wrong, or an entry is no pair of strings.
    """

    def __init__(self, entries: Mapping[str, str] | None = None):
        self.rules: list[tuple[re.Pattern[str], str]] = []
        for source, target in (entries or {}).items():
            if not isinstance(source, str) or not isinstance(target, str):
                raise ValueError(f"name map: {source!r}: {target!r} is no pair of names")
            if _REGULAR.search(source):
                try:
                    self.rules.append((re.compile(source), target))
                except re.error as error:
                    raise ValueError(f"name map: {source!r} is no regular expression ({error})") from error
            else:
                literal = rf"^{re.escape(plain(source))}(?=\.|$|#)" if source else "^"
                prefix = plain(target)
                self.rules.append((re.compile(literal), (prefix if source else f"{prefix}.").replace("\\", r"\\")))

    def candidate(self, name: str) -> str:
        """Return the candidate's name, in the one spelling, of a reference's name in that spelling."""
        for pattern, target in self.rules:
            if pattern.search(name):
                return plain(pattern.sub(target, name, count=1))
        return name


def read_map(path: str | os.PathLike) -> dict[str, str]:
    """Read a name map from a JSON file: an object of reference name -> candidate name.

    Raises:
        ValueError: missing, no JSON, or no object of strings.
    """
    # not above: comparisons of modules need nothing of mt3_common
    from mt3_common.io.bounded import LARGEST_SETTINGS, read_bounded
    from mt3_common.io.json_text import parse_json

    try:
        with open(path, "rb") as file:
            entries = parse_json(read_bounded(file, LARGEST_SETTINGS))
    except OSError as error:
        raise ValueError(f"{path}: no readable file of names ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise ValueError(f'{path}: not a map of names ({{"reference name": "candidate name"}})')
    NameMap(entries)
    return entries
