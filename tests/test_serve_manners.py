"""Speech in the manner that a request asks for: the sound of synthesize.py, whatever is spoken beside it."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from starlette.testclient import TestClient

import serve
import synthesize
from service import site
from service.guard import Access
from service.measures import Measures
from service.site import Site
from service.speech_api import SpeechBody, SpeechService
from speech.dataset import Utterance
from speech.references import with_encoder
from speech.voices import save_voice
from tests.speech.test_prosody import learn, rich_voice
from tests.speech.test_synthesis import loud_voice
from tests.tiny_voices import hum
from utils.cli import Range, UserError

LIVELY = "lively=VOICES/lively.wav"
TEXT = "o rio e a janela. a porta velha"
MANNERS = [  # a request's fields, and synthesize.py's flags
    ({}, []),
    ({"pitch": 1}, ["--pitch", 1]),
    ({"pitch": -2.5, "energy": 6, "speed": 1.5}, ["--pitch", -2.5, "--energy", 6, "--speaking_rate", 1.5]),
    ({"style_token": {"1": 0.2, "0": -0.1}}, ["--style_token", "1:0.2", "--style_token", "0:-0.1"]),
    ({"noise_scale": 1, "noise_scale_duration": 0.1}, ["--noise_scale", 1, "--noise_scale_duration", 0.1]),
    ({"style_reference": "lively"}, ["--style_reference", "VOICES/lively.wav"]),
    ({"voice": "clones/me"}, ["--reference", "VOICES/me_1.wav", "VOICES/me_2.wav"]),
    ({"voice": "clones/rui"}, ["--speaker", "rui"]),
    ({"sentence_pause": 1, "language": "none"}, ["--sentence_pause", 1, "--language", "none"]),
]


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Folders of a voice of two speakers with all manners, of one that listens, and of one without any; recordings."""
    root, rich = tmp_path_factory.mktemp("voices"), rich_voice(2)
    learn(rich, 0.01)
    save_voice(root / "rich", rich)
    save_voice(root / "plain", loud_voice())
    clones = with_encoder(loud_voice(2), "demo", [said("ana"), said("rui")], torch.eye(64)[:2])
    torch.nn.init.normal_(clones.model.read_speaker.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    save_voice(root / "clones", clones)
    for seed, name in enumerate(("me_1", "me_2", "lively")):
        soundfile.write(root / f"{name}.wav", hum("a casa do rio azul", seed=seed), 16_000)
    (root / "damaged.wav").write_bytes((root / "me_1.wav").read_bytes()[:30])
    return root


def said(speaker: str) -> Utterance:
    return Utterance("a", None, "a", speaker, 1.0, 16_000)  # type: ignore[arg-type]


def load(voices, *flags: object, served: str = "rich plain clones") -> SpeechService:
    words = [*(voices / name for name in served.split()), "--num_workers", 2, *flags]
    words = [str(word).replace("VOICES", str(voices)) for word in words]
    return serve.load_speech(serve.parse_args(["--voice", *words]), torch.device("cpu"))


@pytest.fixture(scope="module")
def client(voices):
    flags = ["--reference", "me=VOICES/me_1.wav", "me=VOICES/me_2.wav", "--style_reference", LIVELY]
    speech = load(voices, *flags)
    with TestClient(site.build_app(Site(Measures(), speech=speech), Access("", 1 << 16)), "http://localhost") as one:
        yield one


def ask(client, **fields):
    body = {"input": TEXT, "voice": "rich/rui", "response_format": "wav", **fields}
    return client.post("/v1/audio/speech", json=body)


def sound_of(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="int16")[0]


def test_requests_of_any_manner_at_once_have_the_sound_that_synthesize_gives_each(client, voices, tmp_path):
    with ThreadPoolExecutor(len(MANNERS)) as pool:
        made = list(pool.map(lambda one: ask(client, seed=3, **one[0]).content, MANNERS))
    sounds = []
    for number, (content, (fields, flags)) in enumerate(zip(made, MANNERS)):
        voice = fields.get("voice", "rich/rui").partition("/")[0]
        words = ["--pretrained_model_name_or_path", voices / voice, "--text", TEXT, "--seed", 3]
        words += ["--output_dir", tmp_path / str(number), "--max_retries", 0, *flags]
        words += ["--speaker", "rui"] if voice == "rich" else []
        words = [str(word).replace("VOICES", str(voices)) for word in words]
        assert synthesize.main(synthesize.parse_args(words)) == 0
        sounds.append(sound_of((tmp_path / str(number) / "audio/000000.wav").read_bytes()))
        assert np.array_equal(sound_of(content), sounds[-1]), flags
    assert len({one.tobytes() for one in sounds}) == len(MANNERS)  # each manner is heard


@pytest.mark.parametrize(
    ("voice", "fields", "message"),
    [
        ("plain", {"pitch": 2}, "`pitch` 2: the voice has not learnt it; train it with train_tts.py --prosody"),
        ("plain", {"energy": -3}, "`energy` -3: the voice has not learnt it"),
        ("plain", {"style_token": {"0": 1}}, "`style_token` 0:1.0: the voice knows no styles; train it"),
        ("rich/ana", {"style_token": {"0": 1, "3": 1}}, "`style_token` 0:1.0 3:1.0: the voice has tokens 0 to 2"),
        ("plain", {"style_reference": "lively"}, "`style_reference` lively: the voice knows no styles; train it"),
        ("rich/ana", {"style_reference": "livelier"}, "`style_reference` livelier: there is lively"),
        (
            "rich/ana",
            {"style_reference": "lively", "style_token": {"0": 1}},
            "`style_reference` lively: gives the weights of all tokens; leave `style_token` out",
        ),
        ("rich/ana", {"pitch": 24.5}, "`pitch` 24.5: should be less than or equal to 24"),
        ("rich/ana", {"energy": "loud"}, '`energy` "loud": should be a valid number'),
        ("rich/ana", {"style_token": {"²": 1}}, "`style_token"),
        ("rich/ana", {"language": "fr"}, "`language` fr: expected one of pt-br, en, none"),
    ],
)
def test_what_a_voice_has_not_learnt_is_refused_by_the_field(client, voice, fields, message):
    answer = ask(client, voice=voice, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["message"].startswith(message), error
    assert error["param"].partition(".")[0] in fields and error["code"] == "invalid_value"


def test_the_list_of_voices_says_what_each_takes(client):
    voices = client.get("/v1/audio/voices").json()["voices"]
    rich = (["pitch", "energy", "style_token"], ["lively"])
    assert {one["id"]: (one["takes"], one["styles"]) for one in voices} == {
        **dict.fromkeys(("rich/ana", "rich/rui"), rich),
        **dict.fromkeys(("plain", "clones/ana", "clones/rui", "clones/me"), ([], [])),
    }


@pytest.mark.parametrize(
    ("served", "words", "message"),
    [
        (
            "clones",
            ["--reference", "VOICES/me_1.wav"],
            "--reference .*/me_1.wav: expected a name for requests and a file, as --ref",
        ),
        ("clones", ["--reference", "me=VOICES/damaged.wav"], "--reference: .*/damaged.wav can.t be used"),
        ("clones", ["--reference", "me=VOICES/none.wav"], "--reference: .*/none.wav can.t be used: .*No such file"),
        (
            "clones",
            ["--reference", "rui=VOICES/me_1.wav"],
            "--reference rui=.*: clones has a speaker of this name; give another",
        ),
        (
            "plain",
            ["--reference", "me=VOICES/me_1.wav"],
            "--reference .*/me_1.wav: this voice does not listen to recordings",
        ),
        ("plain", ["--style_reference", LIVELY], "--style_reference .*/lively.wav: the voice knows no styles"),
        ("rich", ["--style_reference", LIVELY, "lively=x"], "--style_reference lively=x: a style is that of one rec"),
        ("rich", ["--style_reference", "a=VOICES/damaged.wav"], "--style_reference: .*/damaged.wav can.t be used"),
    ],
)
def test_references_that_can_not_be_are_refused_at_the_start(voices, served, words, message):
    with pytest.raises(UserError, match=message):
        load(voices, *words, served=served)


def test_fields_have_the_ranges_and_defaults_of_the_flags():
    flags = {one.dest: one for one in synthesize.make_parser()._actions}
    facts = SpeechBody.model_json_schema()["properties"]
    for name in ("pitch", "energy", "noise_scale", "noise_scale_duration", "sentence_pause"):
        field = facts[name].get("anyOf", [facts[name]])[0]
        assert (field["minimum"], field["maximum"]) == (flags[name].type.low, flags[name].type.high), name
        assert isinstance(flags[name].type, Range) and facts[name]["default"] == flags[name].default, name
