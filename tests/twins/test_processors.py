"""Every dtype decodes on every processor: as this one is, and as one with AVX2 only, where PyTorch lacks bfloat16."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import decode as torch_decode
from torch_mt3 import kernels as torch_kernels
from torch_mt3 import model as torch_model
from torch_mt3 import weights as torch_weights

ROOT = Path(__file__).parents[2]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}
X86 = platform.machine() in ("x86_64", "AMD64")
KERNELS = ("has_onednn_products", "has_float16_weights", "has_int8_products", "has_fast_float16_sums")
PROCESSORS = {"as it is": {}, "AVX2": AVX2}

# the golden network's logits of the first token and its tokens, in every dtype, as a network of either width
PROGRAM = """
import dataclasses, importlib, json, sys
import numpy as np
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.config import Config, NetworkConfig

twin, folder = sys.argv[1:]
names = ("checkpoint", "decode", "kernels", "weights")
checkpoint, decode, kernels, packing = (importlib.import_module(f"{twin}.{name}") for name in names)
sizes = json.load(open(folder + "/config.json"))
network = NetworkConfig(**{name: size for name, size in sizes.items() if name in NetworkConfig.__dataclass_fields__})
config = dataclasses.replace(Config(), network=network, max_target_length=12)
with np.load(folder + "/decode.npz") as archive:
    frames = archive["in/frames"][:2]
as_array = np.asarray
if twin == "torch_mt3":
    import torch
    as_array = torch.from_numpy
results = {}
for width in (1, 10**6):
    kernels.COARSE_WIDTH = width
    for dtype in ("float32", "bfloat16", "int8"):
        model, _ = checkpoint.load(folder + "/checkpoints/t5x_bfloat16")
        model = checkpoint.cast(checkpoint.cast(model, "float32"), "float32" if dtype == "int8" else dtype)
        packed = (model,) if twin == "torch_mt3" else (model, network)
        weights = packing.pack(*packed, int8=dtype == "int8")
        cache = decode.empty_cache(weights, 2, frames.shape[1], length=8)
        cache, _ = decode.prefill(weights, cache, as_array(np.arange(2)), as_array(frames))
        logits, cache = decode.step(weights, cache, as_array(np.zeros((2, 1), np.int64)))
        ids = list(decode.generate(model, config, list(frames), int8=dtype == "int8"))
        results[f"{'wide' if width == 1 else 'narrow'} {dtype}"] = {
            "logits": np.asarray(logits).tolist(),
            "encoded": float(np.asarray(decode.encode(weights, as_array(frames))[0]).sum()),
            "steps": [len(row) for row in ids],
            "cache": str(cache.self_keys[0].dtype).removeprefix("torch."),
            "note": kernels.processor_note(model, dtype == "int8") if twin == "torch_mt3" else None,
        }
print(json.dumps(results))
"""


@pytest.fixture(scope="module", params=[(twin, name) for twin in ("jax_mt3", "torch_mt3") for name in PROCESSORS])
def on_processor(request):
    """(twin, processor, what PROGRAM printed there)."""
    twin, processor = request.param
    command = [sys.executable, "-c", PROGRAM, twin, str(ROOT / "tests" / "golden" / "model")]
    environment = os.environ | PROCESSORS[processor]
    finished = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return twin, processor, json.loads(finished.stdout)


def distance(result, other):
    """The largest difference of two results' logits over the largest logit."""
    logits, other_logits = np.array(result["logits"]), np.array(other["logits"])
    return np.abs(logits - other_logits).max() / np.abs(other_logits).max()


def test_every_dtype_decodes_and_stays_close_to_float32(on_processor):
    _, _, results = on_processor
    assert len(results) == 6
    for name, result in results.items():
        assert result["steps"] == [12, 12]
        exact = results[f"{name.partition(' ')[0]} float32"]
        assert distance(result, exact) < (0.1 if name.startswith("wide") else 2e-3)
    assert distance(results["wide int8"], results["wide float32"]) > 2e-3
    assert distance(results["narrow int8"], results["narrow float32"]) > 1e-6


def test_wide_bfloat16_is_computed_in_float32_where_the_processor_is_slow_at_it(on_processor):
    twin, processor, results = on_processor
    wide, narrow, exact = results["wide bfloat16"], results["narrow bfloat16"], results["wide float32"]
    assert [narrow["note"], exact["note"], results["narrow float32"]["note"]] == [None] * 3
    if twin == "torch_mt3" and processor == "AVX2" and X86:
        assert "slow at bfloat16" in wide["note"]
        assert "no exact int8" in results["narrow int8"]["note"]
    if wide["note"]:
        # the encoder of rounded weights in float32, and the decoder as a narrow network's
        assert wide["encoded"] == exact["encoded"]
        assert wide["logits"] == narrow["logits"]
        assert wide["cache"] == narrow["cache"]
    else:
        assert wide["encoded"] != exact["encoded"]
        assert distance(wide, exact) > 2e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_command_says_so_in_one_line(talkative, tmp_path, processor, dtype):
    code = "import sys\nfrom torch_mt3 import infer, kernels\nkernels.COARSE_WIDTH = 1\nsys.exit(infer.main())"
    options = ("--duration", "1", "--device", "cpu", "--dtype", dtype, "--checkpoint", str(talkative))
    finished = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "audio" / "example.flac"), "-o", "song.mid", "--quiet", *options],
        env=os.environ | PROCESSORS[processor] | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (0, "")
    assert (tmp_path / "song.mid").exists()
    if processor == "AVX2" and X86:
        start = {"bfloat16": "note: this processor is slow at bfloat16: ", "int8": "note: this processor has no exact "}
        assert [line[: len(start[dtype])] for line in finished.stderr.splitlines()] == [start[dtype]]


def model_of(config, arrays, dtype):
    model = torch_model.Transformer(config)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    return torch_checkpoint.cast(model, dtype)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_without_any_private_kernel_logits_stay_the_same(
    dtype, wide, golden_config, golden_arrays, decoded, monkeypatch
):
    """The plain path of a PyTorch that has none of them."""
    monkeypatch.setattr(torch_kernels, "COARSE_WIDTH", 1 if wide else 10**6)
    model = model_of(golden_config, golden_arrays, "float32" if dtype == "int8" else dtype)
    frames = torch.from_numpy(decoded["in/frames"][:2])

    def logits():
        weights = torch_weights.pack(model, int8=dtype == "int8")
        cache = torch_decode.empty_cache(weights, 2, frames.shape[1], length=8)
        cache, _ = torch_decode.prefill(weights, cache, torch.arange(2), frames)
        return torch_decode.step(weights, cache, torch.zeros((2, 1), dtype=torch.int64))[0], weights

    with_kernels, _ = logits()

    def missing(*arguments):
        raise AssertionError("a private kernel is called")

    for name in KERNELS:
        monkeypatch.setattr(torch_kernels, name, lambda kind: kind not in ("cpu", torch.float32, torch.bfloat16))
    for name in ("onednn_product", "weighted_row_sums"):
        monkeypatch.setattr(torch_kernels, name, missing)
    monkeypatch.setattr(torch, "_int_mm", missing)
    plain, weights = logits()
    matrices = [array for layer in weights.layers for array in layer if not isinstance(array, torch_kernels.Quantised)]
    assert not any(isinstance(array, torch.ScriptObject) or array.is_mkldnn for array in matrices)
    assert weights.cache_example.dtype == torch.float32
    limit = {"float32": 1e-5, "bfloat16": 5e-2 if wide else 2e-3, "int8": 1e-3}[dtype]
    assert (plain - with_kernels).abs().max() < limit * with_kernels.abs().max()


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, AttributeError, TypeError])
def test_a_kernel_that_is_missing_or_refuses_is_not_used(error):
    def refuse(x, weight):
        raise error("no such kernel")

    assert not torch_kernels.is_right(refuse, 1.0)


def test_a_kernel_whose_result_is_wrong_is_not_used():
    assert torch_kernels.is_right(lambda x, weight: x @ weight.t(), 1e-6)
    assert not torch_kernels.is_right(lambda x, weight: (x @ weight.t()).clamp(max=30), 1e-2)
    assert not torch_kernels.is_right(lambda x, weight: x @ weight.t() * torch.nan, 1e-2)

    def in_16_bits(x, weight, limit):
        x, weight = 128 * x + 128, 128 * weight
        pairs = (x[:, None] * weight).view(8, 8, 20, 2).sum(-1).clamp(-limit, limit)
        return (pairs.sum(-1) - 128 * weight.sum(-1)) / 128**2

    # as int8 products without VNNI
    assert torch_kernels.is_right(lambda x, weight: in_16_bits(x, weight, 2**20), 0.0)
    assert not torch_kernels.is_right(lambda x, weight: in_16_bits(x, weight, 2**15 - 1), 0.0)
