"""Arguments of the published train.py as our settings: the released networks', and what was a lie in them."""

import pytest

from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli import train
from mt3_common.cli.yourmt3_arguments import translate
from mt3_common.training.config import TrainingError, read_config

# as the seed document of the family gives them
PERCEIVER = "-enc perceiver-tf -ac spec -hop 300 -atc 1"
MULTI = f"-tk mc13_full_plus_256 -dec multi-t5 -nl 26 {PERCEIVER}"
MOE = f"{MULTI} -sqr 1 -ff moe -wf 4 -nmoe 8 -kmoe 2 -act silu -epe rope -rp 1"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ymt3-plus", "-p 2024"),
        ("yptf-single", PERCEIVER),
        ("yptf-multi-ps", MULTI),
        ("yptf-moe-multi", MOE),
        ("yptf-moe-multi", MOE.replace("-enc", "--encoder-type").replace("-sqr 1", "--sca-use-query-residual True")),
    ],
)
def test_the_released_networks_come_out(name, arguments):
    settings, training = read_config(None, None, None, translate(arguments).settings)
    released = RELEASED[name].settings
    assert (settings.task, settings.front_end) == (released.task, released.front_end)
    if released.network.encoder == "perceiver-tf":
        assert settings.network == released.network
    else:
        assert settings.network.t5_encoder == released.network.t5_encoder
        assert settings.network.t5_decoder == released.network.t5_decoder
    assert (training.optimizer, training.steps) == ("adamw-scale", 100_000)


def test_numbers_of_the_training_come_out():
    translation = translate(
        f"my_run {MOE} -edr 0.05 -ddr 0.2 -bsz 5 10 -it 3000 -vit 200 -pr bf16-mixed -d all_cross_v7"
    )
    settings, training = read_config(None, None, None, translation.settings)
    assert settings.network.perceiver.dropout_rate == 0.05
    assert settings.network.t5_decoder.dropout_rate == 0.2
    assert (training.batch_size, training.steps, training.validate_every) == (10, 3000, 200)
    assert training.dtype == "bfloat16"
    assert translation.data_preset == "all_cross_v7"
    notes = "\n".join(translation.notes)
    assert "-bsz 5 10: batch_size 10, of all devices together" in notes
    assert "there is no float16" in notes
    assert "my_run: the folder of a run" in notes
    assert translate(f"{MOE} -it -1").settings["training"] == {}
    assert (
        translate("-enc perceiver-tf -epe None").settings["model"]["network"]["perceiver"]["position_encoding"]
        == "none"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (f"{MOE} -ln rms_norm", "-ln: the published code writes it into a setting that nothing reads"),
        (f"{MOE} -rt ppl", "-rt: the published code reads another setting"),
        (f"{MOE} -twe 0", "-twe: the published code misspells the setting"),
        (f"{PERCEIVER} -df x", "-df: changes nothing"),
        (MOE, "-epe rope: as many features of a head turn as there are heads"),
        (f"{PERCEIVER} -epe alibit", "only the first head"),
        (f"{PERCEIVER} -nmoe 8", "-nmoe, -kmoe: without effect on -ff mlp"),
        (f"{PERCEIVER} -rp 1", "-rp: without effect on -epe trainable"),
        ("-enc conformer -epe trainable", "no positions at all"),
        ("-enc conformer -wf 4", "-wf: without effect on the Conformer"),
        ("-epe trainable", "relative bias"),
        ("-nl 24", "num latents: ignored by the published code for -enc t5"),
        ("-sb 1", "BatchNorm always sees the batch of all devices"),
        ("-st ddp", "--distributed"),
        ("-wb online", "name the project with -p"),
        ("-wb offline", "metrics.csv"),
    ],
)
def test_what_was_a_lie_is_said(arguments, sentence):
    assert sentence in "\n".join(translate(arguments).notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-enc perceiver", "invalid choice: 'perceiver'"),
        ("-enc t5 -dec multi-t5", "fails in the published code too: take perceiver-tf"),
        ("-enc perceiver-tf -atc 1", "-ac melspec with -atc 1 fails"),
        ("-enc conformer -epe rotary", "it is the Conformer's default"),
        ("-enc conformer -epe rope", "take trainable"),
        ("-enc perceiver-tf -epe rotary", "take one of trainable, tkd"),
        ("-epe rope", "take sinusoidal or trainable"),
        ("-dl 64", "-dl is not translated; there are --attention-to-channel"),
        ("-preenc conv", "-preenc is not translated"),
        ("-bsz 10", "expected 2 arguments"),
        ("-sqr yes", "'yes' must be 0 or 1"),
        ("-nl many", "invalid int value"),
        ("-p 'open", "No closing quotation"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(TrainingError) as error:
        translate(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_prints_the_settings_and_goes_on(tmp_path, capsys):
    arguments = [str(tmp_path / "run"), "--data", str(tmp_path), "--yourmt3-args", f"{MOE} -p songs -wb online -st ddp"]
    options = train.parse("mt3 train", arguments)
    settings = train.translated_arguments(options)
    assert settings == translate(options.yourmt3_args).settings
    assert options.wandb == "songs"
    error = capsys.readouterr().err
    assert '--yourmt3-args are these settings: {"model": {"family": "yourmt3"' in error
    assert "note: -st ddp" in error
    assert train.translated_arguments(train.parse("mt3 train", arguments[:3])) is None
