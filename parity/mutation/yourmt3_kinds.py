"""Kinds of faults of YourMT3+, and the modules in which most of them are."""

import dataclasses
import re

from parity.mutation.yourmt3_plants.planting import Plant

BEHAVIOUR, WEIGHTS, EQUIVALENT = "behaviour", "weights", "equivalent"
SCA = r"encoder/blocks_\d/spectral_cross_attention"
LOCAL = r"encoder/blocks_\d/local_transformer_\d"
TEMPORAL = r"encoder/blocks_\d/temporal_transformer_\d"
CROSS_T5 = r"decoder/decoder/block_\d/layer_1"
SELF_T5 = r"(en|de)coder/(en|de)coder/block_\d/layer_0"
FF_T5 = r"decoder/decoder/block_\d/layer_2"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A fault.

    Attributes:
        name: of it.
        network: in which it is planted, of NETWORKS.
        where: regular expression of the taps of the modules in which it can be.
        plant: changes the network at a tap.
        causes: regular expression of what the diagnosis may call it.
        group: BEHAVIOUR, WEIGHTS, or EQUIVALENT for a change that changes nothing.
        blamed: regular expression of the sites that may be blamed, where that is not the tap itself; '{site}' stands
            for the tap.
    """

    name: str
    network: str
    where: str
    plant: Plant
    causes: str
    group: str = BEHAVIOUR
    blamed: str = "{site}"

    def sites(self, taps: list[str]) -> list[str]:
        """Return the taps where it can be planted."""
        return [tap for tap in taps if re.fullmatch(self.where, tap)]

    def accepts(self, site: str, blamed: str) -> bool:
        """Return whether a blamed module is one in which the fault lies."""
        return re.fullmatch(self.blamed.format(site=re.escape(site)), blamed) is not None
