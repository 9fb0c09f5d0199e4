"""The sentences of the embedded voice, their inflections, and the recordings of the held-back voice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from demo import lexicon, voice_corpus
from demo.sentences import contract, finish, is_held_out, split_words
from demo.voice_corpus import (
    ADAPT,
    CALIBRATION,
    HEARD,
    HELD_BACK,
    JUDGED,
    KEPT_BACK,
    NEVER_HEARD,
    TEST,
    TRAINED,
    read_sentences,
    read_timings,
)
from speech.phonemes import phonemise
from speech.portuguese import cardinal
from utils.cli import UserError


@pytest.mark.parametrize(
    ("value", "gender", "words"),
    [
        (0, "m", "zero"),
        (1, "f", "uma"),
        (22, "f", "vinte e duas"),
        (100, "m", "cem"),
        (101, "f", "cento e uma"),
        (342, "f", "trezentas e quarenta e duas"),
        (1000, "m", "mil"),
        (1100, "m", "mil e cem"),
        (1984, "m", "mil novecentos e oitenta e quatro"),
        (2026, "m", "dois mil e vinte e seis"),
        (2200, "f", "duas mil e duzentas"),
        (987_654, "m", "novecentos e oitenta e sete mil seiscentos e cinquenta e quatro"),
    ],
)
def test_numbers_are_written_out(value: int, gender: str, words: str) -> None:
    assert cardinal(value, gender) == words


@pytest.mark.parametrize(
    ("singular", "many"),
    [("limão", "limões"), ("irmão", "irmãos"), ("pão", "pães"), ("jardim", "jardins"), ("papel", "papéis")]
    + [("amável", "amáveis"), ("azul", "azuis"), ("anzol", "anzóis"), ("luz", "luzes"), ("lápis", "lápis")]
    + [("gentil", "gentis"), ("animal", "animais"), ("flor", "flores"), ("beija-flor", "beija-flores")],
)
def test_plurals(singular: str, many: str) -> None:
    assert lexicon.plural(singular) == many


def test_adjectives_agree_and_verbs_are_conjugated() -> None:
    forms = [lexicon.agree("redondo", gender, many) for gender in "mf" for many in (False, True)]
    assert forms == ["redondo", "redondos", "redonda", "redondas"]
    assert lexicon.agree("frágil", "f", True) == "frágeis"
    assert [lexicon.conjugate("vender", tense, True) for tense in lexicon.TENSES] == ["vendem", "venderam", "vendiam"]
    assert lexicon.conjugate("vestir", "present", False) == "veste"
    mine = [lexicon.first_person(verb) for verb in ("buscar", "entregar", "abraçar", "comer")]
    assert mine == ["busquei", "entreguei", "abracei", "comi"]


def test_prepositions_and_articles_contract() -> None:
    assert contract("gosta de a professora") == "gosta da professora"
    assert contract("perto de aquele menino e a o rei") == "perto daquele menino e ao rei"
    assert finish("  a  casa é   azul ") == "A casa é azul."


def test_unseen_sentences_have_words_that_no_training_sentence_has() -> None:
    train, unseen = read_sentences("train"), read_sentences("unseen")
    known = {word for sentence in train for word in split_words(sentence.text)}
    assert len(train) == len({sentence.text for sentence in train}) >= 3000
    assert len(known) >= 1500
    assert all(set(split_words(sentence.text)) - known for sentence in unseen)
    nouns = {word for kind in lexicon.FEMININE.values() for word in kind.split()}
    assert not {word for word in nouns if is_held_out(word)} & known


def test_every_sentence_has_its_phonemes() -> None:
    for sentence in read_sentences("train") + read_sentences("unseen"):
        assert abs(len(sentence.phonemes.split()) - len(sentence.text.split())) <= 4


def test_held_back_recordings_match_their_texts_and_timings() -> None:
    for split, source, indices in (("train", "train", ADAPT), ("test", "unseen", TEST)):
        rows = [json.loads(line) for line in (HELD_BACK / split / "metadata.jsonl").read_text("utf-8").splitlines()]
        timings, sentences = read_timings(split), read_sentences(source)
        for row, sentence in zip(rows, [sentences[index] for index in indices], strict=True):
            path = HELD_BACK / split / row["file_name"]
            phonemes = timings[path.stem]
            assert (row["raw_text"], row["text"]) == (sentence.text, sentence.text.lower())
            assert soundfile.info(path).duration == pytest.approx(phonemes[-1].stop, abs=0.01)
            assert all(before.stop == after.start for before, after in zip(phonemes, phonemes[1:], strict=False))


def test_no_sentence_that_chose_how_the_voice_speaks_judges_a_voice() -> None:
    assert max(CALIBRATION) < min(JUDGED)
    assert set(TEST) <= set(JUDGED) <= set(range(len(read_sentences("unseen"))))


def test_held_back_voices_are_heard_by_nothing_that_is_trained() -> None:
    kept = {speaker.variant for speaker in KEPT_BACK.values()} | set(NEVER_HEARD)
    assert not kept & (set(HEARD) | {speaker.variant for speaker in TRAINED.values()})


def test_espeak_gives_phonemes_that_fill_the_sound() -> None:
    pytest.importorskip("espeakng_loader")
    phonemise(["Bom dia."], "pt-br")  # which starts the same library
    (speech,) = voice_corpus.speak_sentences("clara", [0])
    seconds = len(speech.samples) / voice_corpus.RATE
    assert abs(speech.samples).max() == pytest.approx(0.8, abs=1e-3)
    assert speech.phonemes[-1].stop == pytest.approx(seconds)
    spoken = "".join(phoneme.ipa for phoneme in speech.phonemes)
    assert spoken.count("t") == read_sentences("train")[0].phonemes.count("t")


def test_many_voices_say_other_sentences_each_as_its_row_says(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    words = "--speaker never_heard f1:75 --first 3999 --count 1 --apart --vary rate pitch --output_dir"
    run = [sys.executable, voice_corpus.__file__, *words.split(), str(tmp_path / "many")]
    subprocess.run(run, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "many/metadata.jsonl").read_text("utf-8").splitlines()]
    assert [row["speaker"] for row in rows] == [*NEVER_HEARD, "f1:75"]
    assert [row["raw_text"] for row in rows[:2]] == [read_sentences("train")[index].text for index in (3999, 0)]
    assert len({(row["rate"], row["pitch"]) for row in rows}) == len(rows)
    again = list(voice_corpus.plan_takes(["Andrea"], "train", [2], ["pitch"]))
    assert again[0].columns == {"pitch": rows[3]["pitch"]} == {"pitch": again[0].voice.pitch}


def test_a_voice_that_espeak_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="--speaker f99: expected heard"):
        voice_corpus.find_speaker("f99")
