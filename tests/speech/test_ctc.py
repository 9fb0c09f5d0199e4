"""The small recogniser: its alphabet, how it reads a network's output, and that no other sound changes a transcript."""

import numpy as np
import pytest
import torch

from speech.convolutions import RATE, Convolutions, Size, hear, save_network
from speech.ctc import load_ctc, read_out, spell
from utils.cli import UserError

CHARACTERS = " abc"


def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32) for seconds in (0.31, 1.0, 0.02, 0.7)]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = Convolutions(Size(channels=16, layers=2, outputs=2 * (len(CHARACTERS) + 1)))
    network.end.weight.data *= 30  # so that it is sure of something
    save_network(tmp_path / "small", network, {"characters": CHARACTERS})
    return tmp_path / "small"


def test_a_text_is_spelled_in_known_characters() -> None:
    assert spell("  Ab,  c-a!", CHARACTERS) == [2, 3, 1, 4, 1, 2]


def test_repeats_count_once_and_blanks_divide_them() -> None:
    assert read_out(np.array([2, 2, 0, 2, 3, 1, 1, 0, 4, 0]), CHARACTERS) == "aab c"


def test_a_transcript_does_not_depend_on_the_other_sounds(folder) -> None:
    recognise = load_ctc(folder)
    together = recognise(sounds())
    alone = [recognise([sound])[0] for sound in sounds()]
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert any(text for text, _ in alone)
    assert [sure for _, sure in together] == pytest.approx([sure for _, sure in alone], abs=1e-5)
    assert all(0 <= sure <= 1 for _, sure in alone)


def test_a_sound_is_heard_at_one_level() -> None:
    sound = sounds()[1]
    assert torch.allclose(hear(sound), hear(sound * 0.1), atol=1e-4)
    assert torch.isfinite(hear(np.zeros(100, np.float32))).all()


def test_no_sounds_give_no_transcripts(folder) -> None:
    assert load_ctc(folder)([]) == []


def test_a_folder_of_something_else_is_refused_in_one_line(folder, tmp_path) -> None:
    with pytest.raises(UserError, match=r"^--asr .*config.json"):
        load_ctc(tmp_path / "nothing", "--asr")
    (folder / "config.json").write_text('{"size": {"channels": 8, "layers": 2, "outputs": 10}}')
    with pytest.raises(UserError, match=r"^--asr .*don't fit"):
        load_ctc(folder, "--asr")
