import json

import numpy as np
import pytest

from speech.audio import encode_sound
from speech.recordings import (
    Source,
    choose_speakers,
    find_sounds,
    index_sounds,
    is_speaker_column,
    read_recordings,
    sound_of,
    source_fingerprint,
)
from utils.cli import UserError

SOUND = encode_sound(np.zeros(100, np.float32), 16_000, ".wav")


def make(folder, table, text, *sounds):
    (folder / table).write_text(text, encoding="utf-8")
    for name in sounds:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SOUND)
    return str(folder)


def read(folder, **flags):
    return read_recordings(Source(str(folder), **flags))


def rows(found):
    return [(one.id, one.text, one.speaker) for one in found.found]


def faults(found):
    return [(str(one.row), one.reason) for one in found.rejected]


def test_ljspeech_takes_the_normalised_text_and_its_rows_are_refused_by_line(tmp_path):
    table = "a|Sala 2|sala dois\nb|Olá|\nc|só dois\nd|Não há|não há\n\na|Sala 2|sala dois\ne||\n"
    make(tmp_path, "metadata.csv", table, "wavs/a.wav", "wavs/b.wav", "wavs/e.wav", "wavs/more.wav")
    found = read(tmp_path)
    assert found.kind == "LJSpeech: file|text|normalised text"
    assert rows(found) == [("a", "sala dois", ""), ("b", "Olá", "")]
    assert faults(found) == [
        ("metadata.csv:3", "row can't be read"),
        ("metadata.csv:4", "no sound"),
        ("metadata.csv:6", "row given twice"),
        ("metadata.csv:7", "no text"),
    ]
    assert str(found.rejected[0]) == (
        "c (row metadata.csv:3): row can't be read – 2 cells, expected 3 (file|raw_text|text)"
    )
    assert found.notes == ["sounds without a row: wavs/e.wav, wavs/more.wav"] and found.rows == 6


def test_piper_has_files_and_maybe_speakers(tmp_path):
    two = make(tmp_path, "metadata.csv", 'a.wav|Olá, tudo?\nb|Só "isto\n', "wav/a.wav", "wav/b.wav")
    assert rows(read(two)) == [("a", "Olá, tudo?", ""), ("b", 'Só "isto', "")]
    three = make(tmp_path, "metadata.csv", "a|eva|Olá, tudo bem\nb|ana|Até logo mesmo\n")
    found = read(three)
    assert found.kind == "Piper: file|speaker|text"
    assert rows(found) == [("a", "Olá, tudo bem", "eva"), ("b", "Até logo mesmo", "ana")]
    assert rows(read(three, columns=("file", "raw_text", "text"))) == [
        ("a", "Olá, tudo bem", ""),
        ("b", "Até logo mesmo", ""),
    ]


def test_a_speaker_is_told_from_a_text():
    assert is_speaker_column([("p225", "Hi."), ("p225", "Yes, I am"), ("p226", "No"), ("p226", "Go")])
    assert not is_speaker_column([("Dr. No", "Doctor No"), ("2", "two")])
    assert not is_speaker_column([("The same old text of this book, again.", "x")] * 4 + [("y" * 41, "x")])


def test_the_tts_portuguese_corpus_has_two_equal_signs(tmp_path):
    make(tmp_path, "texts.csv", "corpus/wavs/s-0.wav==Um. a=b\nwavs/s-1.wav\nwavs/s-2.wav==\n", "wavs/s-0.wav")
    found = read(tmp_path)
    assert rows(found) == [("corpus_s-0", "Um. a=b", "")]
    assert faults(found) == [("texts.csv:2", "row can't be read"), ("texts.csv:3", "no sound")]


def test_cml_tts_gives_speaker_and_book_of_all_its_parts(tmp_path):
    head = "wav_filename|wav_filesize|transcript|transcript_wav2vec|levenshtein|duration|num_words|client_id\n"
    make(tmp_path, "dev.csv", head + "dev/audio/7/22/7_22_1.wav|9|Dom|dom|1.0|2|1|7\n", "dev/audio/7/22/7_22_1.wav")
    row = "train/audio/3/9/3_9_{0}.wav|9|Casa|casa|1.0|2|1|3\n"
    make(tmp_path, "train.csv", head + row.format(1) + row.format(2) + "x|y\n", "train/audio/3/9/3_9_1.wav")
    found = read(tmp_path)
    assert found.kind == "CML-TTS" and [one.text for one in found.found] == ["Casa", "Dom"]
    assert [(one.speaker, one.attributes["book"]) for one in found.found] == [("3", "9"), ("7", "22")]
    assert faults(found) == [("train.csv:3", "no sound"), ("train.csv:4", "row can't be read")]


def test_an_audiofolder_and_a_table_with_names(tmp_path):
    lines = [{"file_name": "a.wav", "transcription": "Oi", "speaker": "eva"}, {"text": "no file"}]
    table = "".join(json.dumps(line) + "\n" for line in lines) + "{oops\n"
    make(tmp_path / "", "metadata.jsonl", table, "a.wav")
    found = read(tmp_path)
    assert rows(found) == [("a", "Oi", "eva")]
    assert [row for row, _ in faults(found)] == ["metadata.jsonl:2", "metadata.jsonl:3"]
    (tmp_path / "metadata.jsonl").unlink()
    make(tmp_path, "metadata.csv", 'path,sentence,who\na.wav,"Sim, sim",eva\na.wav,Sim\n')
    found = read(tmp_path, speaker_column="who")
    assert rows(found) == [("a", "Sim, sim", "eva")] and len(found.rejected) == 1
    with pytest.raises(UserError, match="--text_column words: there is no such column; there are path, sentence, who"):
        read(tmp_path, text_column="words")


@pytest.mark.parametrize("mark, quote", [(",", '"'), (";", '"'), ("|", ""), ("\t", "")])
def test_a_header_in_portuguese_names_the_columns_whatever_separates_them(tmp_path, mark, quote):
    cells = ["Arquivo Frase Locutor Livro".split(), ["0.wav", "Oi", "ana", "x"]]
    cells.append(["1.wav", f"{quote}Sim, não; nunca{quote}", "rui", "y"])
    make(tmp_path, "metadata.csv", "\n".join(map(mark.join, cells)), "0.wav", "1.wav")
    found = read(tmp_path)
    assert rows(found) == [("0", "Oi", "ana"), ("1", "Sim, não; nunca", "rui")] and not found.rejected
    assert [one.attributes["livro"] for one in found.found] == ["x", "y"]


def test_a_first_row_that_may_be_an_unknown_header_is_refused(tmp_path):
    make(tmp_path, "metadata.csv", "datei|satz|person\n0|Guten Tag|ana\n", "0.wav")
    with pytest.raises(UserError, match="its first row, datei, satz, person, is no recording; if it names the columns"):
        read(tmp_path)
    assert rows(read(tmp_path, audio_column="datei", text_column="satz")) == [("0", "Guten Tag", "")]
    assert faults(read(tmp_path, columns=("file", "text", "speaker"))) == [("metadata.csv:1", "no sound")]
    with pytest.raises(UserError, match="--speaker_column who: there is no such column; there are datei, satz, person"):
        read(tmp_path, speaker_column="who")


def test_a_sound_in_another_place_than_its_row_says_is_noted(tmp_path):
    make(tmp_path, "metadata.csv", "a|Um\nold/b|Dois\nc.wav|Três\n", "wavs/a.wav", "b.wav", "wavs/new/c.wav")
    found = read(tmp_path)
    assert len(found.found) == 3
    assert found.notes == ["2 sounds in another place than the row says: old/b at b.wav, c.wav at wavs/new/c.wav"]


def test_texts_of_an_unknown_encoding_are_noted(tmp_path):
    make(tmp_path, "um.txt", "Olá", "um.wav", "dois.wav")
    (tmp_path / "dois.txt").write_bytes("Amanhã".encode("cp1252"))
    found = read(tmp_path)
    assert [one.text for one in found.found] == ["Amanhã", "Olá"]
    assert found.notes == ["texts not in UTF-8, read as Latin-1: dois.txt"]


def test_a_table_without_texts_says_which_columns_there_are(tmp_path):
    make(tmp_path, "metadata.jsonl", '{"file_name": "a.wav", "txt": "Oi"}\n', "a.wav")
    assert str(read(tmp_path).rejected[0]).endswith(
        "no text – its columns are file_name, txt; --text_column names the one of texts"
    )


def test_sounds_with_texts_beside_them_and_without(tmp_path):
    make(tmp_path, "um.txt", "Olá\n mundo", "um.wav", "dois.flac", "eva/um.wav", "x.m4a")
    found = read(tmp_path, speaker_column="folder")
    own = tmp_path.name  # of sounds in no folder below the corpus
    assert rows(found) == [("dois", None, own), ("um", "Olá mundo", own), ("eva_um", None, "eva")]
    assert faults(found) == [("x.m4a", "not a format that is read")]


def test_names_of_columns_are_refused_where_there_are_none(tmp_path):
    make(tmp_path, "um.txt", "Olá", "um.wav")
    with pytest.raises(UserError, match="^--speaker_column who: .* no columns; `--speaker_column folder` takes"):
        read(tmp_path, speaker_column="who")
    with pytest.raises(UserError, match="^--columns file text: .* is read as sounds with .txt, which has no columns$"):
        read(tmp_path, columns=("file", "text"))
    make(tmp_path, "texts.csv", "um.wav==Olá")
    with pytest.raises(UserError, match="^--text_column frase: .* is read as TTS-Portuguese Corpus, which has no"):
        read(tmp_path, text_column="frase")


def test_a_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match="^--recordings .*: no audio: found 1 other file; expected LJSpeech's"):
        read(tmp_path)
    make(tmp_path, "metadata.csv", "a.wav|b|c|d\n")
    with pytest.raises(UserError, match=r"metadata.csv: line 1: found `a.wav\|b\|c\|d`; expected file\|text"):
        read(tmp_path)
    with pytest.raises(UserError, match="is a file; give the folder it is in"):
        read(tmp_path / "notes.md")


def test_a_sound_of_another_folder_is_never_taken_for_one_that_is_missing():
    index = index_sounds(["a/1.wav", "b/1.wav", "c/2.wav", "3.wav"])
    assert find_sounds(index, "a/1") == find_sounds(index, "./a\\1.wav") == ["a/1.wav"]
    assert find_sounds(index, "1.wav") == ["a/1.wav", "b/1.wav"]
    assert find_sounds(index, "2") == ["c/2.wav"] and find_sounds(index, "corpus/c/2.wav") == ["c/2.wav"]
    assert find_sounds(index, "a/2.wav") == find_sounds(index, "../2.wav") == find_sounds(index, "4") == []


def test_a_dataset_on_disk_is_read_without_decoding(tmp_path):
    import datasets

    table = {"audio": [{"bytes": SOUND, "path": "a.wav"}] * 2, "sentence": ["Um", None], "speaker_id": [3, 4]}
    dataset = datasets.Dataset.from_dict(table).cast_column("audio", datasets.Audio(16_000))
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "hub/data.parquet"))
    for name in ("saved", "hub"):
        found = read(tmp_path / name)
        assert rows(found) == [("000000", "Um", "3"), ("000001", None, "4")]
        assert sound_of(found, found.found[1]) == SOUND
        assert source_fingerprint(found) == source_fingerprint(read(tmp_path / name))


def test_a_speaker_whom_nobody_is_is_refused(tmp_path):
    make(tmp_path, "metadata.csv", "a|eva|Olá, tudo bem\nb|ana|Até logo mesmo\n", "a.wav", "b.wav")
    found = read(tmp_path)
    assert rows(choose_speakers(found, ["ana"])) == [("b", "Até logo mesmo", "ana")]
    with pytest.raises(UserError, match="--speakers rui: no recording has this speaker; there are ana, eva"):
        choose_speakers(found, ["rui"])


def test_the_fingerprint_changes_with_a_row_and_with_a_sound(tmp_path):
    make(tmp_path, "metadata.csv", "a|Oi\n", "a.wav")
    first = source_fingerprint(read(tmp_path))
    assert source_fingerprint(read(tmp_path)) == first
    (tmp_path / "a.wav").write_bytes(SOUND + b"x")
    second = source_fingerprint(read(tmp_path))
    make(tmp_path, "metadata.csv", "a|Oi!\n")
    assert len({first, second, source_fingerprint(read(tmp_path))}) == 3
