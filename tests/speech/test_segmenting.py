"""Long recordings: what is kept of a killed run, and what a person's corrections change."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from speech.audio import write_sound
from speech.corrections import read_corrections, write_page
from speech.pauses import Cutting
from speech.recogniser import Transcript
from speech.recordings import Source
from speech.segmenting import as_recordings, cut_recordings, read_pieces, read_whole
from speech.transcripts import read_transcripts, transcribe, transcripts_file
from tests.browser import open_browser, open_page
from tests.toy_speech import toy_speech
from utils.cli import UserError

RATE = 16_000


def write_talk(path: Path, *seconds: float) -> None:
    quiet = np.random.default_rng(1).normal(0, 3e-4, 3 * RATE // 2).astype(np.float32)
    path.parent.mkdir(exist_ok=True)
    parts = [part for seed, length in enumerate(seconds) for part in (quiet, toy_speech(length, seed))]
    write_sound(path, np.concatenate([*parts, quiet]), RATE)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talks") / "in"
    write_talk(folder / "ana.flac", 3.0, 0.6, 4.0)
    write_talk(folder / "rui.flac", 3.5)
    write_sound(folder / "quiet.flac", np.zeros(RATE, np.float32), RATE)
    (folder / "torn.flac").write_bytes((folder / "ana.flac").read_bytes()[:9000])
    return folder


def cut(folder: Path):
    found = read_whole(Source(str(folder)))
    return found, cut_recordings(found, Cutting(), folder.parent / "cache", 1)


def sounds_of(pieces):
    return {one.digest: one.decode for one in pieces}


def hear(sounds):
    """Stands for a recogniser: the less it hears, the less sure it is."""
    return [Transcript(f"{len(one)} samples", min(0.99, len(one) / RATE / 5)) for one in sounds]


def test_each_piece_is_a_part_of_its_recording_and_the_rest_has_its_reason(talks):
    found, pieces = cut(talks)
    assert [one.recording.id for one in pieces] == ["ana", "ana", "rui"]
    assert [one.span.start for one in pieces] == pytest.approx([1.5, 8.1, 1.5], abs=0.2)
    assert pieces[0].id == f"ana_{1000 * pieces[0].span.start:08.0f}"
    assert [one.reason for one in found.rejected] == ["short piece", "no speech", "truncated"]
    recordings = as_recordings(
        found, read_pieces(pieces, transcribe(sounds_of(pieces), lambda: hear, talks.parent / "a.jsonl"), {}, 0.8)
    )
    assert [one.id for one in recordings.found] == ["ana_00007954"] or len(recordings.found) == 1
    assert recordings.found[0].attributes["recording"] == "ana" and recordings.found[0].span == pieces[1].span
    assert sorted(one.reason for one in recordings.rejected)[:2] == ["low confidence"] * 2


def test_a_killed_run_goes_on_and_new_recordings_cost_only_their_own_time(talks, tmp_path):
    _, pieces = cut(talks)
    saved, heard = tmp_path / "transcripts.jsonl", []

    def killed(sounds):
        heard.extend(sounds)
        if len(heard) > 2:
            raise KeyboardInterrupt
        return hear(sounds)

    transcribe(sounds_of(pieces[:2]), lambda: killed, saved)
    with saved.open("a") as file:
        file.write('{"digest": "half a li')
    with pytest.raises(KeyboardInterrupt):
        transcribe(sounds_of(pieces), lambda: killed, saved)
    heard.clear()
    known = transcribe(sounds_of(pieces), lambda: killed, saved)
    assert len(heard) == 1 and known == read_transcripts(saved) and len(known) == 3

    def refuse():
        raise AssertionError("a recogniser is loaded for nothing")

    assert transcribe(sounds_of(pieces), refuse, saved) == known


def test_other_weights_in_a_recognisers_folder_hear_anew(tmp_path):
    weights, places = tmp_path / "model.safetensors", []
    for content in (b"old", b"new", b"old"):
        weights.write_bytes(content)
        places.append(transcripts_file(tmp_path, str(tmp_path), "pt"))
    assert places[0] == places[2] != places[1]


def test_pauses_are_found_once_for_the_content_of_a_file(tmp_path):
    write_talk(tmp_path / "in/rui.flac", 2.0)
    (before,) = cut(tmp_path / "in")[1]
    (saved,) = (tmp_path / "cache/pieces").iterdir()
    saved.write_text(saved.read_text().replace(before.digest, "known"))
    (tmp_path / "in/rui.flac").rename(tmp_path / "in/ana.flac")
    (after,) = cut(tmp_path / "in")[1]
    assert after.digest == "known" and after.id == before.id.replace("rui", "ana")


def test_what_a_person_wrote_is_certain_and_what_a_person_left_out_is_gone(talks, tmp_path):
    _, pieces = cut(talks)
    rows = [{"digest": pieces[0].digest, "text": " bom  dia "}, {"digest": pieces[1].digest, "text": None}]
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps({"corrections": rows}))
    second.write_text(json.dumps({"corrections": [rows[0] | {"text": "boa noite"}]}))
    for files, text in (([first], "bom dia"), ([first, second], "boa noite")):
        known = transcribe(sounds_of(pieces), lambda: hear, tmp_path / "t.jsonl")
        readings = read_pieces(pieces, known, read_corrections(files), 0.9)
        assert readings[0].transcript == (text, 1) and readings[0].fault is None
        assert [one.fault and one.fault[0] for one in readings[1:]] == ["left out by hand", "low confidence"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "expected a file that corrections.html saved"),
        ('{"corrections": 1}', "there is no list `corrections` in it"),
        ('{"corrections": [{"digest": "a"}]}', "correction 1 is {'digest': 'a'}; expected"),
    ],
)
def test_a_file_of_corrections_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="--corrections .*x.json: .*" + re.escape(said)):
        read_corrections([tmp_path / "x.json"])


@pytest.fixture
def page(talks, tmp_path):
    _, pieces = cut(talks)
    texts = ["<b>olá</b>", "até amanhã", "sim"]
    known = {one.digest: Transcript(text, 0.9 - i / 10) for i, (one, text) in enumerate(zip(pieces, texts))}
    path = tmp_path / "corrections.html"
    write_page(
        path, read_pieces(pieces, known, {}, 0.75), 2, {"name": "talks", "recogniser": "demo", "language": "pt-br"}
    )
    return path


def test_the_page_has_the_least_certain_pieces_first_and_needs_no_network(page, talks):
    text = page.read_text()
    assert re.findall(r"<textarea.*>(.*)</textarea>", text) == ["sim", "até amanhã"]
    assert text.count("data:audio/mpeg;base64,") == 2 and not re.search(r"https?://", text)
    assert len(re.findall(r"class=bad>low confidence", text)) == 1
    assert "default-src 'none'" in text and "media-src data:" in text


def test_in_a_browser_corrections_are_saved_kept_and_read_back(page, talks, tmp_path):
    _, pieces = cut(talks)
    with open_browser() as browser, open_page(browser, page, 390, accept_downloads=True) as tab:
        fields = tab.locator("textarea")
        fields.nth(0).fill("sim, senhor")
        assert tab.locator("#count").inner_text() == "1 of 2 judged"
        fields.nth(0).press("Enter")
        assert fields.nth(1).evaluate("one => one === document.activeElement")
        plays = "one => new Promise(done => one.currentTime > 0 ? done(true) : (one.ontimeupdate = () => done(true)))"
        assert tab.locator("audio").nth(1).evaluate(plays)
        tab.locator(".omit").nth(1).check()
        tab.reload()
        assert fields.nth(0).input_value() == "sim, senhor" and tab.locator(".omit").nth(1).is_checked()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        with tab.expect_download() as saved:
            tab.locator("#save").click()
        saved.value.save_as(tmp_path / "saved.json")
    assert read_corrections([tmp_path / "saved.json"]) == {pieces[2].digest: "sim, senhor", pieces[1].digest: None}
