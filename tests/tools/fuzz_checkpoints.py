"""Damaged checkpoints in every wrapping, by the thousand: each must be read or be refused in one sentence.

python tests/tools/fuzz_checkpoints.py [--cases 10000] [--seed 0]
    prints those that went wrong, and how many there were of each kind
python tests/tools/fuzz_checkpoints.py --seed 0 --only NUMBER
    one of them again

A case goes wrong by another exception than CheckpointError, ConfigError or OSError, by a message of several lines or
above 1,000 characters, by more than 20 s of the processor (200 s in all), or by more than 256 MB beyond what the
process had.
"""

import argparse
import json
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import numpy as np
import safetensors.numpy
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests" / "tools")) if path not in sys.path]

from fuzz import mutated  # noqa: E402

from mt3_common.checkpoint.hf_t5 import hf_t5_name  # noqa: E402
from mt3_common.checkpoint.names import array_shapes  # noqa: E402
from mt3_common.checkpoint.read import inspect_checkpoint, read_any, read_checkpoint  # noqa: E402
from mt3_common.checkpoint.write import write_t5x  # noqa: E402
from mt3_common.config import Config, NetworkConfig, VocabularyConfig  # noqa: E402

NETWORK = NetworkConfig(
    vocab_size=512, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=3, num_encoder_layers=1, num_decoder_layers=2,
    input_depth=512,
)  # fmt: skip
CONFIG = Config(NETWORK, vocabulary=VocabularyConfig(steps_per_second=10, max_shift_seconds=2))
# s, and MB more than before
LONGEST, LARGEST = 20, 256


def arrays() -> dict[str, np.ndarray]:
    """Random numbers under MT3's names."""
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype("f4") for name, shape in array_shapes(NETWORK).items()}


def tree(flat: dict[str, np.ndarray], pack: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Nested dictionaries of packed arrays."""
    nested: dict[str, Any] = {}
    for name, array in flat.items():
        *levels, leaf = name.split("/")
        node = nested
        for level in levels:
            node = node.setdefault(level, {})
        node[leaf] = pack(array)
    return nested


def make(folder: Path) -> dict[str, Path]:
    """Write whole checkpoints of every kind and return kind -> path."""
    flat = arrays()
    named = {
        hf_t5_name(name): np.ascontiguousarray(array.T) if name.endswith("kernel") else array
        for name, array in flat.items()
    }
    tensors = {f"module.{name}": torch.from_numpy(array.copy()) for name, array in named.items()}
    places = {name: folder / name for name in ("pth", "legacy", "lightning", "sets", "npz", "safetensors", "shards")}
    places |= {name: folder / name for name in ("msgpack", "t5x", "zarr3", "manager", "scanned")}
    for place in places.values():
        place.mkdir()
        (place / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    torch.save({"net": tensors}, places["pth"] / "x.pth")
    torch.save(tensors, places["legacy"] / "x.pt", _use_new_zipfile_serialization=False)
    left = {"hyper_parameters": argparse.Namespace(rate=1e-3), "score": np.float64(1), "epoch": 3}
    torch.save({"state_dict": tensors, **left}, places["lightning"] / "x.ckpt")
    torch.save(tensors | {f"ema.{name}": tensor for name, tensor in tensors.items()}, places["sets"] / "x.pth")
    np.savez(places["npz"] / "x.npz", **{f"params/{name}": array for name, array in flat.items()})
    safetensors.numpy.save_file(named, places["safetensors"] / "model.safetensors")
    halves = (dict(list(named.items())[::2]), dict(list(named.items())[1::2]))
    for number, part in enumerate(halves):
        safetensors.numpy.save_file(part, places["shards"] / f"model-{number}.safetensors")
    weight_map = {name: f"model-{number}.safetensors" for number, part in enumerate(halves) for name in part}
    (places["shards"] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def extension(array: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    content = {"params": tree(flat, extension), "step": 3}
    (places["msgpack"] / "flax_model.msgpack").write_bytes(msgpack.packb(content))
    shutil.rmtree(places["t5x"])
    write_t5x(places["t5x"], flat, 3, config=CONFIG)
    stacked = {name: array for name, array in flat.items() if "/layers_" not in name}
    for stack, count in (("encoder", 1), ("decoder", 2)):
        for name in [name for name in flat if name.startswith(f"{stack}/layers_0/")]:
            layers = [flat[name.replace("layers_0", f"layers_{layer}")] for layer in range(count)]
            stacked[name.replace("layers_0", "layers")] = np.stack(layers, 1)
    np.savez(places["scanned"] / "x.npz", **stacked)
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True, use_ocdbt=False)) as writer:
        writer.save(places["zarr3"] / "5", {"params": tree(flat, np.asarray)})
    with ocp.CheckpointManager(places["manager"] / "run") as manager:
        manager.save(7, args=ocp.args.StandardSave({"params": tree(flat, np.asarray)}))
        manager.wait_until_finished()
    return places | {"zarr3": places["zarr3"], "manager": places["manager"] / "run"}


OPCODES = [code for name, code in vars(pickle).items() if name.isupper() and isinstance(code, bytes) and len(code) == 1]


def damage(random: Random, path: Path) -> None:
    """Damage a file: its bytes, or of a zip file those of an entry, or a pickle's opcodes."""
    data = path.read_bytes()
    if zipfile.is_zipfile(path) and random.random() < 0.6:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        name = random.choice([name for name in entries if name.endswith((".pkl", ".npy"))] or list(entries))
        content = bytearray(mutated(random, entries[name]))
        if name.endswith(".pkl") and content and random.random() < 0.5:
            content[random.randrange(len(content))] = random.choice(OPCODES)[0]
        entries[name] = bytes(content)
        method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return
    path.write_bytes(mutated(random, data, head=random.choice((16, 256, 4000))))


def case(random: Random, whole: dict[str, Path], folder: Path) -> tuple[str, list[str]]:
    """Damage one of the checkpoints and read it; return its kind and what went wrong."""
    kind = random.choice(sorted(whole))
    place = folder / "x"
    shutil.copytree(whole[kind], place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    for path in random.sample(files, min(len(files), random.choice((1, 1, 1, 2)))):
        if random.random() < 0.05:
            path.unlink()
        elif random.random() < 0.05:
            path.write_bytes(random.choice(files).read_bytes() if random.choice(files).exists() else b"")
        else:
            damage(random, path)
    read = random.choice((read_checkpoint, read_checkpoint, inspect_checkpoint, read_any))
    faults: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            checkpoint = read(place)
            if not isinstance(checkpoint, dict):
                checkpoint.resolve()
    except (ValueError, OSError) as error:
        message = str(error)
        if type(error).__name__ not in ("CheckpointError", "ConfigError") and not isinstance(error, OSError):
            faults = [traceback.format_exc()]
        elif not message or "\n" in message or len(message) > 1000:
            faults = [f"{type(error).__name__}: {message}"]
    return kind, faults


class TooLong(BaseException):
    """A case that does not end."""


def cases(numbers: range, seed: int) -> Iterator[tuple[int, str, list[str]]]:
    """Try cases and yield number, kind and what went wrong."""

    def too_long(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as name:
        (Path(name) / "whole").mkdir()
        whole = make(Path(name) / "whole")
        for place in whole.values():
            read_checkpoint(place).resolve() if place.name != "sets" else read_any(place)
        for number in numbers:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.setitimer(signal.ITIMER_PROF, LONGEST)
            signal.alarm(10 * LONGEST)
            try:
                kind, faults = case(Random(f"{seed} {number}"), whole, Path(name))
            except TooLong:
                kind, faults = "", [f"took more than {LONGEST} s"]
            except Exception:
                kind, faults = "", [traceback.format_exc()]
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            shutil.rmtree(Path(name) / "x", ignore_errors=True)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
            yield number, kind, faults + [f"took {grown:.0f} MB"] * (grown > LARGEST)


def main() -> int:
    """Return exit status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further case after so long")
    arguments = parser.parse_args()
    numbers = range(arguments.cases) if arguments.only is None else range(arguments.only, arguments.only + 1)
    counts: dict[str, int] = {}
    failures, until = 0, time.monotonic() + arguments.seconds
    for number, kind, faults in cases(numbers, arguments.seed):
        counts[kind] = counts.get(kind, 0) + 1
        for text in faults:
            failures += 1
            print(f"{kind} --seed {arguments.seed} --only {number}: {text[-1500:]}", flush=True)
        if time.monotonic() > until:
            break
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"{sum(counts.values())} cases ({kinds}), {failures} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
