"""Record the names that libraries give to their arrays: `python record_names.py [LIBRARY …] > names.json`.

Run it where torch, transformers, x-transformers, timm and peft are installed; the project's tests read the file that it
wrote (tests/parity/diagnosis/data/library_names.json) and need none of them.
"""

import importlib.metadata
import json
import sys

import torch


def names_of(module: torch.nn.Module) -> dict[str, list[int]]:
    """Name -> shape of every array of a module, two layers of each kind."""
    return {name: list(array.shape) for name, array in module.state_dict().items()}


def transformers_models() -> dict[str, torch.nn.Module]:
    """Two layers of each kind, as small as they come."""
    import transformers as hf

    t5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 32}
    bart = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 32, "max_position_embeddings": 16}
    bart |= {f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")}
    bart |= {f"{stack}_ffn_dim": 16 for stack in ("encoder", "decoder")}
    whisper = {key: value for key, value in bart.items() if key != "max_position_embeddings"}
    whisper |= {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0}
    neox = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 32,
    }
    llama = neox | {"num_key_value_heads": 2}
    return {
        "T5": hf.T5ForConditionalGeneration(hf.T5Config(**t5, feed_forward_proj="gated-gelu")),
        "BART": hf.BartForConditionalGeneration(hf.BartConfig(**bart)),
        "Whisper": hf.WhisperForConditionalGeneration(hf.WhisperConfig(**whisper)),
        "GPT-NeoX": hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**neox)),
        "LLaMA": hf.LlamaForCausalLM(hf.LlamaConfig(**llama)),
    }


def x_transformer() -> torch.nn.Module:
    """An encoder and a decoder with GLU, RMSNorm and cross attention."""
    from x_transformers import Decoder, Encoder, TransformerWrapper

    shared = {"dim": 8, "depth": 2, "heads": 2, "ff_glu": True, "use_rmsnorm": True, "ff_no_bias": True}
    parts = {
        "encoder": TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=Encoder(**shared)),
        "decoder": TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=Decoder(**shared, cross_attend=True)),
    }
    return torch.nn.ModuleDict(parts)


def vision_transformer() -> torch.nn.Module:
    """Two blocks of timm's ViT with its SwiGLU."""
    import timm

    size = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.models.vision_transformer.VisionTransformer(**size, mlp_layer=timm.layers.SwiGLU, init_values=0.1)


def adapted(model: torch.nn.Module) -> torch.nn.Module:
    """T5 with PEFT's LoRA beside query and value."""
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q", "v"]))


def record(libraries: list[str]) -> dict[str, dict[str, list[int]]]:
    """Library and version -> names, of the libraries that are asked for."""
    version, document = importlib.metadata.version, {}
    if "transformers" in libraries:
        for name, model in transformers_models().items():
            document[f"transformers {version('transformers')}: {name}"] = names_of(model)
    if "x-transformers" in libraries:
        document[f"x-transformers {version('x-transformers')}"] = names_of(x_transformer())
    if "timm" in libraries:
        document[f"timm {version('timm')}: ViT"] = names_of(vision_transformer())
    if "peft" in libraries:
        document[f"peft {version('peft')}: LoRA on T5"] = names_of(adapted(transformers_models()["T5"]))
    return document


if __name__ == "__main__":
    document = record(sys.argv[1:] or ["transformers", "x-transformers", "timm", "peft"])
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(names)}" for name, names in document.items())
    print(f"{{\n{lines}\n}}")
