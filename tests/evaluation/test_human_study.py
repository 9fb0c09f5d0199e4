"""The blind study: what its page gives away, how people use it, and what their answers come to."""

import argparse
import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from demo.shoes import draw_shoe
from evaluation.human_study import half_real, merge_ratings, write_study
from evaluation.intervals import crossed_interval
from evaluation.report.summary import describe_people
from tests.browser import open_browser, open_page
from utils.cli import UserError

N = 8


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Real images as large JPEGs with metadata, generated ones as small PNGs."""
    root = tmp_path_factory.mktemp("sets")
    exif = Image.Exif()
    exif[0x010F] = "TellTaleCamera"
    real, generated = [], []
    for i in range(6):
        real.append({"path": root / f"genuine{i}.jpg"})
        draw_shoe("Boots", "Red", f"r{i}", (160, 160)).save(real[-1]["path"], exif=exif, quality=95)
        generated.append({"path": root / f"artificial{i}.png"})
        draw_shoe("Boots", "Blue", f"g{i}", (96, 96)).save(generated[-1]["path"])
    return real, generated


@pytest.fixture(scope="module")
def study(sets, tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), *sets, N, 0)


def key_of(study):
    return json.loads(study.with_name("study_key.json").read_text())


def images_of(study):
    return sum(json.loads(re.search(r"const STUDY = (.*);", study.read_text())[1])["items"], [])


def rate(page, folder, name, rating, guess, leave_out=(), **changes):
    """A file as the page gives it; `rating` and `guess` are functions of (item, kind)."""
    key = key_of(page)
    answers = [
        {"item": one["item"], "rating": rating(**one), "guess": guess(**one), "seconds": 1.0}
        for one in key["items"]
        if one["item"] not in leave_out
    ]
    whole = {"version": 1, "study": key["study"], "session": f"s-{name}", "rater": name, "saved": "2026-01-01"}
    path = folder / f"{name}-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({**whole, "answers": answers} | changes))
    return path


def honest(kind, **_):
    return kind


def fair(**_):
    return 3


def test_the_page_does_not_tell_which_is_which(study, sets):
    text = study.read_text()
    assert not re.search(r"artificial|genuine|\.png|TellTale|https?://", text)
    scripts = text.split("const STUDY")[1]
    assert set(json.loads(re.search(r"= (.*);", scripts)[1])) == {"id", "items"}
    kinds = set()
    for uri in images_of(study):
        data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
        image = Image.open(io.BytesIO(data))
        quality = tuple(map(tuple, image.quantization.values()))
        kinds.add((image.format, image.size, image.mode, quality, tuple(sorted(image.info)), bool(image.getexif())))
    assert len(kinds) == 1 and kinds.pop()[1] == (96, 96)


def test_the_key_names_the_image_of_each_item(study):
    items = key_of(study)["items"]
    assert [one["item"] for one in items] == list(range(1, N + 1))
    assert sorted(one["kind"] for one in items) == ["generated"] * 4 + ["real"] * 4
    assert [one["kind"] for one in items] != sorted(one["kind"] for one in items)
    for uri, one in zip(images_of(study), items):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), float).mean((0, 1))
        assert ("genuine" in one["file"]) == (one["kind"] == "real") == (shown[0] > shown[2])  # real ones are red


def test_the_same_seed_makes_the_same_study_and_another_does_not(study, sets, tmp_path):
    again, other = write_study(tmp_path / "a", *sets, N, 0), write_study(tmp_path / "b", *sets, N, 1)
    assert again.read_bytes() == study.read_bytes() and key_of(other)["study"] != key_of(study)["study"]


def test_a_key_that_ratings_may_hang_on_is_not_replaced_unasked(sets, tmp_path):
    key = write_study(tmp_path, *sets, N, 0).with_name("study_key.json")
    before = key.read_bytes()
    write_study(tmp_path, *sets, N, 0)  # the same again
    with pytest.raises(UserError, match="study_key.json: is of another study .*--overwrite"):
        write_study(tmp_path, *sets, N, 1)
    assert key.read_bytes() == before
    write_study(tmp_path, *sets, N, 1, overwrite=True)
    assert key.read_bytes() != before


def test_an_unreadable_image_is_replaced_by_another(sets, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    real, generated = sets
    path = write_study(tmp_path, [*real[:2], {"path": tmp_path / "broken.png"}], generated, 4, 0)
    assert "broken" not in path.with_name("study_key.json").read_text()
    with pytest.raises(UserError, match="--human_study 6: needs 3 readable real images, found 2"):
        write_study(tmp_path, [*real[:2], {"path": tmp_path / "broken.png"}], generated, 6, 0)


def test_half_must_be_real():
    assert half_real("4") == 4
    for text, said in {"2": "expected a whole number, 4 to 10,000", "7": "7: expected an even number, half of"}.items():
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            half_real(text)


def test_a_keyboard_a_reload_and_a_second_thought(study, tmp_path):
    with open_browser() as browser, open_page(browser, study, 1280) as page:
        page.fill("#name", "Anna <b> R5g")  # letters and digits of the name rate nothing
        page.press("#name", "Enter")
        for item in range(1, 4):
            assert page.inner_text("#place") == f"{item} of {N}"
            page.keyboard.press(str(item))
            page.keyboard.press("g")
            page.locator("#place", has_text=f"{item + 1} of").wait_for()
        assert page.is_disabled("#next")
        page.keyboard.press("ArrowRight")  # not before both are answered
        page.reload()
        assert page.inner_text("#place") == f"4 of {N}"
        page.keyboard.press("ArrowLeft")
        assert page.get_attribute("[data-rating='3']", "aria-pressed") == "true"
        page.keyboard.press("5")
        page.wait_for_timeout(300)
        assert page.inner_text("#place") == f"3 of {N}"  # a second thought stays where it is
        page.click("#next")
        for item in range(4, N + 1):
            page.keyboard.press("r")
            page.keyboard.press("2")
            page.locator("#place" if item < N else "#thanks", has_text=f"{item + 1} of" if item < N else "").wait_for()
        assert page.inner_text("#summary") == f"{N} of {N} images rated."
        with page.expect_download() as download:
            page.click("#download")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
    assert path.name == f"ratings-{key_of(study)['study']}-Anna-b-R5g.json"
    answers = json.loads(path.read_text())["answers"]
    assert [(one["rating"], one["guess"]) for one in answers] == [
        *((1, "generated"), (2, "generated"), (5, "generated")),
        *[(2, "real")] * 5,
    ]
    assert all(0 <= one["seconds"] < 30 for one in answers)
    human = merge_ratings(study.with_name("study_key.json"), [path])
    assert human["raters"] == ["Anna <b> R5g"] and human["told"]["n"] == N


def test_fingers_on_a_phone(study, tmp_path):
    with open_browser() as browser, open_page(browser, study, 390, has_touch=True, is_mobile=True) as page:
        page.tap("#begin")
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
            390,
            844,
        ]
        sizes = page.evaluate(
            "Array.from(rate.querySelectorAll('fieldset button'), b => [b.offsetWidth, b.offsetHeight])"
        )
        assert len(sizes) == 7 and all(width >= 44 and height >= 44 for width, height in sizes)
        page.tap("[data-rating='4']")
        page.tap("[data-guess='real']")
        page.locator("#place", has_text="2 of").wait_for()
        page.tap("#back")
        assert page.get_attribute("[data-rating='4']", "aria-pressed") == "true"
        page.tap("#stop")
        assert page.inner_text("#thanks") == "Stopped early"
        with page.expect_download() as download:
            page.tap("#download")
        download.value.save_as(tmp_path / "phone.json")
        page.tap("#again")
        assert page.inner_text("#place") == f"2 of {N}"
    other = rate(study, tmp_path, "Ben", fair, honest)
    human = merge_ratings(study.with_name("study_key.json"), [tmp_path / "phone.json", other])
    assert human["raters"] == ["rater 1", "Ben"] and "rater 1 left out 7 of 8 images." in human["notes"]


def test_merging_gives_what_was_said(study, tmp_path):
    def kinder(kind, **_):
        return 5 if kind == "real" else 3

    def harder(kind, **_):
        return 4 if kind == "real" else 2

    paths = [rate(study, tmp_path, name, how, honest) for name, how in (("A", kinder), ("B", harder), ("C", kinder))]
    human = merge_ratings(study.with_name("study_key.json"), paths)
    assert human["mean"]["real"]["value"] == pytest.approx(14 / 3) and human["mean"]["real"]["high"] == 5
    assert human["mean"]["difference"]["value"] == pytest.approx(-2)
    assert -4 <= human["mean"]["difference"]["low"] < -2 < human["mean"]["difference"]["high"] < 0
    assert human["good"]["real"]["value"] == 1 and human["good"]["real"]["low"] < 0.7  # 4 images are few
    assert human["good"]["generated"]["value"] == 0 and human["mean"]["real"]["n"] == 12
    assert human["told"]["value"] == 1 and human["told"]["verdict"] == "people can tell"
    assert 0 < human["agreement"]["value"] < 1
    said = "\n".join(describe_people(human))
    assert (
        "3 raters, 8 images" in said
        and "real 4.67 (" in said
        and "difference −2.0" in said
        and "people can tell" in said
    )


def test_people_who_guess_are_said_to_show_no_difference(study, tmp_path):
    def guess(item, **_):
        return ("real", "generated")[item % 2]

    def always(**_):
        return "real"

    def wrong(kind, **_):
        return "real" if kind == "generated" else "generated"

    key = study.with_name("study_key.json")
    for name, how in (("guess", guess), ("always", always)):
        told = merge_ratings(key, [rate(study, tmp_path, name, fair, how)])["told"]
        assert told["low"] <= 0.5 <= told["high"] and told["verdict"] == "no difference shown", name
    assert told["value"] == 0.5  # though always `real` is right for every real one
    human = merge_ratings(key, [rate(study, tmp_path, "wrong", fair, wrong)])
    assert human["told"]["verdict"] == "people confuse real and generated"
    assert "needs" in human["agreement"]["refused"] or "two raters" in human["agreement"]["refused"]
    assert any("One rater" in note for note in human["notes"])


def test_one_rater_counts_once(study, tmp_path):
    key = study.with_name("study_key.json")
    early = rate(study, tmp_path, "Anna", fair, honest, leave_out=(1, 2))
    late = rate(study, tmp_path, "Anna", lambda **_: 4, honest, saved="2026-01-02")
    human = merge_ratings(key, [late, early])
    assert human["raters"] == ["Anna"] and human["mean"]["real"]["value"] == 4
    assert "from one rater; the later one counts" in human["notes"][0]
    namesake = rate(study, tmp_path, " anna", fair, honest, session="another")
    with pytest.raises(UserError, match="by anna, like .*Anna"):
        merge_ratings(key, [late, namesake])


def test_damaged_and_foreign_ratings_are_refused_by_name(study, tmp_path):
    key = study.with_name("study_key.json")
    good = rate(study, tmp_path, "Good", fair, honest)
    wrong = {
        "another study": rate(study, tmp_path, "X", fair, honest, study="0000"),
        'answer 1: .*rating 1 to 5.* "rating": 9': rate(study, tmp_path, "X", lambda **_: 9, honest),
        'answer 1: .*guess real or generated.* "guess": "maybe"': rate(study, tmp_path, "X", fair, lambda **_: "maybe"),
        'answer 1: expected .*found {"item": 1}': rate(study, tmp_path, "X", fair, honest, answers=[{"item": 1}]),
        'answer 1: expected item 1 to 8, .*found {"item": 99': rate(
            study, tmp_path, "X", fair, honest, answers=[{"item": 99, "rating": 1, "guess": "real"}]
        ),
        'answer 1: expected item .*found "good"': rate(study, tmp_path, "X", fair, honest, answers=["good"]),
        "is the key of a study": key,
        "in it twice": rate(
            study, tmp_path, "X", fair, honest, answers=[{"item": 1, "rating": 1, "guess": "real"}] * 2
        ),
        "has no answers": rate(study, tmp_path, "X", fair, honest, answers=[]),
        "`rater` is not text": rate(study, tmp_path, "X", fair, honest, rater=["X"]),
        "damaged": tmp_path / "torn.json",
        "other.json: has no `answers`; expected a file that study.html": tmp_path / "other.json",
        "gone.json: no such file": tmp_path / "gone.json",
    }
    (tmp_path / "torn.json").write_text(good.read_text()[:50])
    (tmp_path / "other.json").write_text('{"study": "0000"}')
    for message, path in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            merge_ratings(key, [good, path])
        assert path.name in str(caught.value), message
    (tmp_path / "quoted").mkdir()
    rate(study, tmp_path / "quoted", "Eva", fair, honest)
    assert merge_ratings(key, [tmp_path / "quoted/E*.json"])["raters"] == ["Eva"]
    with pytest.raises(UserError, match=r"--ratings .*none\*: no such file"):
        merge_ratings(key, [tmp_path / "none*"])
    with pytest.raises(UserError, match="is not a study key"):
        merge_ratings(good, [good])
    with pytest.raises(UserError, match="fewer than 2"):
        merge_ratings(key, [rate(study, tmp_path, "Lazy", fair, honest, leave_out=range(2, N + 1))])


@pytest.mark.parametrize("raters, items, rater_sd", [(5, 40, 0.5), (3, 40, 0.1), (1, 30, 0.0)])
def test_intervals_over_raters_and_items_hold_the_truth(raters, items, rater_sd):
    rng, mean_held, difference_held = np.random.default_rng(0), 0, 0
    for _ in range(300):
        leniency = rng.normal(0, rater_sd, (raters, 1))
        first, second = (leniency + rng.normal(0, 0.5, items) + rng.normal(0, 0.7, (raters, items)) for _ in range(2))
        first[rng.random(first.shape) < 0.1] = np.nan
        _, low, high = crossed_interval([(first, 1.0)])
        mean_held += low <= 0 <= high
        _, low, high = crossed_interval([(first, 1.0), (second, -1.0)])
        difference_held += low <= 0 <= high
    assert 0.92 <= mean_held / 300 <= 1 and 0.92 <= difference_held / 300 <= 1
