"""The speaker encoders: unit rows that no other sound changes, from our own files and from transformers'."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from speech import speaker
from speech.convolutions import RATE, Convolutions, Size, hear, pad
from speech.resemblyzer import Encoder, place_windows
from utils.cli import UserError


def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32) for seconds in (0.31, 1.0, 0.7)]


def assert_unit_rows_of_each_sound(encode: speaker.Encode) -> None:
    rows = encode(sounds())
    assert rows.dtype == np.float32 and len(rows) == 3
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    for row, sound in zip(rows, sounds(), strict=True):
        assert row == pytest.approx(encode([sound])[0], abs=1e-6)
    assert len(encode([])) == 0


@pytest.fixture
def published(tmp_path):
    """WavLM for speaker verification, too small to know anybody."""
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8),
        tdnn_kernel=(3, 1),
        tdnn_dilation=(1, 1),
        xvector_output_dim=8,
    )
    torch.manual_seed(0)
    WavLMForXVector(config).save_pretrained(tmp_path / "wavlm")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "wavlm")
    return tmp_path / "wavlm"


def test_a_published_model_gives_unit_rows(published) -> None:
    assert_unit_rows_of_each_sound(speaker.load_speaker_encoder(str(published), "cpu"))


def test_padding_is_left_out_of_an_embedding() -> None:
    torch.manual_seed(0)
    network = Convolutions(Size(channels=16, layers=2, outputs=8)).eval()
    mels = [hear(sound) for sound in sounds()]
    with torch.no_grad():
        together = speaker.embed(network, *pad(mels))
        alone = torch.cat([speaker.embed(network, *pad([mel])) for mel in mels])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_name_that_is_no_encoder_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^--speaker_encoder nowhere"):
        speaker.load_speaker_encoder("nowhere", "cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^--x: its encoder .*speaker encoder"):
        speaker.load_speaker_encoder(str(tmp_path), "cpu", "--x: its encoder")


@pytest.fixture
def resemblyzer(tmp_path):
    """A file like Resemblyzer's, with random weights and what else lies in it."""
    torch.manual_seed(0)
    state = {**Encoder().state_dict(), "similarity_weight": torch.ones(1)}
    torch.save({"step": 3, "model_state": state, "optimizer_state": {}}, tmp_path / "pretrained.pt")
    return tmp_path / "pretrained.pt"


def test_resemblyzers_file_gives_unit_rows(resemblyzer) -> None:
    assert_unit_rows_of_each_sound(speaker.load_speaker_encoder(str(resemblyzer), "cpu"))
    assert speaker.encoder_size(str(resemblyzer)) == 256
    with pytest.raises(UserError, match="--speaker_encoder nowhere.pt: no such file"):
        speaker.encoder_size("nowhere.pt")


@pytest.mark.parametrize(
    ("seconds", "starts"), [(0.2, [0]), (1.6, [0]), (2.0, [0, 77]), (2.6, [0, 77]), (3.2, [0, 77, 154])]
)
def test_a_windows_end_counts_if_most_of_it_is_filled(seconds, starts) -> None:
    assert place_windows(round(seconds * RATE)) == starts


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model_state": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    torch.save({"other": 1}, tmp_path / "other.pt")
    for name in ("trap", "cut", "other", "missing"):
        with pytest.raises(
            UserError, match=f"--speaker_encoder .*{name}.pt: is not the pretrained.pt of Resemblyzer"
        ) as said:
            speaker.load_speaker_encoder(str(tmp_path / f"{name}.pt"), "cpu")
        assert "\n" not in str(said.value)
    assert not (tmp_path / "ran").exists()
