"""evaluate_speech.py from end to end, on a voice too small to speak and sounds that are known."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import evaluate_speech
from evaluation.human_study import merge_ratings
from speech.audio import read_sound
from speech.normalise import plain_text
from speech.voices import save_voice
from tests.browser import open_browser, open_page
from tests.tiny_voices import RATE, SPEAKERS, hum, tiny_voice, write_speech
from utils.cli import UserError
from utils.files import file_sha256

ROOT = Path(__file__).resolve().parent.parent
N = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/test of two speakers, two voices, and sets that were spoken: the recordings again, and higher ones."""
    root = tmp_path_factory.mktemp("speech")
    write_speech(root / "data", 2, N, SPEAKERS)
    for seed in (0, 1):
        save_voice(root / f"voice{seed}", tiny_voice(seed, 2))
    for name, ratio in (("same", 1.0), ("higher", 2 ** (3 / 12))):
        write_set(root / name, root / "data/test", ratio)
    return root


def write_set(folder, split, ratio):
    """A set as synthesize.py makes it: each sentence as it was recorded, but higher and faster by `ratio`."""
    (folder / "audio").mkdir(parents=True)
    rows = [json.loads(line) for line in (split / "metadata.jsonl").read_text().splitlines()]
    made = []
    for i, row in enumerate(rows):
        sound = read_sound(split / row["file_name"], "x").samples
        times = np.arange(0, len(sound) - 1, ratio)
        soundfile.write(folder / f"audio/{i:06d}.wav", np.interp(times, np.arange(len(sound)), sound), RATE)
        made.append({"file_name": f"audio/{i:06d}.wav", "id": f"line{i}", "text": row["text"].upper() + "!"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in reversed(made)))


def evaluate(words):
    args = evaluate_speech.parse_args(words.split())
    return evaluate_speech.main(args)


def run(place, out, more="", voice=0):
    source = (
        f"--pretrained_model_name_or_path {place}/voice{voice}" if isinstance(voice, int) else f"--generated {voice}"
    )
    judges = "" if "--asr" in more else "--asr none --speaker_encoder none"
    evaluate(f"--real {place}/data/test {source} --num_workers 1 --resamples 50 {judges} --output_dir {out} {more}")
    return json.loads((out / "metrics.json").read_text())


def figures(metrics):
    return {one["id"]: one for one in metrics["figures"]}


@pytest.fixture(scope="module")
def runs(place):
    return {name: run(place, place / f"runs/{name}", voice=place / name) for name in ("same", "higher")}


def test_recordings_that_are_spoken_again_have_no_distance_from_themselves(runs):
    found = figures(runs["same"])
    assert found["mcd"]["value"] < 0.1 and found["duration_error"]["value"] < 0.01 and found["mcd"]["n"] == N
    assert found["f0_rmse"]["value"] < 0.01 and found["f0_correlation"]["value"] > 0.99
    assert "real_time_factor" not in found and runs["same"]["sets"]["generated"]["n"] == N


def test_a_voice_that_is_higher_and_faster_is_measured_as_that(runs):
    found = figures(runs["higher"])
    assert found["length"]["value"] == pytest.approx(2 ** (-3 / 12), abs=0.02)
    assert found["f0_rmse"]["value"] == pytest.approx(3 * np.log(2) / 12, abs=0.06)
    assert found["mcd"]["low"] > figures(runs["same"])["mcd"]["high"]


def test_a_second_run_computes_nothing_and_a_damaged_sound_is_made_again(place, tmp_path, caplog):
    out = tmp_path / "out"
    first = run(place, out)
    sounds = {path.name: path.stat().st_mtime_ns for path in (out / "audio").glob("*.flac")}
    shards = sorted((out / "features").rglob("*.safetensors"))
    assert len(sounds) == 2 * N and first["frame_rate"] == 62.5 and "copy" in figures(first)["mcd"]["beside"]
    damaged = out / first["utterances"][3]["sounds"]["copy"]["file"]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    second = run(place, out)
    assert second["figures"] == first["figures"] and second["utterances"] == first["utterances"]
    assert f"{damaged.name} is damaged" in caplog.text and "1 damaged, computed again" in caplog.text
    same = [name for name, time in sounds.items() if (out / "audio" / name).stat().st_mtime_ns == time]
    assert len(same) == 2 * N - 1
    with pytest.raises(UserError, match="contains the evaluation of .*voice0, now .*voice1.*--overwrite"):
        run(place, out, voice=1)


def test_each_recording_is_spoken_by_its_own_speaker(place, tmp_path):
    own, one = run(place, tmp_path / "own"), run(place, tmp_path / "one", f"--speaker {SPEAKERS[0]}")
    same = [
        a["sounds"]["generated"]["sha256"] == b["sounds"]["generated"]["sha256"]
        for a, b in zip(own["utterances"], one["utterances"])
    ]
    assert same == [row["speaker"] == SPEAKERS[0] for row in own["utterances"]] and 0 < sum(same) < N


def test_errors_are_counted_between_plain_texts():
    found = evaluate_speech.count_errors("São 3 gatos!", "são três   ratos", "pt-br")
    assert (found["character_edits"], found["word_edits"]) == (1, 1)
    assert plain_text("Guarda-chuva, já!", "xx") == "guarda chuva já"


def test_a_generated_sound_of_another_rate_than_the_others_is_refused(tmp_path):
    for name, rate in (("real", RATE), ("other", 8000)):
        soundfile.write(tmp_path / f"{name}.wav", hum("casa"), rate)
    with pytest.raises(UserError, match="--generated: .*other.wav has 8,000 samples a second, its recording 16,000"):
        evaluate_speech.measure_pair((tmp_path / "real.wav", tmp_path / "other.wav"))


def test_likeness_is_to_the_other_recordings_of_the_speaker(place):
    sentences = evaluate_speech.read_real(place / "data/test")
    vectors = np.eye(2)[[SPEAKERS.index(one.real.speaker) for one in sentences]]
    found = evaluate_speech.compare_speakers(sentences, {"real": vectors, "generated": vectors[::-1]})
    assert found["real"] == [1.0] * N and found["generated"] == [0.0] * N  # the speakers take turns
    alone = evaluate_speech.compare_speakers(sentences[:2], {"real": vectors[:2]})
    assert alone["real"] == [None, None]


@pytest.mark.very_slow
def test_a_killed_evaluation_goes_on(place, tmp_path):
    words = f"--real {place}/data/test --pretrained_model_name_or_path {place}/voice0 --asr none --speaker_encoder none"
    words = [sys.executable, "evaluate_speech.py", *words.split(), "--resamples", "50", "--output_dir"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    started = subprocess.Popen([*words, str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while started.poll() is None and len(list(out.glob("audio/*.flac"))) < 5:
        os.sched_yield()
    started.send_signal(signal.SIGKILL)
    started.communicate()
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("audio/*.flac")}
    kept = {json.loads(line)["file"] for line in (out / "audio/sounds.jsonl").read_text().splitlines()[:-1]}
    assert not (out / "metrics.json").exists() and kept
    for folder in (out, whole):
        subprocess.run([*words, str(folder)], cwd=ROOT, check=True, capture_output=True)
    assert all((out / "audio" / name).stat().st_mtime_ns == made[name] for name in kept)
    for row in json.loads((whole / "metrics.json").read_text())["utterances"]:
        for sound in (row["sounds"]["generated"], row["sounds"]["copy"]):
            assert file_sha256(out / sound["file"]) == sound["sha256"]


def test_runs_are_compared_over_the_same_sentences(place, runs, capsys):
    out = place / "comparison"
    evaluate(f"--compare {place}/runs/same {place}/runs/higher --resamples 50 --output_dir {out}")
    said = capsys.readouterr().out
    assert "higher: worse in" in said and "12 sentences are few" in said
    page = (out / "comparison.html").read_text()
    assert page.count("<audio") == 9 and "higher − same" in page
    with pytest.raises(UserError, match="takes 2 to 6 evaluations, found 1"):
        evaluate(f"--compare {place}/runs/same --output_dir {out}")


def test_bad_input_is_one_line_that_names_it(place, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    shutil.copytree(place / "same", other)
    lines = [json.loads(line) | {"text": "outra frase"} for line in (other / "metadata.jsonl").read_text().splitlines()]
    (other / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    slow = tmp_path / "slow"
    (slow / "audio").mkdir(parents=True)
    for i in range(2):
        soundfile.write(slow / f"audio/{i}.wav", hum("casa"), 8000)
    rows = [{"file_name": f"audio/{i}.wav", "text": "casa"} for i in range(2)]
    (slow / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    real, voice = f"--real {place}/data/test", f"--pretrained_model_name_or_path {place}/voice0"
    for words, message in {
        f"--real {empty} {voice}": r"--real .*empty",
        f"{real} --generated {empty}": r"--generated .*empty: has no metadata.jsonl; .*that synthesize.py made",
        f"{real} --generated {other}": "has 0 sentences of the 12 of --real.*synthesize.py --text_file",
        f"{real} --pretrained_model_name_or_path {place}/data": "does not contain a complete VITS voice",
        f"--real {slow} {voice}": "8,000 samples a second, the voice speaks with 16,000; prepare",
        f"{real} {voice} --speaker zoe": "--speaker zoe: the voice has no such speaker",
        "--ratings x.json": "metrics.json: No such file",
        "--listening_test 4": "metrics.json: No such file",
    }.items():
        judges = "--asr none --speaker_encoder none" if "--real" in words else ""
        with pytest.raises(UserError, match=message):
            evaluate(f"{words} {judges} --output_dir {tmp_path / 'out'}")
        assert not (tmp_path / "out").exists(), words


@pytest.mark.parametrize(
    "words, message",
    [
        ("--real r --output_dir o", "give one of --pretrained_model_name_or_path"),
        ("--real r --generated g --pretrained_model_name_or_path v --output_dir o", "give one of"),
        ("--generated g --output_dir o", "missing: --real"),
        ("--real r --generated g --speaking_rate 2 --output_dir o", "--speaking_rate 2.0: does nothing without"),
        ("--real r --generated g --against a --output_dir o", "--against a: does nothing without --listening_test"),
        ("--listening_test 5 --output_dir o --dry_run", "--listening_test 5: expected an even number, half of them"),
        ("--compare a b --asr demo --output_dir o", "--asr demo: does nothing without an evaluation"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        evaluate_speech.parse_args(words.split())
    assert message in capsys.readouterr().err


def test_the_listening_page_gives_nothing_away_and_its_answers_are_read_back(place, runs, tmp_path):
    out = place / "runs/higher"
    with pytest.raises(UserError, match="--listening_test 26: there are 12 sentences; ask for 24 or fewer"):
        evaluate(f"--listening_test 26 --output_dir {out} --dry_run")
    with pytest.raises(UserError, match="5 voices of --against need 2 pairs each; ask for 10 or more"):
        evaluate(f"--listening_test 8 --against a b c d e --output_dir {out} --dry_run")
    with pytest.raises(UserError, match="--against: 12 sentences that all of 8 voices say, but 7 others need 2 pairs"):
        evaluate(f"--listening_test 14 --against {' '.join([f'{place}/runs/same/'] * 7)} --output_dir {out} --dry_run")
    shutil.copytree(place / "runs/same", place / "runs/third")
    evaluate(f"--listening_test 8 --against {place}/runs/same {place}/runs/third --output_dir {out}")
    text, key = (out / "listening.html").read_text(), json.loads((out / "listening_key.json").read_text())
    kinds = [one["kind"] for one in key["items"]]
    assert sorted(kinds) == ["generated"] * 4 + ["pair"] * 8 + ["real"] * 4 and kinds != sorted(kinds)
    assert not re.search(r"higher|same/|third|\.wav|00200", text)
    with open_browser() as browser:
        with open_page(browser, out / "report.html", 1280) as page:
            page.wait_for_function("[...document.querySelectorAll('audio')].every(one => one.readyState > 0)")
            assert page.evaluate("[...document.querySelectorAll('audio')].every(one => one.duration > 0.3)")
            assert page.locator("audio").count() == 18 and page.locator(".sound img").count() == 18
        with open_page(browser, out / "listening.html", 390) as page:
            page.click("#begin")
            for i, item in enumerate(key["items"], 1):
                assert page.locator("audio:visible").count() == len(item["files"])
                page.wait_for_function("[...document.querySelectorAll('audio[src]')].every(one => one.readyState > 0)")
                if item["kind"] == "pair":
                    wanted = "against" if item["against"].endswith("same") else "generated"
                    page.keyboard.press("a" if item["first"] == wanted else "b")
                else:
                    page.keyboard.press("5" if item["kind"] == "real" else "2")
                    page.keyboard.press("r" if item["kind"] == "real" else "g")
                page.locator("#place" if i < 16 else "#thanks", has_text=f"{i + 1} of" if i < 16 else "").wait_for()
            with page.expect_download() as download:
                page.click("#download")
            download.value.save_as(tmp_path / "answers.json")
    evaluate(f"--ratings {tmp_path}/answers.json --output_dir {out}")
    human = json.loads((out / "metrics.json").read_text())["human"]
    assert human["mean"]["real"]["value"] == 5 and human["mean"]["generated"]["value"] == 2
    assert [one["value"] for one in human["preferences"]] == [0, 1] and human["told"]["value"] == 1
    assert human["preferences"][0]["p"] == pytest.approx(2 * 0.5**4)
    assert [one["verdict"] for one in human["preferences"]] == ["the other is preferred", "preferred"]
    assert "mean opinion 2" in (out / "report.html").read_text()
    torn = json.loads((tmp_path / "answers.json").read_text())
    torn["answers"][kinds.index("pair")]["preference"] = "c"
    (tmp_path / "torn.json").write_text(json.dumps(torn))
    with pytest.raises(UserError, match="or preference a, b or none; found"):
        merge_ratings(out / "listening_key.json", [tmp_path / "torn.json"])
