"""Diagnosis of a front end from its frames alone: which options of parity/sides/frontend.py reproduce them.

First what decides *where* values lie (samples, framing, filters) is chosen by the error that is left when a factor and
a constant per mel bin are fitted; these fits undo most logarithms and normalisations. Then what decides the values
themselves is chosen by the error alone. Options that turn out not to matter go back to MT3's.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from mt3_common.io.plural import plural
from parity.diagnosis.finding import Diagnosis, Finding
from parity.sides.frontend import MT3, FrontEnd, Recording, finish

# Values of every option that are tried, MT3's first.
STRUCTURE: dict[str, tuple] = {
    "padding": ("end", "reflect", "zeros", "edge", "none"),
    "hop": (0, 160, 256, 512, 64, 100),
    "fft": (0, 1024, 4096, 512, 400),
    "window": ("hann", "hann, symmetric", "hamming", "blackman", "rectangular", "hann, square root"),
    "shift": (0, 1, -1, 2, -2, 4, -4, 8, -8),
    "high": (0.0, -1.0, 7000.0, 6000.0, 5500.0, 4000.0),
    "low": (0.0, -1.0, 30.0, 50.0, 10.0),
    "mel": ("htk", "slaney"),
    "triangles": ("mel", "hertz"),
    "power": (1.0, 2.0),
    "preemphasis": (0.0, 0.97, 0.95),
}
FROM_FILE: dict[str, tuple] = {
    "channels": ("mean", "left", "right", "sum"),
    "resampler": ("soxr", "polyphase", "linear", "fourier", "nearest", "none"),
}
SHAPES: dict[str, tuple] = {
    "log": ("e", "10", "2", "1 + x", "decibel", "decibel of magnitudes", "none"),
    "normalisation": ("none", "deviation", "deviation by bin", "range", "peak", "whisper", "-12 to 5"),
}
VALUES: dict[str, tuple] = {
    "mel_norm": ("none", "slaney", "sum"),
    "scaling": ("none", "window sum", "window energy", "fft"),
    "samples": ("as read", "peak", "int16", "dc"),
    "offset": (0.0, 1e-5, 1e-6, 1e-8, 1e-10, 1e-3, 1e-4, 1e-2),
    "floor": (0.0, 1e-5, 1e-6, 1e-8, 1e-10, 1e-3, 1e-4, 1e-2),
}
# What other libraries compute without arguments: a start for the search where several options are wrong at once.
LIBRARIES = {
    "librosa.feature.melspectrogram": FrontEnd(
        padding="zeros", power=2.0, mel="slaney", triangles="hertz", mel_norm="slaney", low=-1.0, high=-1.0
    ),
    "torchaudio.transforms.MelSpectrogram": FrontEnd(
        padding="reflect", power=2.0, mel="htk", triangles="hertz", low=-1.0, high=-1.0
    ),
}
# Mean error, in deviations of the candidate's values, up to which frames are explained.
EXPLAINED = 3e-4
# An option is named only if the error without it is more than so many times the error with it, and more than this.
MATTERS, LEAST = 3.0, 1e-6
# An error this small is float32's rounding of quiet values, in which no option is looked for.
ROUNDING = 6e-5
# Fewer frames show nothing.
FEWEST = 4
# A step of the search must lower its score to this share.
GAINED = 0.9
# Values above this share of the largest are above every floor and offset.
LOUD = 1e-3
# Values below this share of their frame's largest magnitude are rounding noise in float32.
QUIET = 3e-6

TEXTS: dict[str, Callable[[FrontEnd], str]] = {
    "channels": lambda f: f"the channels are mixed otherwise ({f.channels} in place of the mean)",
    "resampler": lambda f: (
        "the sample rate of the file is ignored: nothing is resampled"
        if f.resampler == "none"
        else f"another resampler: {f.resampler} in place of soxr's HQ"
    ),
    "samples": lambda f: {
        "peak": "the recording is scaled to a peak of 1 first",
        "int16": "samples are 16-bit numbers, 32768 times too large",
        "dc": "the mean of the samples is taken off first",
    }[f.samples],
    "preemphasis": lambda f: f"pre-emphasis of {f.preemphasis}; MT3 has none",
    "hop": lambda f: f"a hop of {f.hop} samples",
    "fft": lambda f: f"a window (FFT) of {f.fft} samples",
    "window": lambda f: f"another window: {f.window} in place of the periodic Hann window",
    "padding": lambda f: (
        "nothing is padded: the last frames are missing"
        if f.padding == "none"
        else f"frames are centred (center=True, padded by {f.padding}); MT3's begin at their first sample"
    ),
    "shift": lambda f: f"all frames are {abs(f.shift)} too {'late' if f.shift > 0 else 'early'} (a frame shift)",
    "power": lambda f: "power in place of magnitude (the squares are summed in the mel filters)",
    "scaling": lambda f: f"the spectrum is divided by the {f.scaling}",
    "mel": lambda f: "Slaney's mel formula in place of HTK's (htk=False)",
    "triangles": lambda f: "mel filters are triangles in Hz; MT3's are triangles in mel",
    "mel_norm": lambda f: f"mel filters are normalised ({f.mel_norm}); MT3's triangles have height 1",
    "low": lambda f: f"f_min is {max(0.0, f.low):g} Hz",
    "high": lambda f: "f_max is half the sample rate" if f.high < 0 else f"f_max is {f.high:g} Hz",
    "offset": lambda f: f"log offset: {f.offset:g} is added before the logarithm",
    "floor": lambda f: f"values are raised to at least {f.floor:g} before the logarithm; MT3 raises zeros alone",
    "log": lambda f: {
        "none": "no logarithm is taken",
        "1 + x": "log(1 + x) in place of log(x)",
        "decibel": "decibels (10 log10) in place of the natural logarithm",
        "decibel of magnitudes": "decibels (20 log10) in place of the natural logarithm",
    }.get(f.log, f"the logarithm has base {f.log} in place of e"),
    "normalisation": lambda f: f"frames are normalised ({f.normalisation}); MT3's are not",
}


def diagnose_frames(candidate: np.ndarray, recording: Recording, from_file: bool = True) -> Diagnosis:
    """Name what a front end does other than MT3's.

    Args:
        candidate: (n, num_mel_bins) frames, or (segments, input_frames, num_mel_bins) for a recording in segments.
        recording: what they were made of.
        from_file: whether the candidate read the file itself, so that channels and resampling are its own.
    """
    diagnosis = Diagnosis()
    candidate = candidate.reshape(-1, candidate.shape[-1]).astype(np.float64)
    bins = recording.config.num_mel_bins
    if candidate.shape[1] != bins and candidate.shape[0] == bins:
        diagnosis.findings.append(_finding("transposed", "transposed: (bins, frames) in place of (frames, bins)"))
        candidate = candidate.T
    if candidate.shape[1] != bins:
        text = f"{candidate.shape[1]} mel bins in place of {bins}"
        diagnosis.findings.append(_finding(f"bins={candidate.shape[1]}", text))
        config = dataclasses.replace(recording.config, num_mel_bins=candidate.shape[1])
        recording = Recording(recording.audio, recording.rate, config, recording.segment)
    if len(candidate) < FEWEST:
        raise ValueError(f"{plural(len(candidate), 'frame is', 'frames are')} too few to judge a front end")
    if not np.isfinite(candidate).all():
        share = float((~np.isfinite(candidate)).mean())
        diagnosis.findings.append(_finding("not finite", f"NaN or infinity in {share:.1%} of the values"))
        return diagnosis
    if recording.segment:
        whole = _Search(candidate, Recording(recording.audio, recording.rate, recording.config))
        if whole.error(MT3) <= ROUNDING < _Search(candidate, recording).error(MT3):
            text = "segments are cut from the whole recording's frames; MT3's see their own samples and then zeros"
            diagnosis.findings.append(_finding("segments of the whole", text))
            return diagnosis
    search = _Search(candidate, recording)
    before = search.error(MT3)
    options = STRUCTURE
    if from_file:
        one = recording.audio.shape[1] == 1
        options = {name: row for name, row in FROM_FILE.items() if not (one and name == "channels")} | STRUCTURE
        if recording.rate == recording.config.sample_rate:
            options = {name: row for name, row in options.items() if name != "resampler"}
            diagnosis.notes.append(f"resampling was not judged: the recording has {recording.rate} Hz already")
    best = MT3
    if before > ROUNDING:
        best = search.best(options)
    after = search.error(best)
    changed = [name for name in TEXTS if getattr(best, name) != getattr(MT3, name)]
    library = next((name for name, values in LIBRARIES.items() if values == best), "")
    if library:
        diagnosis.notes.append(f"together these are the defaults of {library}")
    diagnosis.findings += [_option(search, best, name, before, len(changed)) for name in changed]
    if after > EXPLAINED:
        text = "differs from MT3's front end" + (", and not in that alone" if changed else "")
        diagnosis.findings.append(Finding("front end", "unknown", text, after, None, sites=["front end"]))
    count = len(search.mel(best))
    if not diagnosis.findings and len(candidate) != count:
        unpadded = dataclasses.replace(MT3, padding="none")
        if len(candidate) == len(search.mel(unpadded)):
            finding = _finding("padding=none", TEXTS["padding"](unpadded))
        else:
            finding = _finding(f"frames={len(candidate)}", f"{plural(len(candidate), 'frame')} in place of {count}")
        diagnosis.findings.append(finding)
    diagnosis.coverage = (
        f"{plural(min(len(candidate), count), 'frame')} of {candidate.shape[1]} mel bins; "
        f"mean error {before:.1e} deviations of the values"
    )
    return diagnosis


def _option(search: "_Search", best: FrontEnd, name: str, before: float, count: int) -> Finding:
    """Return the finding that one of `count` options is not MT3's, with the error if it alone were."""
    after = search.error(best)
    finding = Finding("front end", f"{name}={getattr(best, name)}", TEXTS[name](best), before, after)
    undone = dataclasses.replace(best, **{name: getattr(MT3, name)})
    finding.runner_up = ("the rest without it", search.error(undone)) if count > 1 else ("", None)
    finding.sites = ["front end"]
    return finding


def _finding(cause: str, text: str) -> Finding:
    return Finding("front end", cause, text, float("nan"), None, sites=["front end"])


class _Search:
    """The search for the front end whose frames are the candidate's."""

    def __init__(self, candidate: np.ndarray, recording: Recording):
        self.candidate, self.recording = candidate, recording
        self.deviation = float(candidate.std()) or 1.0
        # The logarithm of what has none, for the fit of factor and constants.
        linear = candidate.min() >= 0.0 and candidate.max() > 4 * np.abs(candidate).mean()
        self.shape = np.log(np.maximum(candidate, 1e-12)) if linear else candidate

    def mel(self, front_end: FrontEnd) -> np.ndarray:
        return self.recording.mel(front_end)

    def aligned(self, front_end: FrontEnd, values: np.ndarray) -> tuple[np.ndarray, slice]:
        """Return values of the front end's frames that the candidate has too, and these frames."""
        count, edge = min(len(values), len(self.candidate)), abs(front_end.shift)
        rows = slice(min(edge, count - 1), max(count - edge, 1))
        return values[rows], rows

    def error(self, front_end: FrontEnd) -> float:
        """Return the mean error in deviations over values that float32 determines; each counts 1 at most."""
        mel = self.mel(front_end)
        if len(mel) < FEWEST:
            return 1.0
        values, rows = self.aligned(front_end, finish(mel, front_end))
        seen = _determined(mel)[rows]
        off = np.abs(values - self.candidate[rows])[seen]
        # The first and last frames, which a shift leaves out, must not let it win over centring.
        handicap = ROUNDING / 10 if front_end.shift else 0.0
        return float(np.minimum(off / self.deviation, 1.0).mean()) + handicap if off.size else 1.0

    def misfit(self, front_end: FrontEnd) -> float:
        """Return the share of the candidate's variance that no factor and constants per mel bin explain."""
        mel = self.mel(front_end)
        if len(mel) < FEWEST:
            return 1.0
        if front_end.shift:
            mel = np.roll(mel, front_end.shift, axis=0)
        part, rows = self.aligned(front_end, mel)
        # What lies well above any floor or offset.
        seen = (_determined(mel) & (mel > LOUD * mel.max()))[rows]
        x, y = np.log(np.maximum(part, 1e-30)), self.shape[rows]
        count = np.maximum(seen.sum(axis=0), 1)
        x, y = (np.where(seen, v - np.where(seen, v, 0.0).sum(axis=0) / count, 0.0) for v in (x, y))
        power, size = float((x * x).sum()), float((y * y).sum())
        if not power or not size:
            return 1.0
        return float(((y - x * (x * y).sum() / power) ** 2).sum()) / size

    def best(self, options: dict[str, tuple]) -> FrontEnd:
        """Return the front end whose frames are nearest to the candidate's."""
        # Most ports have one slip.
        single = self.descend(MT3, options | SHAPES | VALUES, self.error, rounds=1)
        if self.error(single) <= ROUNDING:
            return single
        starts = [self.descend(start, options, self.misfit) for start in (MT3, *LIBRARIES.values())]
        start = min(starts, key=self.misfit)
        shapes = [
            dataclasses.replace(start, **dict(zip(SHAPES, values, strict=True)))
            for values in itertools.product(*SHAPES.values())
        ]
        # A few kinds of values, each with its best offset and normalisations of filters.
        shapes = sorted(shapes, key=self.constants_error)[:4]
        finalists = [self.descend(shape, VALUES, self.error) for shape in shapes]
        best = min(finalists, key=self.error)
        if self.error(MT3) < self.error(best):
            best = MT3
        best = self.descend(best, options | SHAPES | VALUES, self.error)
        return self.pruned(best)

    def constants_error(self, front_end: FrontEnd) -> float:
        """Return the mean error that is left when a constant per mel bin is taken off."""
        mel = self.mel(front_end)
        if len(mel) < FEWEST:
            return 1.0
        values, rows = self.aligned(front_end, finish(mel, front_end))
        seen = (_determined(mel) & (mel > LOUD * mel.max()))[rows]
        off = np.where(seen, values - self.candidate[rows], 0.0)
        off = np.where(seen, off - off.sum(axis=0) / np.maximum(seen.sum(axis=0), 1), 0.0)
        return float(np.minimum(np.abs(off) / self.deviation, 1.0)[seen].mean()) if seen.any() else 1.0

    def descend(
        self, start: FrontEnd, options: dict[str, tuple], score: Callable[[FrontEnd], float], rounds: int = 6
    ) -> FrontEnd:
        """Change the one option that lowers the score most, until none lowers it to GAINED."""
        best, lowest = start, score(start)
        for _ in range(rounds):
            changed = [
                dataclasses.replace(best, **{name: value})
                for name, values in options.items()
                for value in values
                if value != getattr(best, name)
            ]
            scores = [score(front_end) for front_end in changed]
            number = int(np.argmin(scores))
            if lowest <= 1e-9 or scores[number] > lowest * GAINED:
                break
            best, lowest = changed[number], scores[number]
        return best

    def pruned(self, best: FrontEnd) -> FrontEnd:
        """Return the front end with every option, or pair of options, that does not matter put back to MT3's."""
        changed = [name for name in TEXTS if getattr(best, name) != getattr(MT3, name)]
        for names in [*itertools.combinations(changed, 2), *itertools.combinations(changed, 1)]:
            without = dataclasses.replace(best, **{name: getattr(MT3, name) for name in names})
            if self.error(without) <= max(MATTERS * self.error(best), LEAST):
                best = without
        return best


def _determined(mel: np.ndarray) -> np.ndarray:
    """Return where values are not rounding noise of float32; a frame of zeros is exact."""
    largest = mel.max(axis=1, keepdims=True)
    return (mel > QUIET * largest) | (largest == 0)
