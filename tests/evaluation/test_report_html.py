"""report.html: what a person finds in it, at any width, whatever metrics.json holds."""

import json
import re

import pytest

from evaluation.intervals import Estimate
from evaluation.report.charts import Axis
from evaluation.report.evaluation_page import write_report
from evaluation.report.formatting import format_interval, read_estimate
from evaluation.report.verdict import compare_with_floor, judge_evaluation
from tests.browser import open_browser, open_page
from tests.sample_evaluation import write_evaluation
from utils.cli import UserError


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(evaluation):
    return write_report(evaluation).read_text(encoding="utf-8")


def changed(evaluation, folder, change):
    """The page of metrics that `change` has worked on."""
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["utility"] = str(evaluation.parent / "utility")
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return write_report(folder).read_text(encoding="utf-8")


def test_everything_in_metrics_is_on_the_page_in_order(evaluation, page):
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "1 of 3 targets met, 1 missed, 1 undecided.",
        *("The figures", "A sample", "Best and worst by prompt", "Nearest neighbours", "Failures", "Attributes"),
        *("Does it help?", "What people say", "How each number was made"),
    ]
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for one in metrics["figures"]:
        value = format_interval(read_estimate(one), one["unit"])[0] if one["value"] is not None else one["refused"]
        assert value in page and one["how"] in page, one["id"]
    assert page.count("<img ") == 8 + 6 + 18 + 6 + 6 + 2 * 4 + 6 + 3 and page.count("pair suspected") == 1
    assert all("<text" in strip for strip in re.findall(r'<svg class="strip".*?</svg>', page, re.S))  # its numbers
    assert (
        "no difference shown" in page
        and "better with real + 1x synthetic" in page
        and metrics["made"]["command"] in page
    )


def test_the_page_needs_nothing_but_itself(page):
    assert not re.search(r"<script|<link|@import|url\(|https?://", page)
    assert all(src.startswith("data:image/") for src in re.findall(r'src="(.*?)"', page))
    assert re.search(r'http-equiv="Content-Security-Policy" content="default-src \'none\'', page)


def test_names_and_prompts_can_do_nothing_to_the_page(evaluation, tmp_path):
    evil = '"><script>alert(1)</script>{{body}}'

    def change(metrics):
        metrics["pictures"]["sample"] = [{"file": f"{evil}.png", "text": evil}]
        metrics["shares"]["baseColour"][0]["value"] = metrics["figures"][0]["name"] = evil
        metrics["targets"][0]["target"] = metrics["pictures"]["failures"][0]["reason"] = evil
        metrics["made"]["command"] = metrics["sets"]["generated"]["path"] = evil

    text = changed(evaluation, tmp_path, change)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 8


def test_a_missing_image_is_said_and_a_foreign_file_not_quoted(evaluation, tmp_path):
    (tmp_path / "secret.txt").write_text("swordfish")
    files = ["gone.png", str(tmp_path / "secret.txt"), "a\0b.png"]

    def change(metrics):
        metrics["pictures"]["sample"] = [{"file": file, "text": "a shoe"} for file in files]

    text = changed(evaluation, tmp_path, change)
    assert text.count('class="missing"') == 2 * 3 and "cannot be read" in text and "not an image" in text
    assert "swordfish" not in text


def test_an_evaluation_with_almost_nothing_makes_a_page(tmp_path):
    refused = {"id": "kid/clip", "name": "KID", "refused": "12 images; below 50 it says nothing"}
    (tmp_path / "metrics.json").write_text(json.dumps({"version": 1, "figures": [refused]}))
    text = write_report(tmp_path).read_text()
    assert "Not computed: KID. 12 images; below 50 it says nothing" in text and "A sample" not in text


@pytest.mark.parametrize("content", [None, "{", "[]", '{"figures": 3}'])
def test_a_folder_without_a_sound_evaluation_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_results_file_is_named(evaluation, tmp_path):
    with pytest.raises(UserError, match="gone.json"):
        changed(evaluation, tmp_path, lambda metrics: metrics.update(utility="gone.json"))


def test_usefulness_is_drawn_by_ratio_and_by_share(page):
    text = page.partition('<section id="utility">')[2].partition("</section>")[0]
    labels = re.findall(r'class="chart" role="img" aria-label="(.*?)"', text)
    assert labels[0].endswith("synthetic, none: 86.1%; synthetic, 1×: 87.4%; synthetic, 2×: 87.9%")
    assert labels[1].endswith("real, 100 %: 86.1%; real + 1x synthetic, 10 %: 73.1%; real + 1x synthetic, 100 %: 87.4%")
    assert text.count("<circle") == 3 + 4 + 2  # and two in the legend
    assert "real + 1x synthetic · 10 % of real" in text and "Left out with 100% of the real images" in text


def test_the_floor_is_compared_at_its_own_n():
    floor = {"value": 15.0, "low": 13.6, "high": 16.4}
    one = {"value": 12.0, "low": 11.0, "high": 13.0, "better": "lower", "floor": floor}
    close = {
        **one,
        "value": 12.9,
        "low": 11.9,
        "high": 13.9,
    }  # the difference is 2.1 ± 1.7, though the intervals overlap
    assert compare_with_floor(one) == ("better than real photos", "good")
    assert compare_with_floor(close) == ("better than real photos", "good")
    assert compare_with_floor({**close, "value": 13.6, "high": 14.6}) == ("no difference shown", "soft")
    assert compare_with_floor({**one, "at_floor_n": 16.0}) == ("no difference shown", "soft")
    assert compare_with_floor({**one, "at_floor_n": 20.0}) == ("worse than real photos", "bad")
    assert compare_with_floor({**one, "better": "near floor"}) == ("below real photos", "bad")


def graded(values: dict[str, float], **more) -> dict:
    """metrics.json with a figure of each group."""
    floor, base = {"value": 0.9, "low": 0.8, "high": 1.0}, {"name": "X", "better": "higher"}
    figures = [{**base, "id": "x", "group": key, "value": v, "low": v, "high": v} for key, v in values.items()]
    return {"figures": [{**one, "floor": floor} for one in figures], **more}


def test_verdict_without_targets_is_about_the_floor():
    metrics = graded({"quality": 0.5, "adherence": 0.85, "diversity": 0.9})
    said = "Worse than real photos in 1 of 3 figures; the others are not shown to be worse."
    assert judge_evaluation(metrics, None)[0] == said


@pytest.mark.parametrize("left_out", ["quality", "adherence", "diversity"])
def test_there_is_no_verdict_without_quality_adherence_and_diversity(left_out):
    metrics = graded({key: 0.9 for key in ("quality", "adherence", "diversity", "fidelity") if key != left_out})
    headline, sentences = judge_evaluation(metrics, None)
    assert headline == f"No verdict: there is no figure of {left_out}."
    assert sentences[0].startswith(f"Figures of {left_out} need")
    metrics["targets"] = [{"target": "x", "asked": ">0.5", "value": 0.9, "met": True}]
    headline, _ = judge_evaluation(metrics, None)
    assert headline == f"The target is met. No verdict on the whole: there is no figure of {left_out}."


def test_an_encoder_that_failed_its_check_is_named_before_all_else(evaluation, tmp_path):
    def change(metrics):
        metrics["figures"] = [one for one in metrics["figures"] if one["group"] == "failures"]
        metrics["checks"] = {"clip": {"problem": "it tells 55% of the real images from spoilt copies of them"}}
        metrics["targets"] = [{"target": "kid", "asked": "<1", "value": None, "met": None, "refused": "clip failed"}]

    text = changed(evaluation, tmp_path, change)
    first = re.search(r"<h2>(.*?)</h2>\s*<p class=bad>(.*?)</p>", text)
    assert first[1].startswith("0 of 1 target met, 1 refused. No verdict on the whole: there is no figure of quality")
    assert "The encoder clip does not understand these images: it tells 55%" in first[2]
    assert first[2].endswith("use --encoders dinov2.")


@pytest.mark.parametrize(
    "one, unit, shown",
    [
        (Estimate(48.34, 45.2, 51.4), "", ("48.3", "45.2 to 51.4")),
        (Estimate(3000.0, 2500.0, 3500.0), "", ("3,000", "2,500 to 3,500")),
        (Estimate(0.0121, 0.004, 0.02), "%", ("1.2 %", "0.4 to 2.0")),
        (Estimate(-0.00061, -0.001, 0.0002), "", ("−0.00061", "−0.00100 to 0.00020")),
        (Estimate(1.0, 1.0, 1.0), "", ("1.000", "1.000 to 1.000")),
        (Estimate(-0.01, -0.4, 0.4), "", ("−0.01", "−0.40 to 0.40")),
        (Estimate(-0.0004, -2.0, 2.0), "", ("0.0", "−2.0 to 2.0")),
        (Estimate(-0.00001, -0.001, 0.001), "%", ("0.0 %", "−0.1 to 0.1")),
    ],
)
def test_numbers_have_the_digits_that_their_interval_justifies(one, unit, shown):
    assert format_interval(one, unit) == shown


@pytest.mark.parametrize("low, high", [(0, 1), (0, 1e-4), (-3, 5), (148, 152), (0.0, 0.25), (1, 5), (0, 90000)])
def test_axes_have_a_few_different_round_numbers(low, high):
    ticks = Axis(low, high).ticks()
    assert 2 <= len(ticks) <= 6 and all(low - 1e-9 <= one.value <= high + 1e-9 for one in ticks)
    assert len({one.text for one in ticks}) == len(ticks)
    shown = [float(one.text.replace("−", "-").replace(",", "")) for one in ticks]
    assert shown == pytest.approx([one.value for one in ticks], abs=1e-12)


def test_in_a_browser_at_both_widths_light_dark_and_on_paper(evaluation, page):
    with open_browser() as browser:
        papers = set()
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                with open_page(browser, evaluation / "report.html", width, color_scheme=scheme) as tab:
                    assert tab.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
                    broken = "Array.from(document.images).filter(one => !one.complete || !one.naturalWidth).length"
                    assert tab.evaluate(broken) == 0
                    first = "document.querySelectorAll('.first figure')[1].getBoundingClientRect().bottom"
                    assert tab.evaluate(first) < 844  # images of both sets without scrolling
                    ends = "[...document.querySelectorAll('.verdict td:last-child')].map(one => {"
                    ends += "const range = document.createRange(); range.selectNodeContents(one);"
                    ends += "return Math.round(range.getBoundingClientRect().right)})"
                    assert width == 1280 or len(set(tab.evaluate(ends))) == 1  # targets end on one line
                    assert tab.evaluate("Array.from(document.images).every(one => one.alt)")
                    papers.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
                    assert tab.evaluate(CONTRAST) >= 4.5
                    if (width, scheme) == (1280, "dark"):
                        pdf = tab.pdf(prefer_css_page_size=True)
                        assert pdf.startswith(b"%PDF") and 4 <= pdf.count(b"/Type /Page\n") <= 12
        assert len(papers) == 2


CONTRAST = """() => {
  const light = colour => {
    const part = colour.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const all = Array.from(document.querySelectorAll("p, small, a, td, th, i, h2, dd, figcaption, .state, .missing"));
  return Math.min(...all.map(one => {
    const ink = light(getComputedStyle(one).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }));
}"""
