"""The files that travel to a machine with a GPU and back: data small enough to be carried, weights in parts.

A pack is a folder: data.tar.xz (soundfonts, each with one Vorbis stream of all samples; songs; validation segments in
steps of LEVEL), weights.safetensors (the moving average), heads.npz (layers of the auxiliary losses), wheels/ (packages
that the machine lacks) and manifest.json with settings, sizes and SHA-256 sums.
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.read import Checkpoint, read_checkpoint
from mt3_common.checkpoint.storage import DTYPES
from mt3_common.checkpoint.write import write_safetensors, write_t5x
from mt3_common.config import Config
from mt3_common.data.segments import MT3Cutter
from mt3_common.data.shards import write_segments
from mt3_common.data.songs import read_split
from mt3_common.data.sources import is_test_only
from mt3_common.formats import sf2
from mt3_common.io import atomic
from mt3_common.io.archives import unpack_tar
from mt3_common.io.cores import num_cores
from mt3_common.io.digests import file_sha256
from mt3_common.training.batches import open_shards
from mt3_common.training.config import TrainingConfig, read_config
from mt3_common.training.family import training_family
from mt3_common.training.run_folder import read_metrics

ROOT = Path(__file__).parents[2]
MIB = 2**20
# of the Vorbis streams, 0 to 1: at 0 a note differs from the original by a signal 20 to 30 dB below it
QUALITY = 0.0
# steps of the log-mel frames of validation: a sixth of the deviation of the training's random equalizer
LEVEL = 1 / 16
# bytes of a part of the weights; a letter tells the parts of one set of weights from those of the next
PART_BYTES = 16 * MIB - 4096
SETS = "ab"
MANIFEST = "manifest.json"


class TravelError(ValueError):
    """A pack or weights that cannot be made, are too large, or did not arrive whole."""


@dataclasses.dataclass(frozen=True)
class Cargo:
    """An unpacked pack.

    Attributes:
        midi: folders of songs.
        fonts: soundfonts with plain samples.
        validation: folder with one shard.
        run: folder of a training run at step 0: last/ has the weights and the auxiliary layers, no optimizer slots.
        manifest: of the pack.
    """

    midi: list[Path]
    fonts: list[Path]
    validation: Path
    run: Path
    manifest: dict[str, Any]


def repository_sizes(without: Path) -> Counter[str]:
    """Return the bytes of the checkout's files that git does not ignore, by folder, two levels deep.

    Args:
        without: a folder that is not counted.

    Raises:
        TravelError: the project is no checkout.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        raise TravelError(f"{ROOT} is no git checkout, so that it is not known what of it travels")
    sizes: Counter[str] = Counter()
    for name in {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}:
        path = ROOT / name
        if os.path.lexists(path) and not path.is_relative_to(without):
            sizes["/".join(name.split("/")[:2])] += path.lstat().st_size
    return sizes


def pack(
    work: Path, folder: Path, limit: float, segments: int, wheels: Path | None, preset: str | None = None
) -> dict[str, float]:
    """Write a pack of the data and the newest weights of a folder of default.sh; return its sizes in MiB.

    Weights travel in float32 if that fits, else in bfloat16.

    Args:
        work: WORK of default.sh, with sources, fonts, shards/validation-notes and run.
        folder: of the pack, replaced if it is one.
        limit: MiB of the pack and the repository's own files together.
        segments: number of validation segments.
        wheels: folder of packages (*.whl) to take along.
        preset: whose settings of the training to take in place of the run's.

    Raises:
        TravelError: something is missing, or all of it is larger than the limit.
    """
    if folder.exists() and not (folder / MANIFEST).exists():
        raise TravelError(f"{folder} is there and no pack; name another folder")
    state = _newest(work / "run")
    settings = dataclasses.asdict(read_config(None, preset)[1]) if preset else _training_of(work / "run" / "run.json")
    repository = repository_sizes(folder)
    with tempfile.TemporaryDirectory(dir=_parent(folder), prefix=".pack-") as name:
        making = Path(name) / folder.name
        making.mkdir()
        sizes = _write_data(work, making / "data.tar.xz", state.config(), segments)
        heads = {name: array for name, array in state.optimizer.items() if name.startswith("auxiliary/")}
        small: dict[str, Any] = {name: array.astype(np.float16) for name, array in heads.items()}
        np.savez(making / "heads.npz", **small)
        sizes["auxiliary layers"] = (making / "heads.npz").stat().st_size / MIB
        if wheels is not None:
            sizes["packages"] = _copy_wheels(wheels, making / "wheels")
        room = limit - sum(sizes.values()) - sum(repository.values()) / MIB
        for dtype in ("float32", "bfloat16"):
            _write_weights(making / "weights.safetensors", state, dtype)
            weights = (making / "weights.safetensors").stat().st_size / MIB
            if weights <= room:
                break
        sizes[f"weights in {dtype}"] = weights
        if weights > room:
            raise TravelError(_too_large(repository, sizes, limit))
        rows = read_metrics(work / "run" / "metrics.csv", state.step or 0)
        manifest = {
            **{"step": state.step or 0, "dtype": dtype, "model": state.config().to_dict(), "training": settings},
            **{"loss_at_home": rows[-1]["validation_loss"] if rows else "", "mib": sizes, "segments": segments},
            "sha256": {
                path.relative_to(making).as_posix(): file_sha256(path)
                for path in sorted(making.rglob("*"))
                if path.is_file()
            },
        }
        (making / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        making.rename(folder)
    return {"repository": sum(repository.values()) / MIB} | sizes


def _training_of(path: Path) -> dict[str, Any]:
    """Return the settings of the training in run.json.

    Raises:
        TravelError: it cannot be read, or has none that can be used.
    """
    try:
        return dataclasses.asdict(TrainingConfig(**json.loads(path.read_text())["training"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TravelError(f"{path} does not tell the training's settings: {error}") from error


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def _newest(run: Path) -> Checkpoint:
    """Read last/ of a run, or best/ where there is none; again if a training replaces it meanwhile."""
    source = run / "last" if (run / "last").exists() else run / "best"
    if not source.exists():
        raise TravelError(f"{run} has no weights, neither last/ nor best/: make train-default makes it")
    for _ in range(2):
        with contextlib.suppress(CheckpointError, OSError):
            return read_checkpoint(source, optimizer=True)
        time.sleep(1)
    try:
        return read_checkpoint(source, optimizer=True)
    except (CheckpointError, OSError) as error:
        raise TravelError(f"{source} cannot be read: {error}") from error


def _write_weights(path: Path, state: Checkpoint, dtype: str) -> None:
    """Write the moving average of a run, or the weights where it has none."""
    averaged = {name: state.optimizer.get(f"average/{name}", array) for name, array in state.arrays.items()}
    arrays = {name: array.astype(DTYPES[dtype]) for name, array in averaged.items()}
    write_safetensors(path, arrays, state.config(), state.step)


def _write_data(work: Path, path: Path, config: Config, segments: int) -> dict[str, float]:
    """Write data.tar.xz; return the sizes of its parts in MiB."""
    banks = [font for font in sorted((work / "sources" / "soundfonts").glob("*.sf[23]")) if not is_test_only(font)]
    fonts = sorted((work / "fonts" / "train").glob("*.sf2"))
    folders = sorted(folder for folder in (work / "sources" / "midi").glob("*") if folder.is_dir())
    for things, where in ((banks, "sources/soundfonts"), (fonts, "fonts/train"), (folders, "sources/midi")):
        if not things:
            raise TravelError(f"{work / where} is empty or missing: make train-default makes it")
    if twice := [name for name, count in Counter(font.stem for font in banks + fonts).items() if count > 1]:
        raise TravelError(f"two soundfonts are called {twice[0]}, and one would replace the other: rename one")
    try:
        validation = open_shards([work / "shards" / "validation-notes"], MT3Cutter(config))
    except ValueError as error:
        raise TravelError(f"there is nothing to validate on: {error}") from error
    sizes: dict[str, float] = dict.fromkeys(("banks", "recorded instruments", "songs", "validation"), 0.0)
    with tarfile.open(path, "w:xz") as archive:

        def add(kind: str, name: str, content: bytes) -> None:
            before = path.stat().st_size
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            sizes[kind] += (path.stat().st_size - before) / MIB

        with tempfile.TemporaryDirectory() as scratch:
            small = Path(scratch) / "small"
            for font in banks + fonts:
                _shrink(font, small)
                kind = "banks" if font in banks else "recorded instruments"
                add(kind, f"fonts/{font.stem}.sfo", small.read_bytes())
        for song in read_split(folders, "train"):
            add("songs", f"midi/{song.name}", song.path.read_bytes())
        batch = validation.some(segments)
        # levels of whole steps, so that frames past the end of the audio stay exactly 0
        lowest = int(np.floor(batch.frames.min() / LEVEL))
        if batch.frames.max() / LEVEL - lowest > np.iinfo(np.uint16).max:
            raise TravelError(f"{work / 'shards' / 'validation-notes'} has frames that are no log-mel spectrograms")
        levels = (np.rint(batch.frames / LEVEL) - lowest).astype(np.uint16)
        stream = io.BytesIO()
        np.savez(stream, levels=levels, lowest=lowest, targets=batch.targets, rolls=batch.rolls)
        add("validation", "validation.npz", stream.getvalue())
    # the compressor holds back up to some MiB of each part
    missing = path.stat().st_size / MIB - sum(sizes.values())
    return sizes | {"validation": sizes["validation"] + missing}


def _shrink(font: Path, small: Path) -> None:
    """Write a soundfont with one Vorbis stream of all samples."""
    try:
        tables = sf2.read_tables(font).tables
        samples, headers = sf2.read_samples(font)
    except sf2.SoundfontError as error:
        raise TravelError(f"{font} is no soundfont that can be read: {error}") from error
    sf2.write(small, font.stem.encode()[:19], tables | {b"shdr": headers}, samples, QUALITY)


def _copy_wheels(wheels: Path, target: Path) -> float:
    """Copy packages; return their size in MiB."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise TravelError(f"{wheels} holds no packages (*.whl)")
    target.mkdir()
    return sum(Path(shutil.copy(file, target)).stat().st_size for file in files) / MIB


def _too_large(repository: Mapping[str, int], sizes: Mapping[str, float], limit: float) -> str:
    largest = [f"{name} {size / MIB:.1f}" for name, size in Counter(repository).most_common(2)]
    whole, packed = sum(repository.values()) / MIB, sum(sizes.values())
    parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
    return (
        f"the pack of {packed:.1f} MiB ({parts}) and the repository of {whole:.1f} MiB (its largest folders: "
        f"{', '.join(largest)}) are {packed + whole:.1f} MiB, more than the {limit:g} that travel; git sparse-checkout "
        "set --no-cone '/*' '!/tests/golden/' '!/checkpoints/small/' '!/checkpoints/default/' leaves out what training "
        "does not need"
    )


def read_pack(folder: Path) -> dict[str, Any]:
    """Return the manifest of a pack whose files are whole.

    Raises:
        TravelError: it is no pack, or a file is missing or another.
    """
    manifest = _manifest(folder, "pack")
    for name, digest in manifest["sha256"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise TravelError(f"{folder / name} is missing or damaged: pack again")
    return manifest


def _manifest(folder: Path, what: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest if isinstance(manifest["sha256"], dict) else {}["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TravelError(f"{folder} is no {what}: its {MANIFEST} cannot be read ({error})") from error


def unpack_data(folder: Path, scratch: Path) -> Cargo:
    """Unpack a pack into an empty folder, soundfonts on all cores.

    Raises:
        TravelError: it did not arrive whole.
        ArchiveError: its data would be written elsewhere, or are no files.
    """
    manifest = read_pack(folder)
    unpack_tar(folder / "data.tar.xz", scratch)
    fonts = sorted((scratch / "fonts").glob("*.sfo"))
    # decoding releases Python's lock
    with ThreadPoolExecutor(num_cores()) as pool:
        plain = list(pool.map(_grow, fonts))
    config = Config.from_dict(manifest["model"])
    with np.load(scratch / "validation.npz") as stored:
        frames = ((stored["levels"].astype(np.float32) + int(stored["lowest"])) * LEVEL).astype(np.float16)
        rows = zip(frames, stored["targets"], stored["rolls"])
        (scratch / "validation").mkdir()
        segments = [(segment, ids[ids > 0], roll) for segment, ids, roll in rows]
        write_segments(scratch / "validation" / "00000.npz", segments, MT3Cutter(config))
    weights = read_checkpoint(folder / "weights.safetensors")
    arrays = {name: array.astype(np.float32) for name, array in weights.arrays.items()}
    with np.load(folder / "heads.npz") as stored:
        heads = {name: stored[name].astype(np.float32) for name in stored.files}
    (scratch / "run").mkdir()
    training_family(config).write(scratch / "run" / "last", arrays, 0, heads)
    midi = sorted((scratch / "midi").iterdir())
    return Cargo(midi, plain, scratch / "validation", scratch / "run", manifest)


def _grow(font: Path) -> Path:
    """Replace a soundfont by one with plain samples, which each process that renders loads faster."""
    plain = font.with_suffix(".sf2")
    samples, headers = sf2.read_samples(font)
    sf2.write(plain, font.stem.encode()[:19], sf2.read_tables(font).tables | {b"shdr": headers}, samples)
    font.unlink()
    return plain


def write_parts(folder: Path, arrays: Mapping[str, np.ndarray], config: Config, record: Mapping[str, Any]) -> None:
    """Write weights in parts; whenever this is interrupted, the manifest and its parts belong together.

    Args:
        folder: with a manifest and other parts, or without.
        arrays: of the network, written in float32.
        config: of the network.
        record: what else the manifest says; 'step' goes into the weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        write_safetensors(path, {name: array.astype(np.float32) for name, array in arrays.items()}, config)
        content = path.read_bytes()
    valid = set(_manifest(folder, "folder of trained weights")["sha256"]) if (folder / MANIFEST).exists() else set()
    letter = next(letter for letter in SETS if f"weights-{letter}0" not in valid)
    digests = {}
    for number, first in enumerate(range(0, len(content), PART_BYTES)):
        path = folder / f"weights-{letter}{number}"
        atomic.write(path, content[first : first + PART_BYTES])
        digests[path.name] = file_sha256(path)
    atomic.write(folder / MANIFEST, json.dumps({**record, "sha256": digests}, indent=1) + "\n")
    for path in folder.glob("weights-*"):
        if path.name not in digests:
            path.unlink()


def join_parts(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Write a checkpoint, a folder in T5X's layout, of the parts of weights; return their manifest.

    Raises:
        TravelError: a part is missing or damaged, or there is a checkpoint of that name.
    """
    manifest = _manifest(folder, "folder of trained weights")
    if os.path.lexists(checkpoint):
        raise TravelError(f"{checkpoint} is there already; name another one")
    for name, digest in manifest["sha256"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise TravelError(f"{folder / name} is missing or damaged: fetch it again")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        # in the order in which they were written: by name, part 10 would stand before part 2
        path.write_bytes(b"".join((folder / name).read_bytes() for name in manifest["sha256"]))
        weights = read_checkpoint(path)
        config = weights.config()
    _parent(checkpoint)
    write_t5x(checkpoint, weights.arrays, int(manifest["step"]), config=config)
    return manifest
