"""Pre-encoders of Perceiver-TF as nodes, which make tokens of frames: (b, t, f) -> (b, t, n, c)."""

import numpy as np

from onnx_mt3.yourmt3.layers import YourMT3Layers

KERNELS = {"conv": (3, 3), "conv1d_t": (3, 1), "conv1d_f": (1, 3), "res3b_hftt": (3, 3)}
# frames that are put in front and behind, and what they hold
MARGIN, MARGIN_VALUE = (15, 16), 1e-7
WINDOW = 32
# channels of the convolutions in front of windows
WINDOW_CHANNELS = 4


def residual_block(
    graph: YourMT3Layers,
    path: str,
    x: str,
    sizes: tuple[int, int, int],
    kernel: tuple[int, int],
    with_shortcut: bool,
) -> str:
    """Return two convolutions beside a shortcut, then half of the bins: (b, t, f, in) -> (b, t, f // 2, out).

    sizes: in, out, f.
    """
    in_dim, out_dim, num_bins = sizes
    y = graph.conv2d(f"{path}.conv1", x, in_dim, out_dim, kernel)
    y = graph.op("Relu", graph.batch_norm(f"{path}.bn1", y, out_dim, 4))
    y = graph.conv2d(f"{path}.conv2", y, out_dim, out_dim, kernel)
    y = graph.batch_norm(f"{path}.bn2", y, out_dim, 4)
    if with_shortcut:
        x = graph.conv2d(f"{path}.shortcut", x, in_dim, out_dim, (1, 1), bias=True)
    y = graph.op("Relu", graph.op("Add", y, x))
    # an odd last bin is left out
    end = graph.ints([num_bins // 2 * 2])
    halves = [graph.op("Slice", y, graph.ints([start]), end, graph.ints([2]), graph.ints([2])) for start in (0, 1)]
    return graph.tap(path, graph.op("Mul", graph.op("Add", *halves), graph.real(0.5)), 4)


def folded_block(
    graph: YourMT3Layers,
    path: str,
    x: str,
    sizes: tuple[int, int],
    kernel: tuple[int, int],
    with_shortcut: bool,
) -> str:
    """Return a residual block with its norms folded into its convolutions: (b, in, t, f) -> (b, out, t, f // 2).

    sizes: in, out.
    """
    in_dim, out_dim = sizes

    def convolution(number: int, x: str, in_dim: int) -> str:
        factor, summand = graph.batch_norm_terms(f"{path}.bn{number}", out_dim)
        name = f"{path}.conv{number}.weight"
        array = graph.array(name, out_dim, in_dim, *kernel) * factor[:, np.newaxis, np.newaxis, np.newaxis]
        weight, bias = graph.table(f"{name}.folded", array), graph.table(f"{path}.bn{number}.summand", summand)
        return graph.op("Conv", x, weight, bias, pads=[kernel[0] // 2, kernel[1] // 2] * 2)

    y = convolution(2, graph.op("Relu", convolution(1, x, in_dim)), out_dim)
    if with_shortcut:
        weight = graph.parameter(f"{path}.shortcut.weight", out_dim, in_dim, 1, 1)
        x = graph.op("Conv", x, weight, graph.parameter(f"{path}.shortcut.bias", out_dim))
    return graph.op("AveragePool", graph.op("Relu", graph.op("Add", y, x)), kernel_shape=[1, 2], strides=[1, 2])


def res3b(graph: YourMT3Layers, path: str, x: str, channels: int, kernel: tuple[int, int]) -> str:
    """Return three residual blocks: (b, t, f) -> (b, t, f // 8, channels)."""
    if graph.taps is None and graph.computed == "float32":
        x = graph.op("Unsqueeze", x, graph.ints([1]))
        for number in range(3):
            sizes = channels if number else 1, channels
            x = folded_block(graph, f"{path}.blocks.{number}", x, sizes, kernel, with_shortcut=not number)
        return graph.op("Transpose", x, perm=[0, 2, 3, 1])
    x = graph.op("Unsqueeze", x, graph.ints([3]))
    for number in range(3):
        sizes = channels if number else 1, channels, graph.config.num_bins >> number
        x = residual_block(graph, f"{path}.blocks.{number}", x, sizes, kernel, with_shortcut=not number)
    return graph.tap(path, x, 4)


def windows(graph: YourMT3Layers, x: str) -> str:
    """Return for every frame what the WINDOW frames around it hold: (b, t + 31, f, c) -> (b, t, f, c * 32)."""
    parts = [graph.op("Unsqueeze", graph.shifted(x, (start,), (WINDOW,)), graph.ints([4])) for start in range(WINDOW)]
    return graph.op("Reshape", graph.op("Concat", *parts, axis=4), graph.ints([0, 0, 0, -1]))


def hftt(graph: YourMT3Layers, path: str, x: str, residual: bool) -> str:
    """Return windows of a convolution along time, or of three residual blocks: (b, t, f) -> (b, t, n, 128)."""
    channels, width = WINDOW_CHANNELS, WINDOW_CHANNELS * WINDOW
    x = graph.op("Pad", x, graph.ints([0, MARGIN[0], 0, 0, MARGIN[1], 0]), graph.real(MARGIN_VALUE))
    if residual:
        y = res3b(graph, f"{path}.res3b", x, channels, KERNELS["res3b_hftt"])
    else:
        # the published kernel is (out, in, frequency, time)
        x = graph.op("Unsqueeze", graph.op("Transpose", x, perm=[0, 2, 1]), graph.ints([3]))
        y = graph.op("Transpose", graph.conv2d(f"{path}.conv", x, 1, channels, (1, 5), bias=True), perm=[0, 2, 1, 3])
    return graph.tap(path, graph.dense(f"{path}.emb_freq", windows(graph, y), width, width, axes=4), 4)


def pre_encoder(graph: YourMT3Layers, frames: str) -> tuple[str, int, int]:
    """Return what config.pre_encoder makes of frames, with the number and the width of a frame's tokens."""
    kind, num_bins = graph.config.pre_encoder, graph.config.num_bins
    if kind == "hftt":
        return hftt(graph, "pre_encoder.0", frames, residual=False), num_bins, WINDOW_CHANNELS * WINDOW
    if kind == "res3b_hftt":
        return hftt(graph, "pre_encoder.0", frames, residual=True), num_bins // 8, WINDOW_CHANNELS * WINDOW
    channels = graph.config.conv_channels
    return res3b(graph, "pre_encoder.0", frames, channels, KERNELS[kind]), num_bins // 8, channels
