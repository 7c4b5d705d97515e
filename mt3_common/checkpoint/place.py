"""The place of a checkpoint: which folder or file a path means."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mt3_common.checkpoint import exported
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.storage import MARKERS, STATE, STEP, Folder, address
from mt3_common.io.plural import plural

# endings of files of weights, and of the index of several
WEIGHTS = (".safetensors", ".npz", ".msgpack", ".pth", ".pt", ".ckpt", ".bin")
INDEX = (".safetensors.index.json", ".bin.index.json")
# what Orbax writes to before it is whole
TEMPORARY = re.compile(r"\.orbax-checkpoint-tmp")


class Place(NamedTuple):
    """Location of a checkpoint: a step folder, or a file in a folder; passed_over as in Inspection."""

    folder: Folder
    file: str = ""
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.folder}/{self.file}" if self.file else str(self.folder)


def markers() -> list[str]:
    """List the files that make a folder a checkpoint, as keys."""
    return [prefix + marker for prefix in ("", f"{STATE}/") for marker in MARKERS]


def locate(path: str | os.PathLike) -> Place:
    """Locate the checkpoint at a path: a step folder, the latest complete one in a folder of them, or a file.

    A folder may also be that of a run of `mt3 train` (its best/ counts, or else its last/), one with an item of Orbax
    (`default`, `params` …), or one with a single file of weights or the index of several.

    Raises:
        CheckpointError: there is none, or more than one that could be meant.
    """
    folder = Folder(address(path))
    files = folder.having(markers())
    if not files and folder.path.name and folder.above.having([folder.path.name]):
        if folder.path.name == "checkpoint":
            return Place(folder.above)
        return Place(folder.above, folder.path.name)
    steps = _steps(folder)
    if files and steps:
        raise CheckpointError(
            f"{folder} is a checkpoint itself ({min(files)}) and holds others ({', '.join(sorted(steps))}): name one"
        )
    if files:
        return Place(folder)
    return _latest(folder, steps) if steps else _only_one(folder)


def _latest(folder: Folder, steps: Mapping[str, tuple[int, bool]]) -> Place:
    """Return the place of the latest complete step."""
    complete = {name: step for name, (step, whole) in steps.items() if whole}
    if not complete:
        raise CheckpointError(
            f"{folder} holds only incomplete checkpoints ({', '.join(sorted(steps))}): none of them has the file "
            "`checkpoint`, which is written last"
        )
    latest = max(complete.values())
    names = sorted(name for name, step in complete.items() if step == latest)
    if len(names) > 1:
        raise CheckpointError(f"{folder} holds step {latest} more than once ({', '.join(names)}): name one")
    passed_over = tuple(sorted(name for name, (step, whole) in steps.items() if step > latest and not whole))
    chosen = folder.below(names[0])
    if chosen.having(markers()):
        return Place(chosen, "", passed_over)
    if folder.having(names):
        return Place(folder, names[0], passed_over)
    return _only_one(chosen)._replace(passed_over=passed_over)


def _only_one(folder: Folder) -> Place:
    """Return the only checkpoint in a folder that is none itself and holds no steps: an item, or a file."""
    if folder.local and not os.path.lexists(str(folder)):
        raise CheckpointError(f"{folder} is no checkpoint: there is no such file or folder")
    names = folder.names()
    items = _items(folder, names)
    if "run.json" in names and (runs := [name for name in ("best", "last") if name in items]):
        return Place(folder.below(runs[0]))
    if len(items) > 1:
        raise CheckpointError(
            f"{folder} holds several checkpoints ({', '.join(items)}): name one, as in {folder}/{items[0]}"
        )
    if items:
        return Place(folder.below(items[0]))
    indices = [name for name in names if name.endswith(INDEX)]
    weights = indices or [name for name in names if name.endswith(WEIGHTS)]
    if len(weights) > 1:
        raise CheckpointError(f"{folder} holds several files of weights ({', '.join(weights)}): name one")
    if weights:
        return Place(folder, weights[0])
    # no checkpoints either, and whoever reads them says what they are
    if networks := [name for name in names if name.endswith(exported.ENDINGS)]:
        return Place(folder, networks[0])
    if folder.below(exported.SITE_FOLDER).having([exported.SITE_FILE]):
        return Place(folder.below(exported.SITE_FOLDER), exported.SITE_FILE)
    raise CheckpointError(_no_checkpoint(folder, names))


def _no_checkpoint(folder: Folder, names: Sequence[str]) -> str:
    """Return the sentence about a folder in which no checkpoint was seen: what it is, and what to do."""
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return (
            f"{folder} is a distributed checkpoint of PyTorch, in pieces: put them together with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
        )
    if "zero_to_fp32.py" in names or any(re.search(r"mp_rank_\d+_model_states\.pt$", name) for name in names):
        return (
            f"{folder} is a checkpoint of DeepSpeed, in pieces: put them together with its zero_to_fp32.py: "
            f"python {folder}/zero_to_fp32.py {folder} weights.bin"
        )
    if arrays := [name for name in names if name.startswith("target.")]:
        return (
            f"{folder} holds {plural(len(arrays), 'array folder')} but not the file `checkpoint`, which names "
            "the arrays and may "
            "hold some of them: fetch it too"
        )
    return (
        f"{folder} is no checkpoint: expected a file, a folder with the file `checkpoint`, with Orbax's _METADATA, "
        "with state/ or with one file of weights, or a folder of checkpoint_N folders"
    )


def _items(folder: Folder, names: Sequence[str]) -> list[str]:
    """Return the folders right in a folder that are checkpoints by their files."""
    candidates = [name for name in names if not name.startswith((".", "ocdbt.process_")) and not TEMPORARY.search(name)]
    present = folder.having(f"{name}/{marker}" for name in candidates for marker in MARKERS)
    return sorted({key.rpartition("/")[0] for key in present})


def _steps(folder: Folder) -> dict[str, tuple[int, bool]]:
    """Step folders and step files right in a folder: name -> (step, True if it is complete)."""
    steps = {}
    # names that begin with a word of STEP or with a digit: "`" follows "_", "." follows "-", ":" follows "9"
    for name in folder.names([("checkpoint-", "checkpoint`"), ("ckpt-", "ckpt`"), ("step-", "step`"), ("0", ":")]):
        if not (match := STEP.fullmatch(name)):
            continue
        inner = folder.below(name)
        complete = bool(inner.having(markers()))
        complete = complete or (match[0] != match[1] and bool(folder.having([name])))
        complete = complete or bool(_items(inner, inner.names()))
        if complete or match[0] != match[1]:
            steps[name] = (int(match[1]), complete)
    return steps
