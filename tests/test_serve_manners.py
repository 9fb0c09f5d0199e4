"""Speech in the manner that a request asks for: the sound of synthesize.py, whatever is spoken beside it."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

import serve
import synthesize
from service import site
from service.guard import Access
from service.measures import Measures
from service.site import Site
from service.speech_api import SpeechBody
from speech.voices import save_voice
from tests.speech.test_prosody import learn, rich_voice
from tests.speech.test_synthesis import loud_voice
from utils.cli import Range

TEXT = "o rio e a janela. a porta velha"
MANNERS = [  # a request's fields, and synthesize.py's flags
    ({}, []),
    ({"pitch": 1}, ["--pitch", 1]),
    ({"pitch": -2.5, "energy": 6, "speed": 1.5}, ["--pitch", -2.5, "--energy", 6, "--speaking_rate", 1.5]),
    ({"style_token": {"1": 0.2, "0": -0.1}}, ["--style_token", "1:0.2", "--style_token", "0:-0.1"]),
    ({"noise_scale": 1, "noise_scale_duration": 0.1}, ["--noise_scale", 1, "--noise_scale_duration", 0.1]),
    ({"sentence_pause": 1, "language": "none"}, ["--sentence_pause", 1, "--language", "none"]),
]


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Folders of a voice of two speakers with all manners, and of one without any."""
    root, rich = tmp_path_factory.mktemp("voices"), rich_voice(2)
    learn(rich)
    save_voice(root / "rich", rich)
    save_voice(root / "plain", loud_voice())
    return root


@pytest.fixture(scope="module")
def client(voices):
    args = serve.parse_args(["--voice", str(voices / "rich"), str(voices / "plain"), "--num_workers", "2"])
    speech = serve.load_speech(args, serve.torch.device("cpu"))
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
    for number, (content, (_, flags)) in enumerate(zip(made, MANNERS)):
        words = ["--pretrained_model_name_or_path", voices / "rich", "--speaker", "rui", "--text", TEXT, "--seed", 3]
        words += ["--output_dir", tmp_path / str(number), "--max_retries", 0, *flags]
        assert synthesize.main(synthesize.parse_args([str(word) for word in words])) == 0
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
    assert {one["id"]: one["takes"] for one in voices} == {
        "rich/ana": ["pitch", "energy", "style_token"],
        "rich/rui": ["pitch", "energy", "style_token"],
        "plain": [],
    }


def test_fields_have_the_ranges_and_defaults_of_the_flags():
    flags = {one.dest: one for one in synthesize.make_parser()._actions}
    facts = SpeechBody.model_json_schema()["properties"]
    for name in ("pitch", "energy", "noise_scale", "noise_scale_duration", "sentence_pause"):
        field = facts[name].get("anyOf", [facts[name]])[0]
        assert (field["minimum"], field["maximum"]) == (flags[name].type.low, flags[name].type.high), name
        assert isinstance(flags[name].type, Range) and facts[name]["default"] == flags[name].default, name
