"""The five released YourMT3+ checkpoints: where they are, how large, their SHA-256, and their settings."""

import os
from typing import NamedTuple

from mt3_common.yourmt3_config import FrontEndConfig, PerceiverConfig, YourMT3Config, YourMT3Settings

# a mirror of it can be named as other tools name it, by HF_ENDPOINT
HUB = "https://huggingface.co"
LOGS = "spaces/mimbres/YourMT3/resolve/main/amt/logs/2024"


class Released(NamedTuple):
    """A released checkpoint.

    Attributes:
        folder: its experiment.
        file: below the folder's checkpoints.
        num_bytes: of the file.
        sha256: of the file.
        settings: which the file is read with.
    """

    folder: str
    file: str
    num_bytes: int
    sha256: str
    settings: YourMT3Settings

    @property
    def address(self) -> str:
        """Return where to fetch it."""
        endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        return f"{endpoint}/{LOGS}/{self.folder}/checkpoints/{self.file}"


_SPEC, _MELSPEC = FrontEndConfig(), FrontEndConfig("melspec", hop_length=128)
_MULTI = "mc13_full_plus_256"
_MIXTURE = PerceiverConfig(
    query_residual=True,
    position_encoding="rope",
    rope_partial=True,
    ff_layer="moe",
    ff_widening_factor=4,
    activation="silu",
)
_T5 = YourMT3Config(
    encoder="t5",
    decoder="t5",
    pre_encoder="none",
    pre_decoder="none",
    num_channels=1,
    num_frames=_MELSPEC.num_frames,
    num_bins=_MELSPEC.num_bins,
)
_SINGLE = YourMT3Config(
    decoder="t5", pre_decoder="linear", num_channels=1, perceiver=PerceiverConfig(num_latents=24, num_experts=4)
)
_MULTI_NETWORK = YourMT3Config(perceiver=PerceiverConfig(num_experts=4))

RELEASED = {
    "ymt3-plus": Released(
        "notask_all_cross_v6_xk2_amp0811_gm_ext_plus_nops_b72",
        "model.ckpt",
        542_707_465,
        "76673d4289aae1a66984b3fee59157d484cda8fdf9b56279251b137321d448e6",
        YourMT3Settings("mt3_full_plus", _MELSPEC, _T5),
    ),
    "yptf-single": Released(
        "ptf_all_cross_rebal5_mirst_xk2_edr005_attend_c_full_plus_b100",
        "model.ckpt",
        361_050_039,
        "507ff129bf68f65b3b3439368706fc413523fc729d994e4da2c3f50860b05dde",
        YourMT3Settings("mt3_full_plus", _SPEC, _SINGLE),
    ),
    "yptf-multi-ps": Released(
        "ptf_mc13_256_all_cross_v6_xk5_amp0811_edr005_attend_c_full_plus_2psn_nl26_sb_b26r_800k",
        "model.ckpt",
        541_553_263,
        "f7ed46a7c61244bd35485143a791b3cf46515ef96239793845ae8e4084865130",
        YourMT3Settings(_MULTI, _SPEC, _MULTI_NETWORK),
    ),
    "yptf-moe-multi": Released(
        "mc13_256_g4_all_v7_mt3f_sqr_rms_moe_wf4_n8k2_silu_rope_rp_b36_nops",
        "last.ckpt",
        561_544_628,
        "ae38e415c79efd5592dcb9b658cdb99ddb11d4c4e1eaa364cab04a052473fc25",
        YourMT3Settings(_MULTI, _SPEC, YourMT3Config(perceiver=_MIXTURE)),
    ),
    "yptf-moe-multi-ps": Released(
        "mc13_256_g4_all_v7_mt3f_sqr_rms_moe_wf4_n8k2_silu_rope_rp_b80_ps2",
        "model.ckpt",
        758_957_292,
        "7427055b51c3c8c86f6a35493cf0741d8db29186052055b59193590a82e6ec01",
        YourMT3Settings(_MULTI, _SPEC, YourMT3Config(perceiver=_MIXTURE)),
    ),
}


def pinned_file(address: str) -> Released | None:
    """Return the released checkpoint at an address; None for any other."""
    return next((released for released in RELEASED.values() if released.address == address), None)
