"""YourMT3+'s mixtures of data sets by their published names, of sets that `mt3 data install` prepared.

yourmt3_presets.json has them all: 42 of one data set, 45 of several with weights.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3_common.data.corpora import DatasetError, Recording, recordings

TABLE = Path(__file__).with_name("yourmt3_presets.json")
# published preset of one data set -> folder of the installed one, with its variant
FOLDERS = {
    **{"maestro": "maestro", "maestro_final": "maestro", "slakh": "slakh", "slakh_final": "slakh", "urmp": "urmp"},
    **{"egmd": "e-gmd", "idmt_smt_bass": "idmt-smt-bass", "maps_default": "maps", "maps_all": "maps/all"},
    **{"musicnet_thickstun_em": "musicnet", "musicnet_thickstun_ext_em": "musicnet", "musicnet_mt3_em": "musicnet"},
    **{"musicnet_thickstun": "musicnet/thickstun", "musicnet_thickstun_ext": "musicnet/thickstun"},
    **{"musicnet_mt3": "musicnet/mt3", "musicnet_mt3_synth_only": "musicnet/synth"},
    **{"guitarset_progression": "guitarset", "guitarset_progression_pshift": "guitarset"},
    **{"guitarset": "guitarset", "guitarset_pshift": "guitarset"},
    **{"enstdrums_dtp": "enst-drums", "enstdrums_dtm": "enst-drums/dtm"},
    **{"mir_st500": "mir-st500/mix", "mir_st500_voc": "mir-st500", "cmedia": "cmedia/mix", "cmedia_voc": "cmedia"},
    **{"rwc_pop_full": "rwc-pop", "rwc_pop_bass": "rwc-pop/bass"},
}
# those whose published training set has other recordings than ours
APPROXIMATE = {
    "guitarset": "random splits there, the progressions here",
    "guitarset_pshift": "random splits and shifted copies there; the progressions here, and --augment's semitones",
    "guitarset_progression_pshift": "shifted copies there, --augment's semitones here",
    "musicnet_mt3_em": "other splits there",
}
# of which training takes the validation set too
WITH_VALIDATION = ("maestro_final", "slakh_final")


class Mixture(NamedTuple):
    """Data sets and how often they are drawn.

    Attributes:
        datasets: the recordings of each.
        weights: of each, as published.
        folders: of each.
        notes: a sentence for each that differs from the published one.
    """

    datasets: list[list[Recording]]
    weights: list[float]
    folders: list[Path]
    notes: list[str]


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return kind ('single', 'multi') -> published name -> what it is."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def find_mixture(name: str, home: Path, split: str = "train") -> Mixture:
    """Return the mixture of a published name.

    Args:
        name: of presets().
        home: folder of the installed data sets.
        split: 'train', 'validation' or 'test'.

    Raises:
        DatasetError: there is no such mixture, or a data set is missing; names them all.
    """
    single, multi = presets()["single"], presets()["multi"]
    if name in multi:
        parts = multi[name]["presets"]
        weights = multi[name].get("weights") or [1.0] * len(parts)
    elif name in single:
        parts, weights = [name], [1.0]
    else:
        known = ", ".join([*multi, *single])
        raise DatasetError(f"no data preset is called {name!r}; there are {known}")
    if unknown := [part for part in parts if part not in FOLDERS]:
        raise DatasetError(
            f"data preset {name} has {', '.join(unknown)}, which cannot be had: not distributed, or only a name"
        )
    folders = [home / FOLDERS[part] for part in parts]
    if missing := sorted({folder.relative_to(home).parts[0] for folder in folders if not folder.is_dir()}):
        raise DatasetError(
            f"data preset {name} lacks {', '.join(missing)} in {home}: mt3 data install {' '.join(missing)}"
        )
    datasets = []
    for part, folder in zip(parts, folders):
        listed = recordings(folder, split)
        if split == "train" and part in WITH_VALIDATION:
            listed += recordings(folder, "validation")
        datasets.append(listed)
    notes = [
        f"data preset {name}: {part} is not quite as published: {APPROXIMATE[part]}"
        for part in parts
        if part in APPROXIMATE
    ]
    return Mixture(datasets, [float(weight) for weight in weights], folders, notes)


def published_rates(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """Return the probabilities with which YourMT3+ draws from data sets of these sizes: (n,) float64.

    A file is drawn with the weight of its data set, times the share of all files that are not in it.
    """
    counts = np.asarray(sizes, np.float64)
    shares = 1 - counts / counts.sum() if len(counts) > 1 else np.ones(1)
    rates = counts * np.asarray(weights, np.float64) * shares
    return rates / rates.sum()
