"""The config of the voice that a training makes, and what does not go together."""

from typing import Any

import pytest

from speech.planning import Wanted, plan_voice
from speech.voices import with_parts
from tests.tiny_voices import tiny_voice
from utils.cli import UserError

PLAIN: dict[str, Any] = {"is_new": False, "speaker_encoder": "", "vits2": [], "prosody": False, "style_tokens": None}


def wanted(**asked: Any) -> Wanted:
    return Wanted(**{"voice": "v", "data": "d", "style_adaptive_norm": False, "adapt": "all", **PLAIN, **asked})


def test_a_new_voice_has_the_speakers_of_its_data_and_none_of_those_whose_sizes_it_takes() -> None:
    config = tiny_voice(speakers=2).model.config
    assert plan_voice(config, wanted(is_new=True), ["eva"]).num_speakers == 1
    several = plan_voice(
        tiny_voice().model.config, wanted(is_new=True, style_adaptive_norm=True), ["eva", "leo", "rui"]
    )
    assert (several.num_speakers, several.parts) == (3, {"style_adaptive_norm": {}})


def test_utterances_without_a_name_beside_named_speakers_are_refused() -> None:
    one, several = tiny_voice().model.config, tiny_voice(speakers=2).model.config
    encoder = wanted(speaker_encoder="demo")
    assert plan_voice(one, encoder, ["", ""]).parts and plan_voice(several, encoder, ["", ""]).parts
    listening = plan_voice(one, encoder, ["ana", "rui"])
    listening.parts["speaker_encoder"]["speakers"], listening.speaker_names = 2, ["ana", "rui"]
    for config, names in ((one, ["ana", ""]), (several, ["ana", ""]), (listening, ["", ""])):
        with pytest.raises(UserError, match="--train_data_dir d: some utterances name no speaker, .*--speaker_column"):
            plan_voice(config, encoder, names)


def test_a_part_that_adapt_leaves_frozen_is_refused() -> None:
    several, one = tiny_voice(speakers=2), tiny_voice()
    for config, vits2, name in (
        (several.model.config, "flow_attention", "flow_attention"),
        (several.model.config, "all", "flow_attention"),
        (one.model.config, "duration_discriminator", "duration_discriminator"),
    ):
        with pytest.raises(UserError, match=f"--vits2 {vits2}: --adapt decoder trains nothing that {name} changes"):
            plan_voice(config, wanted(vits2=[vits2], adapt="decoder"), ["eva"])
    with_attention = with_parts(several, {"flow_attention": {"heads": 2}}).model.config
    for config in (several.model.config, with_attention):
        plan_voice(config, wanted(vits2=["duration_discriminator", "text_speaker"], adapt="decoder"), ["eva"])
    plan_voice(with_attention, wanted(vits2=["all"], adapt="decoder"), ["eva"])
