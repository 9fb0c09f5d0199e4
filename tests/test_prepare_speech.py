"""The user's path: recordings with every kind of damage in, a dataset out, and the same command again."""

import json
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

import prepare_speech
from demo.voice_corpus import HELD_BACK
from speech.audio import decode_sound, speech_level
from speech.dataset import read_language, read_metadata, read_utterances
from speech.processing import Handling, work_folder
from tests.tiny_recognisers import save_ctc
from tests.toy_speech import toy_speech
from utils.cli import UserError
from utils.dataset import SPLITS

RATE = 22_050
GOOD = 14


def prepare(source: Path, output: Path, *flags: str, workers: int = 1) -> int:
    words = ["--recordings", str(source), "--output_dir", str(output), "--num_workers", str(workers), *flags]
    return prepare_speech.main(prepare_speech.parse_args(words))


def sentence(i: int) -> str:
    return f"Esta é a frase {i} deste livro."


def write_sounds(folder: Path) -> dict[str, str]:
    """Recordings in LJSpeech's layout, one with each kind of damage; {id: reason} of those that are left out."""
    (folder / "wavs").mkdir(parents=True)
    rows = [(f"s{i:02}", sentence(i)) for i in range(GOOD)]
    for i, (name, _) in enumerate(rows):
        soundfile.write(folder / f"wavs/{name}.wav", toy_speech(1.8, i, RATE), RATE)
    whole = (folder / "wavs/s00.wav").read_bytes()
    silence, long = np.zeros(RATE), np.tile(toy_speech(1.8, 9, RATE), 12)
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE)
    soundfile.write(folder / "wavs/stereo.wav", np.stack([toy_speech(1.8, 50, 96_000)] * 2, 1), 96_000)
    damage = {
        "truncated": whole[:20_000],
        "empty file": b"",
        "not audio": b"This is a text that was named as a sound.",
        "silent": (silence, RATE),
        "no speech": (noise, RATE),
        "too long": (long, RATE),
        "rate too low": (toy_speech(1.8, 51, 8_000), 8_000),
        "text too long for the sound": (toy_speech(1.8, 52, RATE), RATE),
        "text without a letter": (toy_speech(1.8, 53, RATE), RATE),
        "duplicate": (0.5 * toy_speech(1.8, 0, RATE), RATE),
    }
    texts = {
        "text too long for the sound": "uma frase que ninguém diz em um segundo e meio, " * 2,
        "text without a letter": "…!",
        "duplicate": sentence(0),
        "too long": "uma frase muito comprida " * 12,
    }
    for reason, content in damage.items():
        name = reason.replace(" ", "_")
        path = folder / f"wavs/{name}.wav"
        path.write_bytes(content) if isinstance(content, bytes) else soundfile.write(path, *content)
        rows.append((name, texts.get(reason, f"Aqui há um som do tipo {name}.")))
    rows += [("stereo", "Este som tem dois canais."), ("nowhere", "Este som não existe.")]
    (folder / "metadata.csv").write_text("".join(f"{name}|{text}|\n" for name, text in rows) + "torn\n")
    return {reason.replace(" ", "_"): reason for reason in damage} | {
        "nowhere": "no sound",
        "torn": "row can't be read",
    }


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "corpus"
    return folder, write_sounds(folder)


@pytest.fixture(scope="module")
def prepared(damaged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "voz"
    assert prepare(damaged[0], folder, "--split_ratio", "60", "20", "20") == 0
    return folder


def records(folder: Path) -> dict[str, dict]:
    lines = [line for split in SPLITS for line in (folder / split / "metadata.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in map(json.loads, lines)}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_lost_and_every_damage_has_its_reason(damaged, prepared):
    metadata = read_metadata(prepared, "--x")
    assert {one["id"]: one["reason"] for one in metadata["excluded"]} == damaged[1]
    assert all(re.fullmatch(r"metadata.csv:\d+", one["row"]) for one in metadata["excluded"])
    assert set(records(prepared)) == {f"s{i:02}" for i in range(GOOD)} | {"stereo"}
    counts = metadata["counts"]
    assert counts["written"] == GOOD + 1 == counts["train"] + counts["val"] + counts["test"] and counts["val"]
    report = (prepared / "report.txt").read_text()
    assert "truncated (row metadata.csv:15): truncated – its header says 79,380 bytes of sound" in report


def test_each_sound_is_mono_at_the_rate_trimmed_and_as_loud_as_the_others(prepared):
    for split in SPLITS:
        for path in (prepared / split / "audio").iterdir():
            samples, rate = decode_sound(path)
            assert path.suffix == ".flac" and rate == 16_000 and soundfile.info(path).channels == 1
            assert speech_level(samples, rate) == pytest.approx(-23, abs=0.5) and 1.5 < len(samples) / rate < 1.85
            assert records(prepared)[path.stem]["seconds"] == pytest.approx(len(samples) / rate, abs=1e-3)


def test_texts_are_normalised_and_the_trainer_reads_them(prepared):
    train, val = read_utterances(prepared, "--dataset")
    by_id = {one.id: one for one in train + val}
    assert all(one.text == "Esta é a frase doze deste livro." for one in by_id.values() if one.id == "s12")
    assert records(prepared)["s12"]["raw_text"] == sentence(12) and not any(re.search(r"\d", o.text) for o in train)
    assert {one.rate for one in train} == {16_000}


def test_datasets_reads_the_result(prepared, tmp_path, monkeypatch):
    import datasets

    # Without decoding, `datasets` needs no more of torchcodec than that it is there.
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", types.SimpleNamespace(AudioEncoder=None))
    loaded = datasets.load_dataset("audiofolder", data_dir=str(prepared / "train"), split="train", cache_dir=tmp_path)
    loaded = loaded.cast_column("audio", datasets.Audio(decode=False))
    texts = {one.id: one.text for one in read_utterances(prepared, "--dataset")[0]}
    assert {row["id"]: row["text"] for row in loaded} == texts


def test_the_same_command_again_does_nothing_and_another_is_refused(damaged, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert prepare(damaged[0], prepared, "--split_ratio", "60", "20", "20") == 0
    assert "is up to date: same recordings, same options" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    with pytest.raises(UserError, match=r"exists, and min_snr was 15, now 20.0\. Add --overwrite"):
        prepare(damaged[0], prepared, "--split_ratio", "60", "20", "20", "--min_snr", "20")


def test_killed_in_the_middle_it_goes_on_and_makes_the_same_with_other_workers(damaged, prepared, tmp_path):
    output = tmp_path / "voz"
    work = work_folder(output, Handling(16_000, ".flac", True, -23))
    flags = ["--split_ratio", "60", "20", "20"]
    words = ["--recordings", damaged[0], "--output_dir", output, *flags, "--num_workers", "2"]
    process = subprocess.Popen([sys.executable, "prepare_speech.py", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(work.glob("*.flac"))) < 4:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = {path.stem: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert len(done) >= 3 and not output.exists()
    changed = min(name for name in done if name in records(prepared))
    (work / f"{changed}.flac").write_bytes(b"half")
    assert prepare(damaged[0], output, *flags) == 0
    assert tree(output) == tree(prepared)
    assert not work.parent.parent.exists()


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


def verified(folder: Path, capsys) -> tuple[int, list[str]]:
    code = prepare_speech.main(prepare_speech.parse_args(["--verify", str(folder), "--num_workers", "1"]))
    return code, capsys.readouterr().out.splitlines()


def test_verify_passes_and_finds_every_change(prepared, copy, capsys):
    assert verified(prepared, capsys) == (0, [f"{prepared}: {GOOD + 1} recordings, all checks passed"])
    sounds = sorted((copy / "train/audio").iterdir())
    sounds[0].write_bytes(sounds[1].read_bytes())
    sounds[2].unlink()
    (copy / "train/audio/new.flac").write_bytes(b"x")
    (copy / "val/ids.txt").write_text("s99\n")
    code, lines = verified(copy, capsys)
    assert code == 1 and lines[-1].endswith(f"failed checks: {len(lines) - 1}")
    for said in (
        f"train/audio/{sounds[0].name}: the file has changed (its sha256 is not the manifest's)",
        f"train/audio/{sounds[2].name}: missing",
        f"train/audio/{sounds[2].name}: cannot be read ([Errno 2]",
        "train/audio/new.flac: not in the manifest",
        "val: metadata.jsonl and ids.txt do not agree",
    ):
        assert any(line.startswith(said) for line in lines), (said, lines)


def test_verify_finds_a_text_in_two_splits(copy, capsys):
    text = records(copy)[(copy / "train/ids.txt").read_text().split()[0]]["text"]
    table = copy / "val/metadata.jsonl"
    first, *others = table.read_text().splitlines()
    table.write_text("\n".join([json.dumps(json.loads(first) | {"text": text}), *others]) + "\n")
    assert any(line.startswith("in two splits: train/") for line in verified(copy, capsys)[1])


def test_the_places_stay_when_recordings_are_added_and_foreign_files_are_moved_aside(damaged, prepared, tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "voz"
    shutil.copytree(damaged[0], raw)
    shutil.copytree(prepared, output)
    (output / "mine.txt").write_text("a note")
    soundfile.write(raw / "wavs/added.wav", toy_speech(1.8, 99, RATE), RATE)
    with open(raw / "metadata.csv", "a") as file:
        file.write("added|Esta frase é nova aqui.|\n")
    flags = ("--split_ratio", "10", "45", "45", "--format", "wav", "--sampling_rate", "22050", "--no-level_loudness")
    assert prepare(raw, output, *flags, "--overwrite") == 0
    old, new = (json.loads((folder / "splits.json").read_text()) for folder in (prepared, output))
    assert new.items() > old.items() and "added" in new
    samples, rate = decode_sound(output / new["s01"] / "audio/s01.wav")
    assert rate == RATE and np.abs(samples).max() == pytest.approx(np.abs(toy_speech(1.8, 1, RATE)).max(), abs=1e-3)
    assert [path.read_text() for path in tmp_path.glob("voz.replaced-*/mine.txt")] == ["a note"]


def test_a_dry_run_writes_nothing_and_one_sentence_is_a_warning(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    soundfile.write(raw / "a.wav", toy_speech(1.8, 0, RATE), RATE)
    (raw / "a.txt").write_text("Só 1 frase, mais nada.")
    before = tree(tmp_path)
    assert prepare(raw, tmp_path / "voz", "--dry_run") == 0
    said = capsys.readouterr()
    assert "a: Só 1 frase, mais nada. → Só uma frase, mais nada." in said.out and "train 1, val 0, test 0" in said.out
    assert "warning: train gets 1 recording: a voice takes 30 or more" in said.err and tree(tmp_path) == before
    assert "warning: val gets no recordings; there are too few for --split_ratio 90 5 5\n" in said.err


def test_with_phonemes_the_trainer_reads_ipa_and_the_raw_text_is_kept(tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "voz"
    raw.mkdir()
    soundfile.write(raw / "a.wav", toy_speech(1.8, 0, RATE), RATE)
    (raw / "a.txt").write_text("Só 1 casa, mais nada.")
    assert prepare(raw, output, "--phonemes", "espeak") == 0
    row = records(output)["a"]
    assert (row["text"], row["raw_text"]) == ("sˈɔ ˌumæ kˈazæ, mˈaɪz nˈadæ.", "Só 1 casa, mais nada.")
    assert read_language(output, "--x") == ("pt-br", "espeak")


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--strict",), "--strict: 3 rows can't be used"),
        (("--min_snr", "99"), "no recording can be used (1"),
        (("--disjoint", "book"), "--disjoint book: no recording has such a column; there are folder"),
        (("--language", "pt"), "--language pt: expected one of pt-br, en"),
        (("--speakers", "eva"), "--speakers eva: no recording has this speaker; there are none, as no column names"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(damaged, tmp_path, flags, said):
    with pytest.raises(UserError, match=re.escape(said)):
        prepare(damaged[0], tmp_path / "voz", *flags)
    assert not (tmp_path / "voz").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("--recordings r", "--output_dir: is missing"),
        ("--output_dir o", "--recordings DIR or --verify DIR: give one of them"),
        ("--verify d --recordings r", "--recordings r: does nothing without a new dataset"),
        ("--verify d --segment", "--segment: does nothing without a new dataset"),
        ("--recordings r --output_dir o --seconds 5 2", "--seconds 5 2: expected the first number below the second"),
        ("--recordings r --output_dir o --columns speaker text", "expected `file` and `text` among them"),
        ("--recordings r --output_dir o --segment --max_cer 0.3", "--max_cer compares texts that are given"),
        ("--recordings r --output_dir o --asr demo", "--asr demo: does nothing without --segment or --max_cer"),
        ("--recordings r --output_dir o --no-level_loudness --loudness -20", "does nothing without --level_loudness"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        prepare_speech.parse_args(words.split())
    assert said in capsys.readouterr().err


def test_beside_verify_a_recipe_of_how_a_dataset_is_made_is_warned_of(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text("recordings: r\nsegment: true")
    args = prepare_speech.parse_args(["--config", str(tmp_path / "recipe.yaml"), "--verify", "d"])
    assert args.verify == Path("d") and "`segment: True` does nothing without a new dataset" in caplog.text


def test_a_text_that_is_not_what_is_heard_is_left_out(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "voz"
    (raw / "audio").mkdir(parents=True)
    rows = [json.loads(line) for line in (HELD_BACK / "train/metadata.jsonl").read_text("utf-8").splitlines()[:8]]
    for row in rows:
        shutil.copy(HELD_BACK / "train" / row["file_name"], raw / "audio")
    rows[0]["text"], rows[1]["text"] = rows[1]["text"], rows[0]["text"]
    (raw / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--asr", "demo", "--max_deviation", "1000"]
    assert prepare(raw, out, *words, "--max_cer", "0.3") == 0
    found = {one["id"]: one for one in read_metadata(out, "--x")["excluded"]}
    assert found.keys() == {Path(row["file_name"]).stem for row in rows[:2]}
    assert {one["reason"] for one in found.values()} == {"text is not what is heard"}
    measured = [json.loads(line) for line in (out / "measures.jsonl").read_text().splitlines()]
    assert {row["id"] for row in measured if row["cer"] > 0.3} == found.keys()
    assert all(row["heard"][:60] in found[row["id"]]["detail"] for row in measured if row["id"] in found)
    (saved,) = (tmp_path / "cache/transcripts").iterdir()
    heard = saved.read_bytes()
    assert prepare(raw, out, *words, "--max_cer", "1", "--overwrite") == 0 and saved.read_bytes() == heard


# Long recordings without texts


@pytest.fixture
def talk(tmp_path):
    """Three sentences with pauses between them, and a recogniser of random weights, whose texts mean nothing."""
    quiet = np.random.default_rng(1).normal(0, 3e-4, 24_000)
    (tmp_path / "talks").mkdir()
    parts = [part for seed in range(3) for part in (quiet, toy_speech(3.0 + seed, seed))]
    soundfile.write(tmp_path / "talks/ana.wav", np.concatenate([*parts, quiet]), 16_000)
    flags = "--min_confidence 0 --characters_per_second 0.01 1000 --max_deviation 1000".split()
    return ["--segment", "--asr", save_ctc(tmp_path / "ctc"), *flags]


def test_a_long_recording_becomes_a_dataset_that_its_corrections_mend(talk, tmp_path, capsys, monkeypatch):
    out = tmp_path / "voice"
    assert prepare(tmp_path / "talks", out, *talk) == 0
    rows = [json.loads(line) for split in SPLITS for line in (out / split / "metadata.jsonl").read_text().splitlines()]
    assert {row["recording"] for row in rows} == {"ana"} and len(rows) == 3
    assert all(0 < float(row["confidence"]) < 1 for row in rows)
    page = (out / "corrections.html").read_text()
    digests = dict(re.findall(r'data-digest="(\w+)" data-id="(\w+)"', page))
    assert verified(out, capsys)[0] == 0

    (wrong, first), (noise, last), _ = digests.items()
    corrections = [{"digest": wrong, "text": "O 1º dia."}, {"digest": noise, "text": None}]
    (tmp_path / "saved.json").write_text(json.dumps({"corrections": corrections}))
    monkeypatch.delattr(prepare_speech, "open_recogniser")  # nothing is transcribed again
    again = [*talk, "--corrections", str(tmp_path / "saved.json"), "--overwrite"]
    assert prepare(tmp_path / "talks", out, *again) == 0
    rows = [json.loads(line) for split in SPLITS for line in (out / split / "metadata.jsonl").read_text().splitlines()]
    texts = {row["id"]: row["text"] for row in rows}
    assert texts[first] == "O primeiro dia." and last not in texts and len(rows) == 2
    excluded = read_metadata(out, "--x")["excluded"]
    assert [(one["id"], one["reason"]) for one in excluded] == [(last, "left out by hand")]
    capsys.readouterr()
    assert prepare(tmp_path / "talks", out, *again[:-1]) == 0 and "othing to do" in capsys.readouterr().out


def test_a_dry_run_finds_the_pauses_and_transcribes_nothing(talk, tmp_path, capsys):
    shutil.rmtree(tmp_path / "ctc")
    assert prepare(tmp_path / "talks", tmp_path / "voice", *talk, "--dry_run") == 0
    assert re.search(r"3 pieces between pauses, 0\.2 min; 3 to transcribe by .*/ctc", capsys.readouterr().out)
    assert not (tmp_path / "voice").exists()


def test_segment_reads_a_folder_only(tmp_path):
    with pytest.raises(UserError, match="--recordings owner/name: there is no such folder; --segment reads one"):
        prepare("owner/name", tmp_path / "voice", "--segment")
