import json

import numpy as np
import pytest

from speech.audio import write_sound
from speech.dataset import FORMAT, Utterance, read_split, read_utterances
from utils.cli import UserError
from utils.files import write_json, write_manifest, write_text

SOUND = np.linspace(-0.5, 0.5, 8000).astype(np.float32)


def write_table(folder, rows):
    (folder / "audio").mkdir(parents=True)
    for row in rows:
        write_sound(folder / row["file_name"], SOUND, 16_000)
    write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def prepared(tmp_path):
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        rows = [
            {"file_name": f"audio/{name}.flac", "id": name, "text": f"fala {name}", "speaker": "eva", "seconds": 0.5}
            for name in names
        ]
        write_table(tmp_path / split, rows)
    options = {"sampling_rate": 16_000}
    metadata = {"format": FORMAT, "options": options, "counts": {}, "speakers": ["eva"], "fingerprint": ""}
    write_json(tmp_path / "metadata.json", metadata)
    write_manifest(tmp_path)
    return tmp_path


def test_a_prepared_dataset_gives_its_splits(prepared):
    train, val = read_utterances(prepared, "--dataset")
    assert [one.id for one in train] == ["a", "b"] and [one.id for one in val] == ["c"]
    assert train[1] == Utterance("b", prepared / "train/audio/b.flac", "fala b", "eva", 0.5, 16_000)
    assert [one.text for one in read_split(prepared, "test", "--dataset")] == ["fala d"]


@pytest.mark.parametrize("name", ["train/audio/b.flac", "train/metadata.jsonl", "metadata.json"])
def test_a_changed_file_is_refused(prepared, name):
    content = (prepared / name).read_bytes()
    (prepared / name).write_bytes(content.replace(b"eva", b"ana") if b"eva" in content else content[:-2])
    with pytest.raises(UserError, match=rf"^--dataset .*{name}.*has changed since it was written"):
        read_utterances(prepared, "--dataset")
    if name != "metadata.json":
        assert len(read_split(prepared, "test", "--dataset")) == 1


def test_an_audiofolder_is_all_for_training(tmp_path):
    write_table(tmp_path, [{"file_name": "audio/a.wav", "transcription": "olá"}, {"file_name": "b.flac", "text": "b"}])
    train, val = read_utterances(tmp_path, "--dataset")
    assert (train[0].id, train[0].text, train[0].seconds, train[0].rate, val) == ("a", "olá", 0.5, 16_000, [])


def test_folders_named_as_splits_need_no_metadata(tmp_path):
    for split in ("train", "val"):
        write_table(tmp_path / split, [{"file_name": "audio/a.wav", "text": split}])
    train, val = read_utterances(tmp_path, "--dataset")
    assert ([one.text for one in train], [one.text for one in val]) == (["train"], ["val"])
    with pytest.raises(UserError, match="--dataset .*test: there is no such folder; make it with prepare_speech.py"):
        read_split(tmp_path, "test", "--dataset")


@pytest.mark.parametrize(
    "line, said",
    [
        ("{oops", "line 2: not JSON .Expecting property name"),
        ('["a"]', "line 2: expected a JSON object with `file_name` and `text`"),
        ('{"file_name": "audio/z.wav", "text": "a"}', "line 2: .*z.wav: No such file"),
        ('{"file_name": "metadata.jsonl", "text": "a"}', "line 2: .*metadata.jsonl: is no sound file"),
        ('{"file_name": "audio/a.wav", "text": " "}', "line 2: `text` is ' '; expected what is said in audio/a.wav"),
        ('{"file_name": "audio/a.wav", "txt": "a"}', "line 2: there is no `text` among file_name, txt; expected what"),
    ],
)
def test_a_bad_row_is_refused_with_its_number(tmp_path, line, said):
    write_table(tmp_path, [{"file_name": "audio/a.wav", "text": "a"}])
    with open(tmp_path / "metadata.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=f"^--dataset .*{said}"):
        read_utterances(tmp_path, "--dataset")


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="--dataset .*there is no metadata.jsonl in it; prepare") as refused:
        read_utterances(tmp_path, "--dataset")
    command = f"`python prepare_speech.py --recordings {tmp_path} --output_dir data/{tmp_path.name}_prepared`"
    assert command in str(refused.value)
    write_json(tmp_path / "metadata.json", {"format": "prepared dataset 1"})
    with pytest.raises(UserError, match="is not of a dataset of speech"):
        read_utterances(tmp_path, "--dataset")
