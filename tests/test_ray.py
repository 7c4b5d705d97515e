"""Both twins' infer on a real Ray cluster of two nodes on this machine, one of which is killed in the middle."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import record
from yourmt3_toys import write_toy

ROOT = Path(__file__).parents[1]

# Starts two nodes, transcribes with a Ray actor on each, kills a node when the first notes are there, and prints the
# exit status and what was said. A process of its own: Ray's warnings are not ours, and its nodes end with it.
CLUSTER = """
import json, subprocess, sys, tempfile
from ray.cluster_utils import Cluster

twin, kill, *arguments = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
command = [sys.executable, "-m", f"{twin}.infer", *arguments, "--ray", cluster.address]
with tempfile.TemporaryFile("w+") as said:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process:
        out = process.stdout.readline()
        if kill == "kill":
            cluster.remove_node(second, allow_graceful=False)
        out += process.stdout.read()
    said.seek(0)
    err = said.read()
cluster.shutdown()
print("RESULT", json.dumps([process.returncode, out, err]))
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or sys.platform == "win32",
    reason='needs Ray, which is large: pip install "mt3-twins[ray]"',
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with two recordings of noise: 30 and 5 segments."""
    folder = tmp_path_factory.mktemp("in")
    for name, seconds in (("a", 61.0), ("b", 10.0)):
        record(folder / f"{name}.wav", seconds, seed=ord(name))
    return folder


@pytest.mark.parametrize(
    ("twin", "kill", "family"),
    [
        ("torch_mt3", "kill", "mt3"),
        ("jax_mt3", "", "mt3"),
        ("torch_mt3", "", "yourmt3"),
        ("jax_mt3", "", "yourmt3"),
    ],
)
def test_a_cluster_writes_what_one_process_writes(recordings, talkative, tmp_path, twin, kill, family):
    checkpoint = write_toy(tmp_path / "toy.safetensors") if family == "yourmt3" else talkative
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
    # Ray's workers are nice by default, and starve beside other tests
    environment |= {"RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
    options = (str(recordings), "--batch-size", "2", "--checkpoint", str(checkpoint))
    command = [sys.executable, "-c", CLUSTER, twin, kill, *options, "-o", "ray", "--jsonl", "-"]
    command += ["--format", "mid,json"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    status, out, err = json.loads(result.stdout.rpartition("RESULT ")[2])
    assert status == 0, err
    assert ("died; it is started again" in err) == bool(kill), err
    plain = [sys.executable, "-m", f"{twin}.infer", *options, "-o", "plain", "--jsonl", "-", "--format", "mid,json"]
    expected = subprocess.run(plain, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert out == expected.stdout
    for name in ("a.mid", "a.json", "b.mid", "b.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert len(out.splitlines()) > 10
