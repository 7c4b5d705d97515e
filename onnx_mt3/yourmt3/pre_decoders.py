"""Pre-decoders as nodes: latents (b, t, k, d) as the decoder sees them, (b, t, m), or (b, c, t, m) with channels."""

import numpy as np

from onnx_mt3.yourmt3.layers import YourMT3Layers

PATH = "pre_decoder.0"


def multi_channel_linear(graph: YourMT3Layers, x: str) -> str:
    """Return each channel's latents, projected by one matrix for all, if they have not the width already."""
    config = graph.config
    width = config.perceiver.num_latents // config.num_channels * config.perceiver.d_latents
    x = graph.op("Reshape", x, graph.ints([0, 0, config.num_channels, width]))
    x = graph.op("Transpose", x, perm=[0, 2, 1, 3])
    if width == config.t5_decoder.d_model:
        return x
    return graph.dense(f"{PATH}.linear", x, width, config.t5_decoder.d_model, bias=False, axes=4)


def mlp(graph: YourMT3Layers, x: str) -> str:
    """Return three linear layers with norms between them, and activations if the name has one."""
    config = graph.config
    kind = config.pre_decoder.removeprefix("mlp").removeprefix("_")
    width = config.perceiver.num_latents * config.perceiver.d_latents
    half = width // 2
    x = graph.op("Reshape", x, graph.ints([0, 0, width]))
    for dense, norm, in_dim in (("1", "2", width), ("4", "5", half)):
        x = graph.layer_norm(f"{PATH}.layers.{norm}", graph.dense(f"{PATH}.layers.{dense}", x, in_dim, half), half)
        x = graph.activation(kind, x) if kind else x
    return graph.dense(f"{PATH}.layers.7", x, half, config.t5_decoder.d_model)


def depthwise(graph: YourMT3Layers, x: str) -> str:
    """Return convolutions along the features of each latent, then a projection; frames are mixed, as published."""
    config = graph.config
    depth = int(config.pre_decoder.removeprefix("conv"))
    num_latents, width, d_model = config.perceiver.num_latents, config.perceiver.d_latents, config.t5_decoder.d_model
    filters = d_model // width
    name, path = f"{PATH}.conv.weight", f"{PATH}.conv"
    array = graph.array(name, num_latents * filters, 1, 1, depth)
    length = width - depth + 1
    x = graph.op("Transpose", x, perm=[0, 2, 1, 3])
    if graph.computed == "float32":
        y = graph.op("Conv", x, graph.weight(name, array), group=num_latents)
    else:
        # ONNX Runtime has the operator in float32 only: a product for each place of the kernel
        x = graph.op("Unsqueeze", x, graph.ints([2]))
        parts = []
        for start in range(depth):
            part = graph.op("Slice", x, graph.ints([start]), graph.ints([start + length]), graph.ints([4]))
            column = array[:, 0, 0, start].reshape(num_latents, filters, 1, 1)
            parts.append(graph.op("Mul", part, graph.weight(f"{name}.{start}", column)))
        y = graph.total(parts)
        y = graph.op("Reshape", y, graph.ints([-1, num_latents * filters, graph.num_frames, length]))
    bias = graph.array(f"{path}.bias", num_latents * filters)[:, np.newaxis, np.newaxis]
    y = graph.tap(path, graph.op("Add", y, graph.weight(f"{path}.bias", bias)), 4)
    if config.time_first:
        y = graph.op("Transpose", y, perm=[0, 2, 1, 3])
    features = num_latents * filters * length
    y = graph.op("Reshape", y, graph.ints([-1, graph.num_frames, features]))
    return graph.dense(f"{PATH}.fc", y, features, d_model)


def group_linear(graph: YourMT3Layers, x: str) -> str:
    """Return each latent by a matrix of its own; their results stand side by side."""
    config = graph.config
    num_latents, width = config.perceiver.num_latents, config.perceiver.d_latents
    name = f"{PATH}.weight"
    array = graph.array(name, num_latents, config.t5_decoder.d_model // num_latents, width)
    x = graph.op("Unsqueeze", x, graph.ints([3]))
    y = graph.op("MatMul", x, graph.weight(name, array.transpose(0, 2, 1)))
    return graph.op("Reshape", y, graph.ints([0, 0, -1]))


def pre_decoder(graph: YourMT3Layers, x: str) -> str:
    """Return what config.pre_decoder makes of latents."""
    config = graph.config
    if config.pre_decoder == "mc_shared_linear":
        return graph.tap(PATH, multi_channel_linear(graph, x), 4)
    if config.pre_decoder == "linear":
        width = config.perceiver.num_latents * config.perceiver.d_latents
        x = graph.op("Reshape", x, graph.ints([0, 0, width]))
        y = graph.dense(f"{PATH}.projection_layer", x, width, config.t5_decoder.d_model, bias=False)
    elif config.pre_decoder == "group_linear":
        y = group_linear(graph, x)
    else:
        y = mlp(graph, x) if config.pre_decoder.startswith("mlp") else depthwise(graph, x)
    return graph.tap(PATH, y)
