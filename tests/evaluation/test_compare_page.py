"""The page of several evaluations: what is called a difference, and which images lie side by side."""

import json
import re
import shutil

import pytest

from evaluation import quality
from evaluation.intervals import difference
from evaluation.report.comparison_page import (
    REFERENCES,
    compare_figures,
    different_references,
    find_images,
    judge_difference,
    run_names,
    write_comparison,
)
from evaluation.report.evaluation_page import read_evaluation
from tests.browser import open_browser, open_page
from tests.sample_evaluation import write_evaluation
from utils.cli import UserError


def one(value, half=1.0, **more):
    base = {"id": "frechet/clip", "group": "quality", "better": "lower", "n": 500}
    return {**base, "value": value, "low": value - half, "high": value + half, **more}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two evaluations of sets that share five prompts with their seeds."""
    root = tmp_path_factory.mktemp("compare")
    both = [write_evaluation(root / "first", 8), write_evaluation(root / "second", 6, -20.0, "b")]
    table = root / "second/set/metadata.jsonl"
    first, *others = map(json.loads, table.read_text().splitlines())
    table.write_text("".join(json.dumps(line) + "\n" for line in [{**first, "seed": 99}, *others]))
    return both


def test_half_widths_add_up_in_quadrature_on_the_sides_that_matter():
    found = difference({"value": 10, "low": 7, "high": 14}, {"value": 20, "low": 17, "high": 32})
    assert found == {"value": 10, "low": pytest.approx(10 - 5), "high": pytest.approx(10 + (9 + 144) ** 0.5)}


def test_a_difference_is_called_so_only_when_its_interval_leaves_out_0():
    assert judge_difference(one(10), one(11.4)).verdict == "no difference shown"
    assert judge_difference(one(10), one(11.5)).verdict == "worse"
    assert judge_difference(one(10), one(8.5)).verdict == "better"
    assert judge_difference(one(10, better="higher"), one(11.5)).verdict == "better"
    assert judge_difference(one(10, better="near floor"), one(11.5)).verdict == "higher"


def test_figures_that_rest_on_different_images_are_not_graded():
    def refused(key, *apart):
        return judge_difference(one(0.5, id=key, better="higher"), one(5, id=key, better="higher"), apart).refused

    why = "not compared: measured against different reference photos"
    assert refused("identity/verified", "identity_reference") == why
    assert refused("fidelity/subject/clip", "instance_data_dir") and refused("near_duplicates/clip", "real")
    assert all(refused(f"{figure.id}/clip", "real") for figure in quality.FIGURES)
    for kind in ("instance_data_dir", "prior_before"):
        assert refused("fidelity/prior_leak/clip", kind)
    for key in ("identity/face_found", "fidelity/prompt/clip", "vendi/clip"):  # of the generated images alone
        assert not refused(key, *REFERENCES)
    assert not refused("identity/verified", "real", "instance_data_dir")


def test_images_are_the_same_wherever_they_lie():
    def run(**more):
        return {"sets": {"identity_reference": {"path": "photos", "n": 4, **more}}}

    assert different_references(run(), run()) == []
    assert different_references(run(sha256="a"), run(sha256="a", path="/home/photos")) == []
    assert different_references(run(sha256="a"), run(sha256="b")) == ["identity_reference"]
    assert different_references(run(), run(n=5)) == ["identity_reference"]
    assert different_references(run(), {"sets": {}}) == []


def test_what_cannot_be_compared_is_not():
    assert "depends on n" in judge_difference(one(10, n=500), one(10, n=3000)).refused
    assert judge_difference(one(10, n=500, id="kid/clip"), one(10, n=3000, id="kid/clip")).verdict
    assert judge_difference(one(0.1, n=500, group="failures"), one(0.1, n=3000, group="failures")).verdict
    assert judge_difference(one(10), {"id": "x", "refused": "too few"}).refused == "too few"
    assert judge_difference(None, one(10)).refused == "not in both"


def test_figures_are_matched_by_name_wherever_they_stand(folders):
    runs = {name: read_evaluation(folder) for name, folder in zip("ab", folders)}
    runs["b"]["figures"].reverse()
    rows = compare_figures(runs)
    assert all(row.runs["a"]["id"] == row.runs["b"]["id"] for row in rows) and len(rows) == 12
    verdicts = {row.figure["id"]: row.judgements["b"].verdict for row in rows}
    assert verdicts["frechet/clip"] == "better" and verdicts["vendi/clip"] == "no difference shown"


def test_images_are_matched_by_prompt_and_seed_not_by_name(folders):
    lines = [json.loads(line) for line in (folders[1].parent / "set/metadata.jsonl").read_text().splitlines()]
    first, second = (find_images(folder, read_evaluation(folder)) for folder in folders)
    shared = first.keys() & second.keys()
    assert len(first) == 8 and len(second) == 6 and len(shared) == 5
    key = (lines[3]["text"], "3")
    assert first[key].read_bytes() != second[key].read_bytes() and "second" in str(second[key])


def test_names_are_the_part_of_the_paths_that_differs(tmp_path):
    assert run_names([tmp_path / "a/evaluation", tmp_path / "b/evaluation"]) == ["a", "b"]
    assert run_names([tmp_path / "base", tmp_path / "lora/evaluation"]) == ["base", "lora"]
    assert run_names([tmp_path / "run/1", tmp_path / "run/2"]) == ["1", "2"]
    assert len(set(run_names([tmp_path / "a/1", tmp_path / "a/2", tmp_path / "b/1"]))) == 3


def test_one_evaluation_is_none_to_compare_even_if_it_is_given_twice(folders, tmp_path):
    with pytest.raises(UserError, match="2 to 6"):
        write_comparison(folders[:1], tmp_path / "page.html")
    (tmp_path / "link").symlink_to(folders[0])
    with pytest.raises(UserError, match="--compare .*link: the same evaluation; give different ones"):
        write_comparison([folders[0], tmp_path / "link"], tmp_path / "page.html")


def test_the_page_says_what_differs_and_warns_of_different_real_sets(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    metrics["sets"]["real"]["path"] = "<b>elsewhere"
    (other / "metrics.json").write_text(json.dumps(metrics))
    page = tmp_path / "page.html"
    title, *said = write_comparison([folders[0], folders[1]], page)
    assert title == "Compared with first"
    assert said == ["second: better in 1, no difference shown in 10, not compared in 1, of 12 figures."]
    text = page.read_text()
    assert said[0] in text and "different real sets" not in text and text.count("<img ") == 2 * 5
    assert re.search(r"<div class=figure><span class=judged>\s*<b class=good>better</b> second − first:", text)
    _, *said = write_comparison([folders[0], other], page)
    text = page.read_text()
    assert said[0].startswith("other: no difference shown in ") and "not compared in 7, of 12" in said[0]
    assert "different real sets" in said[1] and "&lt;b&gt;elsewhere" in text
    assert "no figure of quality to compare" in said[2]
    assert not re.search(r"<script|https?://", text)


def test_in_a_browser_at_both_widths(folders, tmp_path):
    long = tmp_path / "a_run_whose_name_is_longer_than_the_screen_of_a_phone_is_wide" / "evaluation"
    shutil.copytree(folders[1].parent, long.parent)
    metrics = json.loads((long / "metrics.json").read_text())
    why = "a mean, images: needs at least 10 items, found 0; the images carry too few attributes to be judged by"
    metrics["figures"][0] |= {"value": None, "low": None, "high": None, "refused": why}
    (long / "metrics.json").write_text(json.dumps(metrics))
    path = tmp_path / "page.html"
    write_comparison([*folders, long], path)
    with open_browser() as browser:
        for width in (1280, 390):
            with open_page(browser, path, width) as tab:
                assert tab.evaluate("document.documentElement.scrollWidth") == width
                names = tab.evaluate("Array.from(document.querySelectorAll('.name')).map(one => one.offsetWidth)")
                assert min(names) > 100  # no name squeezed to a column of letters
