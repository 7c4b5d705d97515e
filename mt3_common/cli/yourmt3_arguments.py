"""Arguments of the published train.py of YourMT3+ as our settings, for `mt3 train --yourmt3-args`."""

import argparse
import shlex
from typing import Any, NamedTuple, NoReturn

from mt3_common.training.config import TrainingError
from mt3_common.yourmt3_config import ACTIVATIONS, DECODERS, ENCODERS, FAMILY, PERCEIVER_POSITIONS

PRECISIONS = {
    **dict.fromkeys(("32", "32-true"), "float32"),
    **dict.fromkeys(("64", "64-true"), "float64"),
    **dict.fromkeys(("bf16", "bf16-mixed", "bf16-true", "16", "16-mixed", "16-true"), "bfloat16"),
}
# options that change nothing in the published code -> why
UNREAD = {
    "-ln": "the published code writes it into a setting that nothing reads: Perceiver-TF has LayerNorm whatever it "
    "says (ours is network.perceiver.norm)",
    "-twe": "the published code misspells the setting, so that it changes nothing: nothing is tied, logits are scaled",
    "-rt": "the published code reads another setting, so that it changes nothing: the types are ppl (ours is "
    "network.perceiver.rope_types)",
    "-df": "changes nothing in the published code",
}


class Translation(NamedTuple):
    """Meaning of arguments here.

    Attributes:
        settings: 'model' and 'training', as a file of settings has them.
        data_preset: published name of the data; '' where none is named.
        project: of Weights & Biases; '' for none.
        notes: a sentence for each argument that means something else than its name says, or nothing here.
    """

    settings: dict[str, dict[str, Any]]
    data_preset: str
    project: str
    notes: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TrainingError(f"--yourmt3-args: {message}")


def translate(text: str) -> Translation:
    """Translate arguments, as they stand behind train.py.

    Raises:
        TrainingError: an argument is unknown, malformed, or fails in the published code as well; says why.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TrainingError(f"--yourmt3-args: {error}") from error
    parser = _parser()
    known = {option for action in parser._actions for option in action.option_strings}
    for word in words:
        # argparse would take -dl for -d with the value l
        if word.startswith("-") and not word[1:2].isdigit() and word.partition("=")[0] not in known:
            raise TrainingError(f"--yourmt3-args: {word} is not translated; there are {' '.join(sorted(known))}")
    given = parser.parse_args(words)
    notes: list[str] = []
    model = _model(given, notes)
    training = _training(given, notes)
    if given.exp_id:
        notes.append(f"{given.exp_id}: the folder of a run is named before its options: mt3 train RUN")
    notes += [f"{option}: {reason}" for option, reason in UNREAD.items() if getattr(given, option[1:]) is not None]
    project = given.project if given.wandb == "online" else ""
    if given.wandb == "online" and not given.project:
        notes.append("-wb online: name the project with -p, or with our --wandb PROJECT")
    elif given.wandb == "offline":
        notes.append("-wb offline: RUN/metrics.csv has all figures; --tensorboard draws them")
    return Translation({"model": model, "training": training}, given.data_preset or "", project or "", notes)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="--yourmt3-args", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("exp_id", nargs="?")
    add("-p", "--project")
    add("-d", "--data-preset")
    add("-tk", "--task")
    add("-enc", "--encoder-type", dest="encoder", choices=ENCODERS, default="t5")
    add("-dec", "--decoder-type", dest="decoder", choices=DECODERS, default="t5")
    add("-nl", "--num-latents", type=int)
    add("-sqr", "--sca-use-query-residual", dest="query_residual", type=_switch)
    add("-ff", "--ff-layer-type", dest="ff_layer", choices=("mlp", "gmlp", "moe"))
    add("-wf", "--ff-widening-factor", dest="widening", type=int)
    add("-nmoe", "--moe-num-experts", dest="num_experts", type=int)
    add("-kmoe", "--moe-topk", dest="experts_per_token", type=int)
    add("-act", "--hidden-act", dest="activation", choices=ACTIVATIONS)
    add("-epe", "--encoder-position-encoding-type", dest="position")
    add("-rp", "--rope-partial-pe", dest="rope_partial", type=_switch)
    add("-ac", "--audio-codec", dest="codec", choices=("spec", "melspec"))
    add("-hop", "--hop-length", dest="hop", type=int)
    add("-atc", "--attention-to-channel", dest="to_channel", type=_switch)
    add("-edr", "--encoder-dropout-rate", dest="encoder_dropout", type=float)
    add("-ddr", "--decoder-dropout-rate", dest="decoder_dropout", type=float)
    add("-bsz", "--train-batch-size", dest="batch", type=int, nargs=2, metavar=("SUB", "LOCAL"))
    add("-it", "--max-steps", dest="steps", type=int, default=-1)
    add("-vit", "--val-interval", dest="validate_every", type=int)
    add("-sb", "--sync-batchnorm", dest="synchronised", type=_switch)
    add("-st", "--strategy")
    add("-wb", "--wandb-mode", dest="wandb", choices=("online", "offline", "disabled"))
    add("-pr", "--precision", choices=tuple(PRECISIONS))
    for option in UNREAD:
        add(option)
    return parser


def _switch(text: str) -> bool:
    """Parse 1, 0, True or False."""
    switches = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in switches:
        raise argparse.ArgumentTypeError(f"{text!r} must be 0 or 1")
    return switches[text.lower()]


def _model(given: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    """Return the settings of the network; those that are not given are the published defaults."""
    is_perceiver = given.encoder == "perceiver-tf"
    if given.decoder == "multi-t5" and not is_perceiver:
        raise TrainingError(
            f"-dec multi-t5 with -enc {given.encoder} fails in the published code too: take perceiver-tf"
        )
    task = given.task or "mt3_full_plus"
    codec = given.codec or "melspec"
    hop = given.hop or 128
    if codec == "melspec" and is_perceiver and given.to_channel:
        raise TrainingError("-ac melspec with -atc 1 fails in the published code too: take -atc 0, or -ac spec")
    network: dict[str, Any] = {"encoder": given.encoder, "decoder": given.decoder}
    if is_perceiver:
        network["pre_encoder"] = "conv"
        network["pre_decoder"] = "mc_shared_linear" if given.decoder == "multi-t5" else "linear"
        network["perceiver"] = _perceiver(given, notes)
    else:
        network |= {"pre_encoder": "none", "pre_decoder": "none"}
        ignored = ("num_latents", "query_residual", "ff_layer", "num_experts", "experts_per_token", "activation")
        for name in (*ignored, "rope_partial", "to_channel"):
            if getattr(given, name) is not None:
                notes.append(
                    f"{name.replace('_', ' ')}: ignored by the published code for -enc {given.encoder}, and here"
                )
    if given.encoder == "t5":
        network["t5_encoder"] = _t5_encoder(given, notes)
    elif given.encoder == "conformer":
        network["conformer"] = _conformer(given, notes)
    if given.decoder_dropout is not None:
        network["t5_decoder"] = {"dropout_rate": given.decoder_dropout}
    front_end = {"codec": codec, "hop_length": hop}
    return {"family": FAMILY, "released": "ymt3-plus", "task": task, "front_end": front_end, "network": network}


def _perceiver(given: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    position = given.position or "trainable"
    position = "none" if position in ("None", "0") else position
    if position not in PERCEIVER_POSITIONS:
        raise TrainingError(f"-epe {position} with -enc perceiver-tf: take one of {', '.join(PERCEIVER_POSITIONS)}")
    if position == "rope":
        notes.append("-epe rope: as many features of a head turn as there are heads (half of them with -rp 1), not all")
    if position == "alibit":
        notes.append("-epe alibit: only the first head gets the trained slope, as in the published code")
    if given.rope_partial is not None and position != "rope":
        notes.append(f"-rp: without effect on -epe {position}")
    ff_layer = given.ff_layer or "mlp"
    if ff_layer != "moe" and (given.num_experts or given.experts_per_token):
        notes.append(f"-nmoe, -kmoe: without effect on -ff {ff_layer}")
    stated = {
        "num_latents": given.num_latents or 24,
        "query_residual": bool(given.query_residual),
        "attention_to_channel": bool(given.to_channel),
        "position_encoding": position,
        "rope_partial": bool(given.rope_partial),
        "ff_layer": ff_layer,
        "ff_widening_factor": given.widening or 1,
        "num_experts": given.num_experts or 4,
        "experts_per_token": given.experts_per_token or 2,
        "activation": given.activation or "gelu",
    }
    return stated if given.encoder_dropout is None else stated | {"dropout_rate": given.encoder_dropout}


def _t5_encoder(given: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    stated: dict[str, Any] = {} if given.encoder_dropout is None else {"dropout_rate": given.encoder_dropout}
    if given.position:
        if given.position not in ("sinusoidal", "trainable"):
            raise TrainingError(f"-epe {given.position} with -enc t5: take sinusoidal or trainable")
        stated["position_encoding"] = given.position
    if given.position == "trainable":
        notes.append("-epe trainable: T5's relative bias, 32 trained numbers a head, not a table of positions")
    if given.widening:
        stated["ff_widening_factor"] = given.widening
    return stated


def _conformer(given: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    stated: dict[str, Any] = {} if given.encoder_dropout is None else {"dropout_rate": given.encoder_dropout}
    if given.position == "rotary":
        raise TrainingError("-epe rotary fails in the published code too: it is the Conformer's default, leave it out")
    if given.position:
        if given.position != "trainable":
            raise TrainingError(
                f"-epe {given.position} with -enc conformer: take trainable, or leave it out for rotary"
            )
        stated["position_encoding"] = "trainable"
        notes.append("-epe trainable: with a Conformer no positions at all, as in the published code")
    if given.widening:
        notes.append("-wf: without effect on the Conformer")
    return stated


def _training(given: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    training: dict[str, Any] = {}
    if given.batch:
        sub, local = given.batch
        training["batch_size"] = local
        notes.append(
            f"-bsz {sub} {local}: batch_size {local}, of all devices together, not of each; sub-batches of {sub} only "
            "order the published loader's work"
        )
    if given.steps > 0:
        training["steps"] = given.steps
    if given.validate_every:
        training["validate_every"] = given.validate_every
        notes.append("-vit: validation is the loss of --validation, without a search; it also saves the run")
    if given.precision:
        training["dtype"] = PRECISIONS[given.precision]
        if given.precision.startswith(("16", "bf16")):
            notes.append(
                f"-pr {given.precision}: bfloat16 products, weights and losses in float32; there is no float16"
            )
    if given.synchronised is not None:
        notes.append("-sb: BatchNorm always sees the batch of all devices here")
    if given.strategy:
        notes.append(f"-st {given.strategy}: JAX uses all devices by itself, PyTorch with torchrun and --distributed")
    return training
