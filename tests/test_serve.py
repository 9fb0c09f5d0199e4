"""serve.py as its clients see it: OpenAI's own client against a server in another process, with the demo's model."""

import base64
import concurrent.futures
import contextlib
import io
import json
import re
import socket
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import soundfile
from PIL import Image

import generate
import serve
import synthesize
from service.measures import Measures
from service.site import Site
from tests.serving import ROOT, served
from tests.test_generate import write_lora

pytestmark = pytest.mark.slow
STEPS = 3
PROMPT = "a product photo of red casual shoes"
TEXT = "Bom dia! São 10 horas. A casa é azul."
TOKEN = "a-token-of-a-test-42"


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    root = tmp_path_factory.mktemp("loras")
    return [write_lora(root / name, seed) for seed, name in enumerate(("shoes", "boots"))]


@pytest.fixture(scope="module")
def server(loras, tmp_path_factory):
    flags = ["--lora", f"{loras[0]}:0.7", f"high={loras[1]}", "--voice", "demo-voice", "--max_waiting", 12]
    flags += ["--max_steps", 50, "--max_images", 4, "--timeout", 60, "--max_body", 32]
    with served(tmp_path_factory.mktemp("server"), *flags) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def make(client, prompt=PROMPT, n=1, model="demo", size=None, **more) -> list[np.ndarray]:
    more = {"steps": STEPS, "seed": 0, **more}
    options = {} if size is None else {"size": size}
    found = client.images.generate(
        prompt=prompt, n=n, model=model, response_format="b64_json", extra_body=more, **options
    )
    return [pixels(base64.b64decode(one.b64_json)) for one in found.data]


def generated(folder, *flags: object) -> list[np.ndarray]:
    """What generate.py makes of the same."""
    words = ["--pretrained_model_name_or_path", "demo", "--prompt", PROMPT, "--num_inference_steps", STEPS]
    words += ["--max_retries", 0, "--output_dir", folder, *flags]
    with contextlib.suppress(generate.UserError):  # it rejects the noise that three steps make, and keeps it apart
        generate.main(generate.parse_args([str(word) for word in words]))
    files = sorted(folder.glob("images/*.png")) + sorted(folder.glob("rejected/*.png"))
    return [np.asarray(Image.open(path)) for path in sorted(files, key=lambda path: int(path.stem.partition("-")[0]))]


def post(server, path: str, body: bytes, **headers: str) -> tuple[int, dict, dict]:
    request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


def get(url: str, **headers: str) -> tuple[int, bytes, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def measure(server, name: str) -> float:
    text = get(f"{server.url}/metrics")[1].decode()
    return float(re.search(rf"^accelerate_serve_{name} (\S+)$", text, re.MULTILINE)[1])


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Images


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_the_same_seed_is_the_same_image_as_of_generate(client, tmp_path, guidance):
    (mine,) = make(client, seed=5, guidance_scale=guidance)
    (theirs,) = generated(tmp_path / "set", "--seed", 5, "--guidance_scale", guidance)
    assert np.array_equal(mine, theirs) and mine.shape == (128, 128, 3) and mine.std() > 5


def test_each_image_of_a_request_has_the_next_seed_and_a_size_is_followed(client, tmp_path):
    mine = make(client, n=3, seed=7, size="64x64", negative_prompt="blue")
    flags = ["--seed", 7, "--num_images", 3, "--resolution", 64, "--negative_prompt", "blue"]
    theirs = generated(tmp_path / "set", *flags)
    assert len(mine) == len(theirs) == 3
    for made, other in zip(mine, theirs):  # shared among threads in another way, the last bit may differ
        assert np.abs(made.astype(int) - other).max() <= 1


def test_loras_are_switched_and_mixed_as_in_generate(client, loras, tmp_path):
    wanted = {
        "shoes": ({"model": "shoes"}, ["--lora", f"{loras[0]}:0.7"]),
        "mixed": ({"lora": {"high": 0.4, "shoes": 0.9}}, ["--lora", f"{loras[1]}:0.4", f"{loras[0]}:0.9"]),
        "base": ({"lora": {}}, []),
    }
    found = {name: make(client, **more)[0] for name, (more, _) in wanted.items()}
    for name, (more, flags) in wanted.items():
        (theirs,) = generated(tmp_path / name, *flags)
        assert np.array_equal(found[name], theirs), name
        assert np.array_equal(make(client, **more)[0], theirs), name  # again, after the others
    assert not np.array_equal(found["shoes"], found["mixed"]) and not np.array_equal(found["shoes"], found["base"])
    assert np.array_equal(make(client, model=None)[0], found["shoes"])  # the first LoRA is the default


def test_an_image_has_an_address_that_opens_once_made(client, server):
    found = client.images.generate(prompt=PROMPT, model="demo", extra_body={"seed": 5, "steps": STEPS})
    status, content, headers = get(found.data[0].url)
    assert status == 200 and headers["content-type"] == "image/png"
    assert np.array_equal(pixels(content), make(client, seed=5)[0])
    said = Image.open(io.BytesIO(content)).info
    assert said["parameters"].startswith(f"{PROMPT}\nSteps: {STEPS}, ") and ", Seed: 5, " in said["parameters"]
    assert "/trainedAlgorithmicMedia" in said["XML:com.adobe.xmp"]
    assert get(f"{server.url}/files/unknown.png")[0] == 404


def test_without_a_seed_images_differ_and_their_seeds_are_named(client):
    first, second = (client.images.generate(prompt=PROMPT, model="demo", extra_body={"steps": STEPS}) for _ in "ab")
    seeds = [one.data[0].seed for one in (first, second)]
    assert seeds[0] != seeds[1]
    content = get(first.data[0].url)[1]
    assert np.array_equal(pixels(content), make(client, seed=seeds[0])[0])


def test_progress_comes_as_events_before_the_image(client):
    events = list(
        client.images.generate(
            prompt=PROMPT, model="demo", stream=True, response_format="b64_json", extra_body={"seed": 5, "steps": 6}
        )
    )
    kinds = [event.type.partition(".")[2] for event in events]
    assert kinds == ["queued", *["progress"] * 6, "completed"]
    assert [event.step for event in events[1:-1]] == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(pixels(base64.b64decode(events[-1].b64_json)), make(client, seed=5, steps=6)[0])


def test_a_prompt_that_is_cut_off_gives_a_warning(client):
    found = client.images.generate(prompt="red shoes " * 60, model="demo", extra_body={"steps": 1})
    assert "`prompt` is longer" in found.warnings[0]
    assert not hasattr(client.images.generate(prompt="red", model="demo", extra_body={"steps": 1}), "warnings")


def test_requests_of_the_same_settings_are_made_in_one_batch(client, server):
    before = measure(server, "images_total"), measure(server, "image_batches_total")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda seed: make(client, seed=seed, steps=8)[0], range(8)))
    images, batches = (
        measure(server, name) - then for name, then in zip(("images_total", "image_batches_total"), before)
    )
    assert images == 8 and batches <= 4
    for seed in (0, 7):  # which changes no more than rounding does
        alone = make(client, seed=seed, steps=8)[0]
        assert np.abs(alone.astype(int) - made[seed]).max() <= 1


# Speech


def spoken(client, kind: str, voice="demo-voice/davi", text=TEXT, **more) -> bytes:
    return client.audio.speech.create(model="demo-voice", voice=voice, input=text, response_format=kind, **more).read()


@pytest.fixture(scope="module")
def synthesized(tmp_path_factory):
    def speak(*flags: object) -> bytes:
        out = tmp_path_factory.mktemp("spoken") / "set"
        words = ["--pretrained_model_name_or_path", "demo-voice", "--text", TEXT, "--output_dir", out, *flags]
        assert synthesize.main(synthesize.parse_args([str(word) for word in words])) == 0
        return next((out / "audio").iterdir()).read_bytes()

    return speak


def test_the_same_seed_is_the_same_sound_as_of_synthesize(client, synthesized):
    mine, rate = soundfile.read(io.BytesIO(spoken(client, "wav")), dtype="int16")
    theirs, its_rate = soundfile.read(io.BytesIO(synthesized("--speaker", "davi")), dtype="int16")
    assert rate == its_rate and np.array_equal(mine, theirs) and len(mine) > rate
    fast = spoken(client, "wav", voice="demo-voice/clara", speed=1.5, extra_body={"seed": 9})
    theirs = synthesized("--speaker", "clara", "--seed", 9, "--speaking_rate", 1.5)
    assert np.array_equal(soundfile.read(io.BytesIO(fast))[0], soundfile.read(io.BytesIO(theirs))[0])


def test_every_format_holds_the_same_sound(client, synthesized):
    plain, rate = soundfile.read(io.BytesIO(spoken(client, "wav")))
    assert spoken(client, "flac") == synthesized("--speaker", "davi", "--format", "flac")
    for kind in ("mp3", "opus"):
        found, its_rate = soundfile.read(io.BytesIO(spoken(client, kind)))
        assert its_rate == rate and abs(len(found) / len(plain) - 1) < 0.1
        assert abs(found.std() / plain.std() - 1) < 0.1
    raw = np.frombuffer(spoken(client, "pcm"), "<i2")
    assert abs(len(raw) / 24_000 - len(plain) / rate) < 0.01 and abs(raw.std() / 32768 / plain.std() - 1) < 0.05


def test_sentences_are_sent_as_they_are_spoken(client):
    text = " ".join(f"Esta é a frase de número {number}, e ela não é curta." for number in range(12))
    began, times = time.monotonic(), []
    with client.audio.speech.with_streaming_response.create(
        model="demo-voice", voice="demo-voice/davi", input=text, response_format="pcm"
    ) as answer:
        for _ in answer.iter_bytes():
            times.append(time.monotonic() - began)
    assert len(times) > 5 and times[0] < times[-1] / 3


# Refusals


REFUSED = [
    ("images/generations", {}, 400, "prompt"),
    ("images/generations", {"prompt": "x", "n": 5}, 400, "n"),
    ("images/generations", {"prompt": "x", "n": 0}, 400, "n"),
    ("images/generations", {"prompt": "x", "steps": 51}, 400, "steps"),
    ("images/generations", {"prompt": "x", "size": "512x512"}, 400, "size"),
    ("images/generations", {"prompt": "x", "size": "64x32"}, 400, "size"),
    ("images/generations", {"prompt": "x", "size": "60x60"}, 400, "size"),
    ("images/generations", {"prompt": "x", "size": "²x²"}, 400, "size"),
    ("images/generations", {"prompt": "x", "model": "../../etc"}, 404, "model"),
    ("images/generations", {"prompt": "x", "lora": {"/etc/passwd": 1}}, 400, "lora"),
    ("images/generations", {"prompt": "x", "lora": {"shoes": 11}}, 400, "lora.shoes"),
    ("images/generations", {"prompt": "x" * 4001}, 400, "prompt"),
    ("images/generations", {"prompt": "x", "style": "vivid"}, 400, "style"),
    ("images/generations", {"prompt": "x", "seed": -1}, 400, "seed"),
    ("audio/speech", {"input": "x", "voice": "nobody"}, 400, "voice"),
    ("audio/speech", {"input": "x" * 4097, "voice": "demo-voice/davi"}, 400, "input"),
    ("audio/speech", {"input": "…", "voice": "demo-voice/davi"}, 400, "input"),
    ("audio/speech", {"input": "x", "voice": "demo-voice/davi", "speed": 5}, 400, "speed"),
    ("audio/speech", {"input": "x", "voice": "demo-voice/davi", "response_format": "aac"}, 400, "response_format"),
    ("audio/speech", {"input": "x", "voice": "demo-voice/davi", "model": "tts-9"}, 404, "model"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), REFUSED)
def test_what_is_not_possible_is_refused_by_name_in_the_shape_of_openai(server, path, body, status, param):
    found, answer, _ = post(server, f"/v1/{path}", json.dumps(body).encode())
    assert found == status and answer["error"]["param"] == param, answer
    assert answer["error"].keys() == {"message", "type", "param", "code"} and answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error" and str(ROOT) not in answer["error"]["message"]


def test_a_body_that_is_too_large_no_json_or_of_a_form_is_refused(server):
    path = "/v1/images/generations"
    assert post(server, path, b"{")[0] == 400
    assert post(server, path, b"[" * 30_000)[0] == 400
    assert post(server, path, b'{"prompt": NaN}')[0] == 400
    assert post(server, path, json.dumps({"prompt": "x" * 40_000}).encode())[0] == 413
    status, answer, _ = post(server, path, b"prompt=x", **{"Content-Type": "application/x-www-form-urlencoded"})
    assert status == 415 and answer["error"]["code"] == "invalid_content_type"


def test_a_body_without_a_stated_length_is_limited_too(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
        one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        for _ in range(40):
            one.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert b" 413 " in one.recv(200)


def test_pages_of_other_servers_and_other_names_of_this_one_are_refused(server):
    body = json.dumps({"prompt": "x", "steps": 1}).encode()
    assert post(server, "/v1/images/generations", body, Origin="https://evil.example")[0] == 403
    assert post(server, "/v1/images/generations", body, Origin=server.url)[0] == 200
    assert get(f"{server.url}/v1/models", Host="evil.example")[0] == 403
    headers = get(f"{server.url}/v1/models", Origin="https://evil.example")[2]
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_models_voices_health_and_the_api_page(client, server):
    assert [one.id for one in client.models.list()] == ["demo", "shoes", "high", "demo-voice"]
    assert client.models.retrieve("shoes").owned_by == "lora"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    voices = json.loads(get(f"{server.url}/v1/audio/voices")[1])["voices"]
    assert [one["id"] for one in voices] == ["demo-voice/clara", "demo-voice/davi"]
    assert json.loads(get(f"{server.url}/health")[1]) == {"status": "ok"}
    page = get(f"{server.url}/docs")[1].decode()
    assert "/v1/images/generations" in page and "guidance_scale" in page and "/v1/audio/speech" in page
    assert not re.search(r"(src|href)=.?(https?:)?//(?!127\.0\.0\.1)", page)


def test_metrics_are_prometheus_text(server):
    lines = get(f"{server.url}/metrics")[1].decode().splitlines()
    sample = re.compile(r'accelerate_serve_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+')
    assert all(
        line.startswith(("# HELP accelerate_serve_", "# TYPE accelerate_serve_")) or sample.fullmatch(line)
        for line in lines
    )
    assert any('route="/v1/models",status="200"' in line for line in lines)


# Load


def test_a_client_that_leaves_frees_its_place(server):
    before, body = measure(server, "images_cancelled_total"), json.dumps({"prompt": "x", "n": 4, "steps": 50}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(2):
        with socket.create_connection((host, int(port)), timeout=10) as one:
            head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
            one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            time.sleep(0.5)
    wait_for(lambda: measure(server, "images_cancelled_total") == before + 8)
    assert measure(server, "images_waiting") == 0


def test_a_speech_client_that_leaves_frees_its_place(server):
    body = json.dumps({"input": TEXT * 80, "voice": "demo-voice/davi", "response_format": "pcm"}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert b" 200 " in one.recv(100)
        assert measure(server, "speech_requests_now") == 1
    wait_for(lambda: measure(server, "speech_requests_now") == 0)


# Starting and stopping


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ("--voice demo-voice --host 0.0.0.0", "", "--host 0.0.0.0: others can reach it, so the environment must have"),
        ("--voice demo-voice", "short", "SERVE_API_TOKEN: expected 16 or more"),
        ("--voice demo-voice --port PORT", "", "--port PORT: Address already in use"),
        ("--voice demo-voice --host 192.0.2.1", TOKEN, "--host 192.0.2.1 --port 8000: Cannot assign"),
    ],
)
def test_a_start_that_can_not_be_is_refused(server, monkeypatch, words, token, said):
    monkeypatch.setenv("SERVE_API_TOKEN", token)
    port = server.url.rpartition(":")[2]
    with pytest.raises(serve.UserError, match=said.replace("PORT", port)):
        serve.main(serve.parse_args(words.replace("PORT", port).split()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "there is nothing to serve"),
        ("--voice demo-voice --batch_size 2", "--batch_size 2: does nothing without a model of images"),
        (
            "--pretrained_model_name_or_path demo --mixes_in_memory 3",
            "--mixes_in_memory 3: does nothing without --lora",
        ),
        ("--pretrained_model_name_or_path demo --num_workers 3", "--num_workers 3: does nothing without --voice"),
        ("--watch tests --timeout 9", "--timeout 9.0: does nothing without a model of images or --voice"),
        ("--watch tests --max_waiting 9", "--max_waiting 9: does nothing without a model of images or --voice"),
        ("--watch missing", "--watch missing: no such folder"),
        ("--watch README.md", "--watch README.md: is a file"),
        ("--voice a/x b/x", "--voice: two are called x; name one of them, as --voice other=a/x"),
        ("--voice demo-voice --cors_origin example.org", "--cors_origin example.org: expected a scheme"),
    ],
)
def test_flags_that_can_not_be_are_refused(words, said, capsys):
    with pytest.raises((SystemExit, serve.UserError)) as error:
        serve.main(serve.parse_args([*words.split(), "--dry_run"]))
    assert said in capsys.readouterr().err + str(error.value)


def test_a_stop_closes_the_queue_of_images_and_that_of_speech():
    closed = []
    images, speech = (SimpleNamespace(close=lambda name=name: closed.append(name)) for name in ("images", "speech"))
    serve.stop(Site(Measures(), SimpleNamespace(queue=images), speech))
    assert closed == ["images", "speech"]
    serve.stop(Site(Measures()))
