"""A voice: transformers' VITS model with its tokenizer and the names of its speakers; loaded, made, grown and saved."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.parametrize import is_parametrized
from transformers import VitsConfig, VitsModel, VitsTokenizer
from transformers.models.vits.modeling_vits import VitsAttention, VitsConvFlow, VitsResidualCouplingLayer

from speech.characters import fit_characters
from speech.cloning import SPEAKER_ENCODER
from speech.layers import silence, zero_
from speech.parts import CUED, hears_condition, model_class, parts_of, read_config
from speech.phonemes import phonemise
from utils.cli import UserError
from utils.files import save_model
from utils.hub import DEMO, Loaded, hide_weight_bars, load_named, load_whole

DEFAULT_VOICE = "facebook/mms-tts-por"  # its licence, CC BY-NC 4.0, allows no commercial use
DEMO_VOICE = DEMO / "voice" / "model"
FLAG = "--pretrained_model_name_or_path"
ADVICE = "give the hub id or folder of a VITS voice; `demo-voice` needs no network"
RESTORE = "restore it with `git checkout demo/voice/model`"  # demo-voice
SIZES = ("config.json", "tokenizer_config.json", "vocab.json")  # the files that a new voice takes its sizes from
FILES = (*SIZES, "model.safetensors")
OF_SPEAKERS = ("embed_speaker.weight", "known_speakers")  # which have a row for each
EMBEDDING_SIZE = 256  # of a speaker, where a voice of one becomes one of several: as VITS has it


@dataclass(frozen=True)
class Voice:
    """`speakers` are the names of those that the model can speak as, in the order of its embedding; [] for one."""

    model: VitsModel
    tokenizer: VitsTokenizer
    speakers: list[str]


def load_voice(name: str, flag: str = FLAG) -> Voice:
    """The voice of a hub id, a folder or `demo-voice`, in float32 and without dropout; one line where it is refused.

    A tokenizer that makes phonemes of its text by itself does so no longer: it reads the phonemes it is given.
    """

    def load(source: str) -> Voice:
        model = load_whole(model_class(read_config(source)), source, dtype=torch.float32)
        for one in (*model.parameters(), *model.buffers()):  # which lie at odd addresses, other ones in several
            one.data = one.data.clone()  # processes, and the last bit of a product depends on it
        tokenizer = VitsTokenizer.from_pretrained(source)
        if tokenizer.phonemize:  # by transformers, with espeak-ng's English
            model.config.phonemes, model.config.language = "espeak", "en"
        tokenizer.phonemize = tokenizer.init_kwargs["phonemize"] = False
        return Voice(model.eval(), tokenizer, speaker_names(model.config))

    return load_from(name, load, flag, FILES)


def load_from(
    name: str, load: Callable[[str], Loaded], flag: str = FLAG, needs: Sequence[str] = (), advice: str = ADVICE
) -> Loaded:
    """What `load` makes of the hub id or folder that a name stands for; an error names what the user gave.

    A folder must have the files that it `needs`.
    """
    if name == "demo_voice" and not Path(name).is_dir():
        raise UserError(f"{flag} {name}: no such folder; the voice of this repository is demo-voice")
    source = local_name(name)

    def load_checked() -> Loaded:
        check_files(source, needs)
        return load(source)

    place, advice = ("", advice) if source == name else (source, RESTORE)
    return load_named(flag, name, "VITS voice", load_checked, advice, place)


def check_files(source: str, names: Iterable[str]) -> None:
    """ValueError for a folder's first file that is missing or damaged, by its name; transformers may not say which."""
    for path in (Path(source, name) for name in names if Path(source).is_dir()):
        if not path.is_file():
            raise ValueError(f"{path.name} is missing")
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            else:
                with safe_open(path, "pt"):  # which finds that the file is cut
                    pass
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{path.name} is damaged: {error}") from error


def local_name(name: str) -> str:
    """The folder of `demo-voice`; any other name as it is."""
    return str(DEMO_VOICE) if name == "demo-voice" else name


def read_voice_config(name: str, needs: Sequence[str] = ()) -> VitsConfig:
    """Of a folder or hub id; one of another kind of model is refused, and a folder without a file that it `needs`."""

    def load(source: str) -> VitsConfig:
        config = read_config(source)
        check_files(source, needs)
        return config

    return load_from(name, load, needs=FILES[:1])


def note_reading(voice: Voice, language: str, phonemes: str) -> None:
    """Note in a voice's files what its texts are: the language, and what made phonemes of them, or "" for letters."""
    voice.model.config.language, voice.model.config.phonemes = language, phonemes
    if not voice.tokenizer.language:
        voice.tokenizer.language = voice.tokenizer.init_kwargs["language"] = language


def read_phonemes(voice: Voice) -> str:
    """What made phonemes of the texts that a voice was trained on; "" where it reads letters."""
    return getattr(voice.model.config, "phonemes", None) or ""


def read_aloud(voice: Voice, texts: list[str]) -> list[str]:
    """Normalised texts as a voice reads them: in phonemes of its language, where it was trained on them."""
    if not (engine := read_phonemes(voice)) or not texts:
        return texts
    if engine != "espeak":
        raise UserError(f"the voice reads phonemes of {engine[:40]}; only those of espeak can be made here")
    return phonemise(texts, str(getattr(voice.model.config, "language", "")))


def speaker_names(config: VitsConfig) -> list[str]:
    """As `save_voice` wrote them; numbers where a model of several speakers has no names."""
    count = parts_of(config).get(SPEAKER_ENCODER, {}).get("speakers", config.num_speakers)
    return list(getattr(config, "speaker_names", None) or map(str, range(count))) if count > 1 else []


def new_voice(
    config: VitsConfig, characters: str, seed: int, language: str = "", speakers: Sequence[str] = ()
) -> Voice:
    """A voice that can say nothing yet: of the sizes of `config`, with random weights that depend on `seed` alone.

    It reads lower-case text, and leaves out what is not among `characters`. Several `speakers` get an embedding.
    """
    names = ["<pad>", "<unk>", *dict.fromkeys(characters)]  # the first stands between characters too
    changed: dict[str, Any] = {"vocab_size": len(names), "num_speakers": max(1, len(speakers)), "parts": {}}
    changed["speaker_names"] = list(speakers)
    if len(speakers) > 1:
        changed["speaker_embedding_size"] = config.speaker_embedding_size or EMBEDDING_SIZE
    config = VitsConfig(**{**config.to_dict(), **changed})
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.json")
        vocabulary.write_text(json.dumps({name: i for i, name in enumerate(names)}), "utf-8")
        tokenizer = VitsTokenizer(vocabulary, language=language or None, phonemize=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = VitsModel(config).eval()
        initialise(model)
    return Voice(model, tokenizer, speaker_names(config))


@torch.no_grad()
def initialise(model: VitsModel) -> None:
    """Random weights as VITS had them, of torch's global generator; with transformers' own, training is far slower.

    A decoder of small weights begins with near silence, and flows whose last layers are zero with the identity.
    """
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            weight = torch.empty_like(module.weight)
            if name.startswith(("decoder.upsampler", "decoder.resblocks")):
                torch.nn.init.normal_(weight, std=0.01)
            else:
                torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # torch's own
            module.weight = weight if is_parametrized(module) else torch.nn.Parameter(weight)
        elif isinstance(module, VitsAttention):
            for layer in (module.q_proj, module.k_proj, module.v_proj):
                torch.nn.init.xavier_uniform_(layer.weight)
    torch.nn.init.normal_(model.text_encoder.embed_tokens.weight, std=model.config.hidden_size**-0.5)
    if model.config.num_speakers > 1:
        torch.nn.init.normal_(model.embed_speaker.weight)
    for module in model.modules():
        if isinstance(module, VitsResidualCouplingLayer):
            zero_(module.conv_post)
        elif isinstance(module, VitsConvFlow):
            zero_(module.conv_proj)


def fresh_voice(name: str, texts: list[str], speakers: Sequence[str], seed: int) -> Voice:
    """A new voice of the sizes and the language of another one, for the characters of these texts."""
    config = read_voice_config(name, SIZES)
    language = load_from(name, lambda source: VitsTokenizer.from_pretrained(source).language)
    characters = "".join(sorted(set("".join(texts).lower())))
    return new_voice(config, characters, seed, language or "", speakers if len(speakers) > 1 else ())


@torch.no_grad()
def with_speakers(voice: Voice, names: Sequence[str], seed: int = 0) -> Voice:
    """The voice, able to learn all these speakers; those that it has keep their place, and its own sound.

    A new speaker begins as the mean of those there are. A voice of one begins with the same sound for each name.
    """
    if not (changed := add_speakers(voice.model.config, names)):
        return voice
    grown = grow(voice, changed, seed)
    if voice.speakers:
        rows = voice.model.embed_speaker.weight
        new = grown.config.num_speakers - len(rows)
        grown.embed_speaker.weight.copy_(torch.cat([rows, rows.mean(0, keepdim=True).expand(new, -1)]))
    elif hears_condition(voice.model.config):  # of pitch, energy or style
        zero_(grown.embed_speaker)
    else:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            torch.nn.init.normal_(grown.embed_speaker.weight)  # as of a new voice
    return Voice(grown, voice.tokenizer, speaker_names(grown.config))


def add_speakers(config: VitsConfig, names: Sequence[str]) -> dict[str, Any]:
    """What changes in the config of a voice that learns all these speakers; a voice of one stays that for one name."""
    known = speaker_names(config)
    new = [name for name in dict.fromkeys(names) if name not in known]
    if not new or (len(new) == 1 and not known):
        return {}
    return {"num_speakers": len(known + new), "speaker_names": known + new}


def change_config(config: VitsConfig, changed: dict[str, Any]) -> VitsConfig:
    """The config with these changes; a voice of several speakers has a condition of some size."""
    size = config.speaker_embedding_size or EMBEDDING_SIZE
    return VitsConfig(**{**config.to_dict(), "speaker_embedding_size": size, **changed}) if changed else config


def add_parts(config: VitsConfig, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What changes in the config of a voice that gets these parts too; some add to a condition, also of one speaker."""
    if not parts.keys() - parts_of(config).keys():
        return {}
    size = config.speaker_embedding_size or (EMBEDDING_SIZE if CUED & parts.keys() else 0)
    return {"parts": parts | parts_of(config), "speaker_embedding_size": size}


def with_parts(voice: Voice, parts: dict[str, dict[str, Any]], seed: int = 0) -> Voice:
    """The voice with these parts too, of random weights where it has none of them; it begins with the same sound."""
    changed = add_parts(voice.model.config, parts)
    return Voice(grow(voice, changed, seed), voice.tokenizer, voice.speakers) if changed else voice


@torch.no_grad()
def grow(voice: Voice, changed: dict[str, Any], seed: int) -> VitsModel:
    """A model of the voice's weights whose config has these changes; what it has more is random, by `seed` alone.

    It begins with the same sound: every layer that hears a condition says nothing yet, where the voice heard none.
    """
    old = voice.model
    heard, config = hears_condition(old.config), change_config(old.config, changed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = model_class(config)(config).eval()
    own, state = model.state_dict(), old.state_dict()
    for name in OF_SPEAKERS:
        if name in state and (name not in own or own[name].shape != state[name].shape):
            del state[name]
    silent = ("to_condition",) if heard else ("cond", "cond_layer")  # not both: neither would learn
    for name, module in model.named_modules():
        if name.endswith(silent):
            silence(module)
            if not heard:  # it may have been there, of random weights
                state = {key: one for key, one in state.items() if not key.startswith(f"{name}.")}
    model.load_state_dict(state, strict=False)
    return model


def save_voice(folder: Path, voice: Voice, dtype: torch.dtype = torch.float32) -> None:
    """The voice as VitsModel.from_pretrained and transformers' pipeline read it: in float32, whatever is on disk.

    They refuse a voice with parts, which they would leave out.
    """
    hide_weight_bars()
    voice.model.config.speaker_names = voice.speakers
    state = {name: tensor.to(dtype) for name, tensor in voice.model.state_dict().items()}
    save_model(voice.model, folder, state_dict=state)
    voice.tokenizer.save_pretrained(folder)


def unknown_characters(voice: Voice, text: str) -> list[str]:
    """Those of a text that the voice has no token for, and would leave out."""
    text = fit_characters(text, partial(_knows, voice))
    return sorted({one for one in text if not one.isspace() and not _knows(voice, one)})


def _knows(voice: Voice, one: str) -> bool:
    known = voice.tokenizer.encoder
    return one in known or (voice.tokenizer.normalize and one.lower() in known)


def known_characters(voice: Voice, text: str) -> str:
    """Those of a text that the voice has a token for, or for what is read alike."""
    unknown = set(unknown_characters(voice, text))
    return "".join(one for one in text if not one.isspace() and one not in unknown)


def describe_unknown(voice: Voice, texts: Iterable[str]) -> str:
    """The letters and digits that a voice leaves out of these texts, for a warning; "" where there are none.

    Marks that a voice lacks are not named: many voices read none at all.
    """
    counts = Counter("".join(texts))
    unknown = [one for one in unknown_characters(voice, "".join(counts)) if one.isalnum()]
    shown = " ".join(f"{one} ({counts[one]:,})" for one in sorted(unknown, key=lambda one: -counts[one])[:20])
    more = f" and {len(unknown) - 20:,} others" if len(unknown) > 20 else ""
    return f"the voice leaves out what it does not know: {shown}{more}" if unknown else ""


def tokenize(voice: Voice, text: str) -> list[int]:
    """The tokens of a text, with blanks between them; a text without a known character is refused.

    A known character stands for one that is read alike: see `fit_characters`.
    """
    if not known_characters(voice, text):
        unknown = unknown_characters(voice, text)
        shown = f"unknown: {' '.join(unknown[:20])}" if unknown else "it is empty"
        raise UserError(f"text {text[:60]!r}: no character of it is in the voice's alphabet ({shown}); give other text")
    text = fit_characters(text, partial(_knows, voice))
    known = text if voice.tokenizer.normalize else "".join(one for one in text if one in voice.tokenizer.encoder)
    return voice.tokenizer(known).input_ids
