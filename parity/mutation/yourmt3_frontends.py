"""Faults to plant in a front end of YourMT3+, computed by PyTorch's transform."""

import dataclasses
from typing import Any

import numpy as np

from mt3_common.audio.yourmt3_frames import FrontEnd

SPEC, MELSPEC = ("spec",), ("melspec",)


@dataclasses.dataclass(frozen=True)
class FrontEndFault:
    """A fault of a front end.

    Attributes:
        name: of it.
        causes: regular expression of what the diagnosis may call it; '' for a right front end.
        changes: of how frames are computed.
        codecs: in which it can be planted.
    """

    name: str
    causes: str
    changes: dict[str, Any]
    codecs: tuple[str, ...] = SPEC + MELSPEC


FRONT_ENDS = (
    FrontEndFault("a right front end", "", {}),
    FrontEndFault("DC bin kept, Nyquist dropped", "dc bin kept", {"bins": (0, -1)}, SPEC),
    FrontEndFault("DC bin and Nyquist kept", "dc and nyquist kept", {"bins": (0, None)}, SPEC),
    FrontEndFault("DC bin and Nyquist dropped", "dc and nyquist dropped", {"bins": (1, -1)}, SPEC),
    FrontEndFault("minimum and maximum of the batch", "min-max over the batch", {"axes": (0, 1, 2)}),
    FrontEndFault("minimum and maximum of a frame", "min-max of each frame", {"axes": (2,)}),
    FrontEndFault("minimum and maximum of a bin", "min-max of each bin", {"axes": (1,)}),
    FrontEndFault("no normalisation", "no min-max", {"axes": None}),
    FrontEndFault("0.008 left out", "range offset left out", {"range_offset": 0.0}),
    FrontEndFault("powers", "power for magnitude", {"power": 2.0}, SPEC),
    FrontEndFault("magnitudes", "magnitude for power", {"power": 1.0}, MELSPEC),
    FrontEndFault("decimal logarithm", "log10", {"log": "log10"}),
    FrontEndFault("log(1 + x)", "log1p", {"log": "log1p"}),
    FrontEndFault("offset 1e-6", "log offset 1e-6", {"log_offset": 1e-6}),
    FrontEndFault("offset 1e-8", "log offset 1e-8", {"log_offset": 1e-8}),
    FrontEndFault("symmetric window", "symmetric window", {"window": "symmetric"}),
    FrontEndFault("Hamming window", "hamming window", {"window": "hamming"}),
    FrontEndFault("no window", "no window", {"window": "none"}),
    FrontEndFault("zeros around the segment", "zeros around", {"pad_mode": "constant"}),
    FrontEndFault("edge repeated around", "edge around", {"pad_mode": "replicate"}),
    FrontEndFault("triangles of equal areas", "slaney's triangles", {"areas": True}, MELSPEC),
)


def planted_frames(front_end: FrontEnd, segments: np.ndarray, fault: FrontEndFault) -> np.ndarray:
    """Return the frames (b, t, f) that a front end with a fault makes of segments (b, n)."""
    import torch

    config = front_end.config
    how = {
        **{"bins": (1, None), "axes": (1, 2), "range_offset": 0.008, "log": "log", "log_offset": 1e-5},
        **{"window": "stored", "pad_mode": "reflect", "areas": False, "power": None},
        **fault.changes,
    }
    windows = {
        "stored": torch.tensor(front_end.window).double(),
        "symmetric": torch.hann_window(config.n_fft, periodic=False, dtype=torch.float64),
        "hamming": torch.hamming_window(config.n_fft, dtype=torch.float64),
        "none": torch.ones(config.n_fft, dtype=torch.float64),
    }
    spectrum = torch.stft(
        torch.tensor(segments).double(),
        config.n_fft,
        config.hop_length,
        window=windows[how["window"]],
        pad_mode=how["pad_mode"],
        return_complex=True,
    )
    magnitudes = spectrum.abs().transpose(1, 2)
    if front_end.mel_matrix is None:
        values = magnitudes[..., how["bins"][0] : how["bins"][1]] ** (how["power"] or 1.0)
    else:
        matrix = torch.tensor(front_end.mel_matrix).double()
        matrix = matrix / matrix.sum(0).clamp(min=1e-12) if how["areas"] else matrix
        values = magnitudes ** (how["power"] or 2.0) @ matrix
    values = getattr(torch, how["log"])(values + how["log_offset"])
    if how["axes"] is None:
        return values.numpy()
    low, high = values.amin(how["axes"], keepdim=True), values.amax(how["axes"], keepdim=True)
    return ((values - low) / (high - low + how["range_offset"])).nan_to_num().numpy()
