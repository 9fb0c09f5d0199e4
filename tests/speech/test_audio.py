import io

import numpy as np
import pytest
import soundfile

from speech.audio import (
    BadSound,
    Sound,
    decode_sound,
    encode_sound,
    frame_levels,
    level_loudness,
    read_sound,
    resample,
    speech_level,
    trim_silence,
    write_sound,
)
from utils.cli import UserError


def tone(seconds: float, rate: int = 16_000, pitch: float = 440, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_what_is_written_is_read_again(tmp_path, ending):
    write_sound(tmp_path / f"a.{ending}", tone(0.5), 16_000)
    sound = read_sound(tmp_path / f"a.{ending}", "--text")
    assert sound.rate == 16_000 and sound.samples.dtype == np.float32
    assert np.abs(sound.samples[:8000] - tone(0.5)).max() < (0.02 if ending == "mp3" else 1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]


def test_stereo_is_mixed_and_a_long_file_is_read_in_blocks(tmp_path, monkeypatch):
    left, right = tone(1, 96_000), tone(1, 96_000, 300)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 96_000, subtype="PCM_24")
    monkeypatch.setattr("speech.audio.BLOCK", 10_007)
    samples, rate = read_sound(tmp_path / "a.wav", "--x")
    assert rate == 96_000 and np.abs(samples - (left + right) / 2).max() < 1e-6


def damaged(kind: str) -> bytes:
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    whole = {ending: encode_sound(sound, 16_000, f".{ending}") for ending in ("wav", "flac", "mp3")}
    file = io.BytesIO()
    soundfile.write(file, np.where(np.arange(100) == 7, np.nan, 0), 16_000, format="WAV", subtype="FLOAT")
    return {
        "empty file": b"",
        "text": b"Nothing but a text, with the name of a sound.",
        "M4A": b"\0\0\0\x18ftypM4A \0\0\0\0" * 9,
        "short WAV": whole["wav"][:9000],
        "short FLAC": whole["flac"][:9000],
        "short MP3": whole["mp3"][: len(whole["mp3"]) // 2],
        "no samples": encode_sound(sound[:0], 16_000, ".wav"),
        "NaN": file.getvalue(),
    }[kind]


@pytest.mark.parametrize(
    "kind, said",
    [
        ("empty file", "empty file"),
        ("text", "not audio: begins with b'Nothing but "),
        ("M4A", "not a format that is read: it is M4A or MP4; convert it"),
        ("short WAV", "truncated: its header says 32,000 bytes of sound, 8,956 are there"),
        ("short FLAC", "truncated: flac decoder lost sync"),
        ("short MP3", "truncated: its header says 16,000 samples, "),
        ("no samples", "empty: it holds no samples"),
        ("NaN", "not finite: 1 samples are NaN or infinite"),
    ],
)
def test_a_damaged_file_is_one_line_that_says_what_is_wrong(tmp_path, kind, said):
    (tmp_path / "a.wav").write_bytes(damaged(kind))
    with pytest.raises(UserError) as error:
        read_sound(tmp_path / "a.wav", "--recordings")
    assert str(error.value).startswith(f"--recordings: {tmp_path}/a.wav can't be used: {said}")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path, said in ((tmp_path / "b.wav", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(BadSound, match=f"cannot be read: {said}"):
            decode_sound(path)


def test_a_stream_whose_header_knows_no_length_is_read_whole():
    content = bytearray(encode_sound(tone(1), 16_000, ".wav"))
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff" * 4
    assert len(decode_sound(bytes(content)).samples) == 16_000


def test_resampling_keeps_a_tone_and_removes_what_the_lower_rate_cannot_hold():
    kept, gone = resample(tone(1, 44_100, 1000), 44_100, 16_000), resample(tone(1, 44_100, 12_000), 44_100, 16_000)
    assert kept.dtype == np.float32 and len(kept) == 16_000
    assert np.abs(kept - tone(1, 16_000, 1000))[500:-500].max() < 2e-3
    assert np.abs(gone[500:-500]).max() < 1e-2 * 0.3
    assert resample(kept, 16_000, 16_000) is kept


def test_silence_at_the_ends_is_trimmed_to_a_tenth_of_a_second():
    noise = np.random.default_rng(0).normal(0, 1e-3, 48_000).astype(np.float32)
    noise[16_000:32_000] += tone(1)
    assert abs(len(trim_silence(noise, 16_000)) / 16_000 - 1.2) < 0.03
    pause = np.concatenate([tone(0.5), np.zeros(8000, np.float32), tone(0.5)])
    assert len(trim_silence(pause, 16_000)) == len(pause)
    assert len(trim_silence(np.zeros(16_000, np.float32), 16_000)) == 16_000


def test_loudness_is_that_of_the_speech_whatever_its_pauses_and_never_clips():
    pauses = np.concatenate([tone(0.5, level=0.01), np.zeros(32_000, np.float32)])
    for sound in (tone(1), pauses):
        assert speech_level(level_loudness(sound, 16_000, -23), 16_000) == pytest.approx(-23, abs=0.3)
    click = tone(1, level=0.001)
    click[100] = 1.0
    assert np.abs(level_loudness(click, 16_000, -10)).max() == pytest.approx(0.97)
    assert not level_loudness(np.zeros(100, np.float32), 16_000, -23).any()


def test_a_sound_shorter_than_a_frame_has_a_level():
    assert len(frame_levels(np.ones(10, np.float32), 16_000)) == 1
    assert isinstance(decode_sound(encode_sound(np.ones(10, np.float32), 16_000, ".wav")), Sound)
