"""The function that lists the recordings of each published data set."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mt3_common.data.published import bands, chamber, drums, pianos, strings, voices
from mt3_common.data.published.index import Piece

PREPARE: dict[str, Callable[[Path], Iterator[Piece]]] = {
    "maestro": pianos.maestro,
    "maps": pianos.maps,
    "slakh": bands.slakh,
    "rwc-pop": bands.rwc_pop,
    "musicnet": chamber.musicnet,
    "urmp": chamber.urmp,
    "enst-drums": drums.enst_drums,
    "e-gmd": drums.e_gmd,
    "mir-st500": voices.mir_st500,
    "cmedia": voices.cmedia,
    "guitarset": strings.guitarset,
    "idmt-smt-bass": strings.idmt_smt_bass,
}
# sets whose sources state how loud notes are
WITH_VELOCITIES = ("maestro", "maps", "slakh", "e-gmd")
