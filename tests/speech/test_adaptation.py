"""Which weights of a voice --adapt trains."""

import pytest

from speech import adaptive_norms, prosody, styles
from speech.adaptation import freeze_others
from speech.voices import with_parts
from tests.tiny_voices import tiny_voice
from utils.cli import UserError


def trained(adapt: str, speakers: int = 2) -> set[str]:
    model = tiny_voice(speakers=speakers, stochastic=True).model
    found = {id(one) for one in freeze_others(model, adapt)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in found}
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return names


def test_each_choice_has_what_the_one_before_it_has():
    speaker, decoder, everything = (trained(adapt) for adapt in ("speaker", "decoder", "all"))
    layers = {name.split(".cond")[0] for name in speaker}
    assert layers == {
        "embed_speaker.weight",
        "decoder",
        "duration_predictor",
        "flow.flows.0.wavenet",
        "flow.flows.1.wavenet",
        "posterior_encoder.wavenet",
    }
    assert decoder - speaker == {name for name in everything if name.startswith("decoder.")} - speaker
    assert "decoder.conv_pre.weight" in decoder and "text_encoder.project.weight" in everything - decoder


def test_a_voice_of_one_has_no_speaker_to_adapt_but_a_decoder():
    with pytest.raises(UserError, match="--adapt speaker: the voice is of one speaker, .*; give decoder or all"):
        trained("speaker", speakers=0)
    assert all(name.startswith("decoder.") for name in trained("decoder", speakers=0))


def test_who_speaks_is_also_what_other_parts_make_and_hear_of_it():
    parts = {
        "text_speaker": {"layer": 0},
        "flow_attention": {"heads": 2},
        adaptive_norms.NAME: {},
        styles.NAME: {"tokens": 3},
    }
    model = with_parts(tiny_voice(speakers=2), parts | {prosody.NAME: prosody.UNMEASURED}).model
    own = {name.split(".")[0] for name, _ in model.named_parameters()}
    freeze_others(model, "speaker")
    heard = {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    assert heard == own - {"text_encoder"}
    assert not any(one.requires_grad for name, one in model.named_parameters() if "attention" in name)
