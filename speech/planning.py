"""The voice that a training makes, before it is loaded: the given one's config, with the speakers and parts it gets."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import VitsConfig

from speech import adaptive_norms, prosody, styles, vits2
from speech.parts import CUED, parts_of
from speech.references import encoder_of, encoder_settings
from speech.voices import FLAG, add_parts, add_speakers, change_config, speaker_names
from utils.cli import UserError, counted


@dataclass(frozen=True)
class Wanted:
    """What is asked of a voice besides what it has; `voice` and `data` are named as the user gave them."""

    voice: str
    data: str
    is_new: bool  # the given voice only has its sizes
    speaker_encoder: str
    vits2: list[str]
    prosody: bool
    style_tokens: int | None
    style_adaptive_norm: bool
    adapt: str  # see speech.adaptation


def plan_voice(config: VitsConfig, wanted: Wanted, speakers: Sequence[str]) -> VitsConfig:
    """The config of the voice that is trained on utterances of these speakers; refuses what does not go together."""
    config = plan_speakers(config, wanted, speakers)
    several = config.num_speakers > 1 or bool(encoder_of(config))
    if "text_speaker" in wanted.vits2 and not several:
        raise UserError(
            f"--vits2 text_speaker: voice and --train_data_dir {wanted.data} have one speaker, so there is "
            "nothing to tell apart; leave it out, or prepare data of several with --speaker_column"
        )
    parts = vits2.new_parts(wanted.vits2, config, several) | parts_of(config)
    if wanted.prosody:
        parts.setdefault(prosody.NAME, prosody.UNMEASURED)
    if wanted.style_tokens:
        count = {"tokens": wanted.style_tokens}
        if (found := parts.setdefault(styles.NAME, count)) != count:
            raise UserError(
                f"--style_tokens {wanted.style_tokens}: the voice has {found['tokens']}; leave the flag out"
            )
    if wanted.style_adaptive_norm:
        if not (several or parts.keys() & CUED):
            raise UserError(
                "--style_adaptive_norm: nothing tells the utterances of a voice of one speaker apart; add "
                "--style_tokens or --prosody, or leave it out"
            )
        parts.setdefault(adaptive_norms.NAME, {})
    if wanted.adapt != "all":
        check_adapted(wanted, parts.keys() - parts_of(config).keys(), several or bool(parts.keys() & CUED))
    return change_config(config, add_parts(config, parts))


def check_adapted(wanted: Wanted, new: Collection[str], hears: bool) -> None:
    """Refuse new parts that --adapt would leave frozen, so that they did nothing; `hears`: who speaks, or how."""
    frozen = {"flow_attention": "flow_attention" in new, "duration_discriminator": not hears}
    for name in (name for name, left in frozen.items() if left and vits2.wants(wanted.vits2, name)):
        raise UserError(
            f"--vits2 {' '.join(wanted.vits2)}: --adapt {wanted.adapt} trains nothing that {name} changes; use "
            "--adapt all, or name the other parts"
        )


def plan_speakers(config: VitsConfig, wanted: Wanted, speakers: Sequence[str]) -> VitsConfig:
    """With the speakers of the data in its table; a voice with a speaker encoder has none."""
    if wanted.is_new:
        nobody = {"num_speakers": 1, "speaker_names": [], "speaker_embedding_size": config.speaker_embedding_size}
        config = change_config(config, {"parts": {}, **nobody})
    asked, own = wanted.speaker_encoder, encoder_of(config)
    if asked and own and asked != own:
        raise UserError(
            f"--speaker_encoder {asked}: the voice {wanted.voice} listens by {own}, and can't change; leave it out, or "
            "begin with another voice"
        )
    if not all(speakers) and (asked or own) and any([*speakers, *(own and speaker_names(config))]):
        raise UserError(
            f"--train_data_dir {wanted.data}: some utterances name no speaker, but others, or the voice, do; prepare "
            "them with --speaker_column"
        )
    if asked or own:
        return config if own else change_config(config, encoder_settings(config, asked, []))
    if (known := speaker_names(config)) and not all(speakers):
        raise UserError(
            f"{FLAG} {wanted.voice}: has {counted(len(known), 'speaker')}, but utterances of --train_data_dir "
            f"{wanted.data} name none; prepare them with prepare_speech.py --speaker_column (`folder`: the name of "
            "the folder that they lie in), or begin with a voice of one speaker"
        )
    return change_config(config, add_speakers(config, speakers))
