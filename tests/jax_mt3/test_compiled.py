"""Compiled programs come back from the disk as they were; whatever else lies there costs time alone."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_mt3 import compiled, infer

ROOT = Path(__file__).parents[2]
WHERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])

# what two searches make of the golden network, and how many programs were compiled for it
RUN = """
import dataclasses, json, sys
import jax
import numpy as np
from jax_mt3 import checkpoint, decode
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.config import Config, NetworkConfig

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **details: compiled.append(event) if event.endswith("backend_compile_duration") else None
)
golden, folder = sys.argv[1:]
sizes = json.load(open(golden + "/config.json"))
sizes = {name: value for name, value in sizes.items() if name in NetworkConfig.__dataclass_fields__}
config = dataclasses.replace(Config(), network=NetworkConfig(**sizes), max_target_length=60)
params = checkpoint.to_params(read_checkpoint(golden + "/checkpoints/t5x_zarr").arrays)
with np.load(golden + "/decode.npz") as archive:
    frames = list(archive["in/frames"]) * 2
ids = [
    [row.tolist() for row in decode.generate(params, config, frames, batch_size=8, folder=folder or None, **how)]
    for how in ({}, {"search": "t5x", "num_decodes": 2})
]
print(json.dumps({"ids": ids, "compiled": len(compiled)}))
"""


def run(folder):
    """Of a process of its own, in which JAX keeps nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    # compiles sooner
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    command = [sys.executable, "-c", RUN, str(ROOT / "tests" / "golden" / "model"), str(folder)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def with_digest(content):
    return hashlib.sha256(content).digest() + content


def test_a_second_run_compiles_nothing_and_files_that_are_not_programs_are_replaced(tmp_path):
    first = run(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    # where two searches need the same program, it is compiled once
    assert 7 <= first["compiled"] <= len(files)
    assert run(tmp_path) == {"ids": first["ids"], "compiled": 0}

    whole = [path.read_bytes() for path in files]
    spoilt = [
        b"",
        whole[1][: len(whole[1]) // 2],
        # a program that is not the one that was written
        bytes(32) + whole[2][32:],
        with_digest(b"no program"),
        with_digest(zlib.compress(b"no program")),
        # the beginning of a program
        with_digest(zlib.compress(zlib.decompress(whole[5][32:])[:-100])),
    ]
    for path, content in zip(files, spoilt):
        path.write_bytes(content)
    files[6].chmod(0o666)
    again = run(tmp_path)
    assert again["ids"] == first["ids"]
    assert 4 <= again["compiled"] <= len(spoilt) + 1
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert not {path.read_bytes() for path in files} & set(spoilt)
    # others could have written it
    assert not files[6].stat().st_mode & 0o022
    assert run(tmp_path) == {"ids": first["ids"], "compiled": 0}


def test_what_cannot_be_kept_is_no_hindrance(tmp_path):
    """A file lies where the folder should be; files cannot be made for another reason on a full disk."""
    (tmp_path / "programs").write_text("")
    programs = compiled.find_programs(tmp_path / "programs", "no folder", WHERE)
    twice = programs.get("twice", jax.jit(lambda number: number * 2).lower, (np.int32(4),), 0)
    assert int(twice(np.int32(4))) == 8
    assert [path.name for path in tmp_path.rglob("*")] == ["programs"]


def test_a_program_that_cannot_be_loaded_is_made_anew_with_a_warning(tmp_path, monkeypatch):
    def ask():
        programs = compiled.Programs(tmp_path, jax.devices()[0])
        return int(programs.get("twice", jax.jit(lambda number: number * 2).lower, (np.int32(4),), 0)(np.int32(4)))

    assert ask() == 8

    def refuse(*arguments, **keywords):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: made for another processor")

    monkeypatch.setattr(compiled.serialize_executable, "deserialize_and_load", refuse)
    with pytest.warns(UserWarning, match=r"twice cannot be loaded and is compiled again: INVALID_ARGUMENT: made for"):
        assert ask() == 8


def test_a_fault_of_the_program_itself_is_not_hidden(tmp_path, monkeypatch):
    programs = compiled.Programs(tmp_path, jax.devices()[0])
    programs.get("twice", jax.jit(lambda number: number * 2).lower, (np.int32(4),), 0)
    monkeypatch.setattr(compiled.serialize_executable, "deserialize_and_load", lambda content: None)
    with pytest.raises(TypeError, match="backend"):
        compiled.Programs(tmp_path, jax.devices()[0]).get("twice", None, (np.int32(4),), 0)


def test_a_folder_that_cannot_be_written_is_named_in_a_warning(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(infer.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert infer.programs_folder() == str(tmp_path / "mt3-twins" / "programs")
        (tmp_path / "mt3-twins" / "programs").rmdir()
        (tmp_path / "mt3-twins" / "programs").write_text("")
        with pytest.warns(UserWarning, match=r"cannot be kept in .*programs \(File exists\): every run compiles"):
            assert infer.programs_folder() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_threads_that_ask_for_the_same_program_wait_for_one():
    programs = compiled.find_programs(None, "threads", WHERE)
    lowered, both = [], threading.Barrier(4)

    def lower(number):
        lowered.append(number)
        return jax.jit(lambda number: number + 1).lower(number)

    def ask():
        both.wait()
        results.append(programs.get("one more", lower, (np.int32(4),), 0)(np.int32(4)))

    results = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(result) for result in results] == [5] * 4
    assert len(lowered) == 1


def test_programs_that_depend_on_something_else_are_others(monkeypatch):
    first = compiled.find_programs(None, ("a", 1), WHERE)
    assert compiled.find_programs(None, ("a", 1), WHERE) is first
    assert compiled.find_programs(None, ("a", 2), WHERE) is not first
    assert compiled.find_programs("folder", ("a", 1), WHERE) is not first
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert compiled.find_programs(None, ("a", 1), WHERE) is not first
