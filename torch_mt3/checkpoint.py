"""Checkpoints to PyTorch state dicts and back, by one declared rule, strict in both directions and bit-exact.

The rule: 'layers_3' becomes 'layers.3', '/' becomes '.', and the last name changes as LEAVES says.
"""

import os
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import torch

from mt3_common import checkpoint
from mt3_common.config import Config
from torch_mt3.model import Transformer

# last name in MT3 -> (last name here, transposed): nn.Linear keeps (out, in) where MT3 keeps (in, out)
LEAVES = {"kernel": ("weight", True), "embedding": ("weight", False), "scale": ("scale", False)}

# MT3's name -> the name in HF-T5 style files such as the public mt3.pth; every kernel is transposed there too
HF_T5 = (
    (r"encoder/continuous_inputs_projection/kernel", r"proj.weight"),
    (r"decoder/token_embedder/embedding", r"decoder_embed_tokens.weight"),
    (r"decoder/logits_dense/kernel", r"lm_head.weight"),
    (r"(encoder|decoder)/\1_norm/scale", r"\1.final_layer_norm.weight"),
    (r"encoder/layers_(\d+)/pre_attention_layer_norm/scale", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"encoder/layers_(\d+)/attention/(\w)\w+/kernel", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"encoder/layers_(\d+)/pre_mlp_layer_norm/scale", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"encoder/layers_(\d+)/mlp/(\w+)/kernel", r"encoder.block.\1.layer.1.DenseReluDense.\2.weight"),
    (r"decoder/layers_(\d+)/pre_self_attention_layer_norm/scale", r"decoder.block.\1.layer.0.layer_norm.weight"),
    (r"decoder/layers_(\d+)/self_attention/(\w)\w+/kernel", r"decoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"decoder/layers_(\d+)/pre_cross_attention_layer_norm/scale", r"decoder.block.\1.layer.1.layer_norm.weight"),
    (
        r"decoder/layers_(\d+)/encoder_decoder_attention/(\w)\w+/kernel",
        r"decoder.block.\1.layer.1.EncDecAttention.\2.weight",
    ),
    (r"decoder/layers_(\d+)/pre_mlp_layer_norm/scale", r"decoder.block.\1.layer.2.layer_norm.weight"),
    (r"decoder/layers_(\d+)/mlp/(\w+)/kernel", r"decoder.block.\1.layer.2.DenseReluDense.\2.weight"),
)
# entries of those files that hold nothing of their own: copies of another entry
HF_T5_COPIES = {
    "encoder.embed_tokens.weight": "proj.weight",
    "decoder.embed_tokens.weight": "decoder_embed_tokens.weight",
}


def to_state_dict(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state dict of plain arrays: 'encoder/layers_0/mlp/wo/kernel' (in, out) becomes
    'encoder.layers.0.mlp.wo.weight' (out, in).

    Args:
        arrays: MT3's names and shapes; kernels are (in, out).

    Returns:
        Contiguous tensors of the same dtypes, copies of the arrays.
    """
    state_dict = {}
    for name, array in arrays.items():
        renamed, turned = _renamed(name)
        state_dict[renamed] = _to_tensor(array.T if turned else array)
    return state_dict


def _renamed(name: str) -> tuple[str, bool]:
    """MT3's name -> (the state dict's, whether the array is turned)."""
    path, _, leaf = name.rpartition("/")
    new_leaf, turned = LEAVES[leaf]
    return re.sub(r"layers_([0-9]+)", r"layers.\1", path).replace("/", ".") + f".{new_leaf}", turned


def to_arrays(state_dict: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Plain arrays under MT3's names: the inverse of to_state_dict, bit for bit."""
    arrays = {}
    for key, tensor in state_dict.items():
        path, _, leaf = re.sub(r"layers\.([0-9]+)", r"layers_\1", key).replace(".", "/").rpartition("/")
        if leaf == "weight":
            leaf = "embedding" if path.endswith("token_embedder") else "kernel"
        array = _to_numpy(tensor)
        arrays[f"{path}/{leaf}"] = np.ascontiguousarray(array.T) if LEAVES[leaf][1] else array
    return arrays


def cast(model: Transformer, dtype: str) -> Transformer:
    """The model for computing in dtype ('float64', 'float32' or 'bfloat16'), changed in place.

    logits_dense stays at least float32, as in MT3.

    Source: mt3/network.py, where logits_dense has dtype float32 whatever the network has.
    """
    wide = torch.promote_types(getattr(torch, dtype), torch.float32)
    model.to(getattr(torch, dtype))
    model.decoder.logits_dense.to(wide)
    return model


def load(
    path: str | os.PathLike, preset: str | None = None, overrides: dict[str, Any] | None = None
) -> tuple[Transformer, Config]:
    """Model and config of a checkpoint: a T5X or Orbax directory, a .safetensors file or an HF-T5 style .pth.

    Args:
        path: local path or gs:// address.
        preset: 'mt3' or 'ismir2021', where the checkpoint has no config of its own.
        overrides: config fields that the caller knows better, such as {'num_heads': 6}.

    Returns:
        (model, config), the model on the CPU with the checkpoint's dtype.

    Raises:
        CheckpointError: unreadable or incomplete, or its arrays contradict the config; says which array and what to do.

    Warns:
        UserWarning: a .pth carries the ports' sinusoid table, which its weights need only if they were trained with it.
    """
    if str(path).endswith((".pth", ".pt", ".ckpt", ".bin")):
        arrays, table = read_hf_t5(path)
        if table == "port" and "position_table" not in (overrides or {}):
            warnings.warn(
                f"{path} carries the sinusoid table of the PyTorch ports; weights converted from MT3 need MT3's, which "
                "is used; weights that a port was trained with need position_table 'port' (infer: --positions port)",
                stacklevel=2,
            )
    else:
        arrays = checkpoint.read(path).arrays
    config = checkpoint.network_config(arrays, path, preset=preset, overrides=overrides)
    checkpoint.check_arrays(arrays, config.network)
    with torch.device("meta"):
        model = Transformer(config.network)
    model.load_state_dict(to_state_dict(arrays), strict=True, assign=True)
    return model, config


def save(path: str | os.PathLike, model: Transformer, config: Config) -> None:
    """Writes the weights to a .safetensors file under MT3's names with the config inside; the JAX twin reads it too."""
    checkpoint.write_safetensors(path, to_arrays(model.state_dict()), config)


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file by name, out of the usual wrappers, with 'model.' and 'module.' taken off.

    Opened with weights_only=True: a file that would run code is refused.

    Raises:
        CheckpointError: missing, not a PyTorch file, a pickle that would run code, or without tensors.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise checkpoint.CheckpointError(f"{path}: no such file") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise checkpoint.CheckpointError(
            f"{path}: not a file of tensors that can be opened safely (weights_only=True): {reason}"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise checkpoint.CheckpointError(f"{path}: holds no dictionary of tensors")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def hf_t5_name(name: str) -> str:
    """The name in HF-T5 style files of one of MT3's arrays, after the table HF_T5."""
    for pattern, replacement in HF_T5:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise checkpoint.CheckpointError(f"{name}: not an array of MT3")


def to_hf_t5(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """An HF-T5 style state dict of plain arrays, as the public mt3.pth has it, without copies and buffers."""
    return {
        hf_t5_name(name): _to_tensor(array.T if name.endswith("/kernel") else array) for name, array in arrays.items()
    }


def read_hf_t5(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str | None]:
    """Plain arrays under MT3's names from an HF-T5 style file such as the public mt3.pth, strict in both directions.

    Returns:
        (arrays, table): repeated entries must equal what they repeat and are left out, as are the `pos_emb.inv_freq`
        buffers; table is the one that these stand for ('mt3' or 'port', see inv_freq_table), None without them.

    Raises:
        CheckpointError: an entry is missing, unknown, or a copy that differs from its original.
    """
    tensors = read_state_dict(path)
    tables = {key: tensors.pop(key) for key in list(tensors) if key.endswith("pos_emb.inv_freq")}
    for copy, original in HF_T5_COPIES.items():
        if copy in tensors:
            if original not in tensors or not torch.equal(tensors[copy], tensors[original]):
                raise checkpoint.CheckpointError(f"{path}: {copy} should repeat {original} and does not")
            del tensors[copy]
    counts = {
        stack: 1 + max((int(m[1]) for key in tensors if (m := re.match(rf"{stack}\.block\.(\d+)\.", key))), default=-1)
        for stack in ("encoder", "decoder")
    }
    names = {hf_t5_name(name): name for name in checkpoint.array_names(counts["encoder"], counts["decoder"])}
    missing, unknown = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    if missing or unknown:
        raise checkpoint.CheckpointError(
            f"{path}: not an HF-T5 style MT3: "
            f"{len(missing)} entries missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}); python -m parity diagnose {path} says more"
        )
    width = tensors["proj.weight"].shape[0]
    found = {key: inv_freq_table(table, width) for key, table in tables.items()}
    if None in found.values() or len(set(found.values())) > 1:
        raise checkpoint.CheckpointError(
            f"{path}: {' and '.join(found)} are neither MT3's sinusoid table nor that of the ports"
        )
    arrays = {names[key]: _to_numpy(tensor) for key, tensor in tensors.items()}
    arrays = {name: np.ascontiguousarray(a.T) if name.endswith("/kernel") else a for name, a in arrays.items()}
    return arrays, next(iter(found.values()), None)


def inv_freq_table(inv_freq: torch.Tensor, width: int) -> str | None:
    """Which position table an `inv_freq` buffer stands for: 'mt3', 'port' or None (neither).

    The known ports keep 10000^(-2k/width) ('port') whatever their weights were trained on: weights converted from MT3
    need 'mt3', weights trained with the port need overrides={'position_table': 'port'}.
    """
    steps = np.arange(width // 2)
    for table, divisor in (("mt3", width // 2 - 1), ("port", width // 2)):
        expected = np.exp(-np.log(10000.0) / divisor * steps)
        if inv_freq.shape == expected.shape and np.allclose(inv_freq.float().numpy(), expected, rtol=1e-4, atol=0):
            return table
    return None


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
