"""What several benchmark.json say side by side, and which of them can't be compared."""

import copy
import json
import re

import pytest
from PIL import Image

import benchmark
from benchmarking.comparison import compare_lines, read_results, recipe_differences, write_comparison
from benchmarking.report import (
    find_recommended,
    format_rate,
    list_generation,
    list_rows,
    plot_benchmark,
    print_benchmark,
)
from tests.browser import open_browser, open_page
from utils.cli import UserError


def spread(median):
    return {"median": median, "low": 0.9 * median, "high": 1.2 * median, "repeats": 3}


def row(micro, seconds, checkpointing=False, status="ok", **more):
    base = {"gradient_checkpointing": checkpointing, "compile": False, "micro_batch": micro, "status": status}
    base |= {"why": "", "estimated_gib": 2.0 * micro}
    if status == "ok":
        base |= {"seconds_per_step": spread(seconds), "samples_per_second": 16 / seconds, "memory_gib": 2.5 * micro}
    return base | more


@pytest.fixture
def t4():
    """A benchmark.json with a setting of each kind."""
    return {
        "machine": {"name": "Tesla T4", "type": "cuda", "memory_gib": 14.6, "cores": 2, "torch": "2.13.0"},
        "recipe": {
            "script": "train_lora.py",
            "model": "stable-diffusion",
            "random_weights": False,
            "resolution": 512,
            "effective_batch_size": 16,
            "mixed_precision": "fp16",
            "examples": 8,
        },
        "settings": {"rank": 4, "optimizer": "adamw", "seed": 0},
        "commit": "1234567",
        "command": "python benchmark.py --resolution 512",
        "date": "2026-11-27T01:00:00+00:00",
        "rows": [
            row(1, 8.0, mfu=0.11),
            row(4, 5.0, mfu=0.21),
            row(8, 0, status="out of memory", why="the device's memory is full"),
            row(8, 6.4, checkpointing=True, mfu=None),
        ],
        "generation": [
            {"batch_size": 1, "status": "ok", "why": "", "seconds_per_image": spread(9.0)},
            {"batch_size": 4, "status": "ok", "why": "", "seconds_per_image": spread(6.5)},
            {"batch_size": 8, "status": "out of memory", "why": "full"},
        ],
        "rates": {"encoding_images_per_second": 12.0, "loading_images_per_second": None},
        "recommended": {"train_batch_size": 4, "gradient_checkpointing": False, "compile": False},
    }


@pytest.fixture
def l4(t4):
    """The same recipe on another machine, where a step takes half as long."""
    other = copy.deepcopy(t4)
    other["machine"] |= {"name": "NVIDIA L4 <b>|"}
    other["recipe"] |= {"mixed_precision": "bf16", "examples": 9}
    other["recipe"] |= {"random_weights": True}
    other["settings"] |= {"seed": 1}
    other["rows"][1] |= {"seconds_per_step": spread(2.5), "samples_per_second": 6.4}
    return other


def write(folder, **results):
    paths = [folder / name / "benchmark.json" for name in results]
    for path, result in zip(paths, results.values()):
        path.parent.mkdir()
        path.write_text(json.dumps(result))
    return paths


def test_the_table_has_a_line_for_each_setting_and_says_why_one_has_no_figures(t4):
    shown = list_rows(t4)
    assert shown[1] == ["no", "no", "4", "5.00 (4.50 to 6.00)", "3.20", "10.0", "8.00", "21.0%", ""]
    assert shown[2][3:6] == ["", "", ""] and shown[2][-1] == "out of memory: the device's memory is full"
    assert shown[3][:3] == ["yes", "no", "8"] and shown[3][-2] == ""
    assert list_generation(t4)[1:] == [["4", "6.50 (5.85 to 7.80)", ""], ["8", "", "out of memory: full"]]
    assert [format_rate(value) for value in (0.01234, 1.5, 123.4, 56789, None)] == [
        "0.0123",
        "1.50",
        "123",
        "56,800",
        "",
    ]
    assert find_recommended(t4) is t4["rows"][1] and find_recommended({**t4, "recommended": None}) is None


def test_the_figure_shows_every_setting_also_where_nothing_fits(t4, tmp_path):
    plot_benchmark(t4, tmp_path / "benchmark.png")
    with Image.open(tmp_path / "benchmark.png") as image:
        assert image.width > 1000 and len(image.convert("L").getcolors(256)) > 50
    empty = {**t4, "rows": t4["rows"][2:3], "generation": [], "recommended": None}
    plot_benchmark(empty, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size < (tmp_path / "benchmark.png").stat().st_size


def test_each_machine_is_compared_with_the_first_in_its_recommended_settings(t4, l4):
    lines = {line.name: line for line in compare_lines({"a": t4, "b": l4})}
    assert lines["samples a second"].cells == ["3.20", "6.40"] and lines["samples a second"].ratios == ["", "× 2.00"]
    assert lines["seconds a step"].ratios == ["", "× 0.500"] and lines["precision"].cells == ["float16", "bfloat16"]
    assert lines["settings"].cells[0] == "4 at once" and "images loaded a second" not in lines
    nothing = {**l4, "rows": l4["rows"][2:3], "recommended": None}
    without = {line.name: line for line in compare_lines({"a": t4, "b": nothing})}
    assert without["samples a second"].cells == ["3.20", ""] and without["samples a second"].ratios == ["", ""]
    assert without["settings"].cells[1] == "out of memory: the device's memory is full"


def test_different_recipes_are_named_and_not_compared(t4, l4, tmp_path):
    assert recipe_differences({"a": t4, "b": l4}) == []  # each machine has its own precision
    l4["recipe"] |= {"resolution": 1024}
    l4["settings"] |= {"rank": 8}
    both = {"a": t4, "b": l4}
    assert recipe_differences(both) == ["resolution is 512 (a) and 1024 (b)", "rank is 4 (a) and 8 (b)"]
    assert not any("".join(line.ratios) for line in compare_lines(both))
    differences, markdown = write_comparison(read_results(write(tmp_path, t4=t4, l4=l4)), tmp_path / "page.html")
    assert differences[0].startswith("resolution is 512 (Tesla T4) and 1024 (NVIDIA L4")
    assert "**Different recipes**: resolution is 512" in markdown
    assert "Different recipes: the figures can't be compared" in (tmp_path / "page.html").read_text()


def test_the_markdown_is_a_table_with_command_and_commit_of_each(t4, l4, tmp_path):
    _, markdown = write_comparison(read_results(write(tmp_path, t4=t4, l4=l4)), tmp_path / "new/page.html")
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {4}
    assert (
        table[0] == "|  | Tesla T4 | NVIDIA L4 &lt;b&gt;\\| |" and "| samples a second | 3.20 | 6.40 × 2.00 |" in table
    )
    assert "torch 2.13.0: train_lora.py, stable-diffusion, 512x512, 16 samples a step, rank 4. 2026-11-27T" in markdown
    assert markdown.count("commit 1234567:\n  `python benchmark.py --resolution 512`") == 2


def test_two_results_of_one_machine_are_told_apart_by_their_files(t4, tmp_path):
    assert list(read_results(write(tmp_path, before=t4, after=t4))) == ["Tesla T4, before", "Tesla T4, after"]


def test_a_file_that_is_no_benchmark_is_named(t4, tmp_path):
    good, partial, broken = write(tmp_path, good=t4, partial={"machine": {}}, broken={**t4, "rows": [{"x": 1}]})
    with pytest.raises(UserError, match="--compare: takes 2 to 8 files, found 1"):
        read_results([good])
    with pytest.raises(UserError, match="the same file twice"):
        read_results([good, good])
    with pytest.raises(UserError, match="partial/benchmark.json: lacks `recipe`"):
        read_results([good, partial])
    with pytest.raises(UserError, match="broken/benchmark.json: a part of it can't be read"):
        read_results([good, broken])
    with pytest.raises(UserError, match="--compare .*gone.json: No such file"):
        read_results([good, tmp_path / "gone.json"])


def test_the_script_writes_the_page_once_and_prints_what_to_paste(t4, l4, tmp_path, capsys):
    l4["recipe"] |= {"resolution": 1024}
    files = [str(path) for path in write(tmp_path, t4=t4, l4=l4)]
    words = ["--compare", *files, "--output_dir", str(tmp_path / "out")]
    assert benchmark.main(benchmark.parse_args(words)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("|  | Tesla T4 |") and "different recipes: resolution is 512 (Tesla T4) and 1024" in err
    assert (tmp_path / "out/comparison.html").is_file()
    with pytest.raises(UserError, match="holds a comparison.html; give another, or add --overwrite"):
        benchmark.main(benchmark.parse_args(words))
    with pytest.raises(SystemExit):
        benchmark.parse_args([*words, "--resolution", "512"])
    assert "--resolution" in capsys.readouterr().err


def test_the_tables_say_whether_the_share_of_the_peak_is_known(t4, capsys):
    print_benchmark(t4 | {"flops": {"per_sample": 1_718_000_000_000, "peak": 65e12}})
    shown = capsys.readouterr().out
    assert "21.0%" in shown and "MFU: 1.72 TFLOPs a sample against the published peak, 65 TFLOP/s" in shown
    print_benchmark(t4 | {"flops": {"per_sample": 1, "peak": None}})
    assert "not known: no peak is published for Tesla T4" in capsys.readouterr().out


def test_the_page_in_a_browser_needs_nothing_else_at_both_widths(t4, l4, tmp_path):
    write_comparison(read_results(write(tmp_path, t4=t4, l4=l4)), tmp_path / "page.html")
    with open_browser() as browser:
        for width in (390, 1280):
            with open_page(browser, tmp_path / "page.html", width) as page:
                assert page.locator("h1").inner_text() == "Tesla T4 · NVIDIA L4 <b>|"
                assert page.evaluate("document.images[0].naturalWidth") > 500
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert "4 at once" in page.locator("table").inner_text()
