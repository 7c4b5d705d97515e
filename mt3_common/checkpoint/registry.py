"""Checkpoints by path, by name or by address."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from mt3_common.checkpoint import download
from mt3_common.checkpoint.place import locate
from mt3_common.checkpoint.sources import open_source
from mt3_common.checkpoint.yourmt3 import is_yourmt3
from mt3_common.io.transfer import AccessDenied


class NamedCheckpoint(NamedTuple):
    """A checkpoint's location and name.

    Attributes:
        path: local, or an address that TensorStore opens.
        name: for messages and metadata.
        notice: what its user must know; '' for nothing.
        model: the preset that goes with it; '' where the checkpoint must tell.
    """

    path: str
    name: str
    notice: str = ""
    model: str = ""


def _check(path: Path) -> None:
    """Raise ValueError for what is no checkpoint, whatever its name."""
    if not is_yourmt3(path):
        open_source(locate(path), optimizer=False)


def find_checkpoint(
    checkpoint: str | os.PathLike | NamedCheckpoint | None = None, offline: bool = False, quiet: bool = False
) -> NamedCheckpoint:
    """Find the checkpoint of a path, a name or an address, fetching a remote one.

    Args:
        checkpoint: of these, the first that it is: a path that exists; the name of a bundled checkpoint (None: of the
            default one); 'mt3', 'ismir2021' or a name of YourMT3+, the published ones; a gs:// or https:// address;
            what TensorStore opens.
        offline: fetch nothing: from the cache or not at all.
        quiet: show nothing while it is fetched.

    Raises:
        ValueError: it is none of these, with the names that there are; or it cannot be fetched, with what to do.
    """
    if isinstance(checkpoint, NamedCheckpoint):
        return checkpoint
    folder, manifest = _bundled()
    name = manifest["default"] if checkpoint is None else os.fspath(checkpoint)
    base = os.path.basename(name.rstrip("/"))
    if checkpoint is not None and os.path.exists(name):
        return NamedCheckpoint(name, base)
    if folder and name in manifest["checkpoints"]:
        return NamedCheckpoint(str(folder / name), name, manifest["checkpoints"][name].get("notice", ""))
    if download.is_remote(name):
        model = download.model_of(name)
        pinned = manifest.get("pinned", {}).get(download.addresses().get(name, name.rstrip("/")))
        # the bucket tells hashes of its files; what any other server gives may be the page of a login
        check = None if pinned or model or name.startswith("gs://") else _check
        try:
            fetched = download.fetch(name, offline, quiet, pinned, check)
            return NamedCheckpoint(str(fetched), base.partition("#")[0], model=model)
        except AccessDenied:
            if not name.startswith("gs://"):
                raise
            # TensorStore finds the user's credentials
            return NamedCheckpoint(name, base, model=model)
    scheme, separator, _ = name.partition("://")
    if scheme == "http":
        raise ValueError(f"checkpoint {name} would come unencrypted: give its https:// address")
    if separator and offline and scheme not in ("file", "memory"):
        raise ValueError(f"checkpoint {name} is not on this machine, and --offline keeps it from being read")
    if separator:
        return NamedCheckpoint(name, base)
    raise ValueError(
        f"no checkpoint {name!r}: there is no such file or folder, the bundled ones are: "
        f"{', '.join(manifest['checkpoints']) or 'none'}, and those to be fetched: {', '.join(download.addresses())}"
    )


def checkpoint_names() -> list[str]:
    """Return the names that find_checkpoint knows: of the bundled checkpoints, then of those to be fetched."""
    return [*_bundled()[1]["checkpoints"], *download.ADDRESSES]


def _bundled() -> tuple[Path | None, dict[str, Any]]:
    """Return the folder of the bundled checkpoints, None if there is none, and its manifest."""
    # in a checkout the folder is called checkpoints, installed it is the package mt3_checkpoints
    root = Path(__file__).parents[2]
    folder = next(
        (root / name for name in ("checkpoints", "mt3_checkpoints") if (root / name / "manifest.json").exists()), None
    )
    manifest = json.loads((folder / "manifest.json").read_text()) if folder else {"default": "", "checkpoints": {}}
    return folder, manifest
