import json
import math

import numpy as np
import pytest
from PIL import Image

from utils.metrics_log import (
    append_metrics,
    best_validation,
    cut_metrics,
    draw_losses,
    plot_losses,
    read_metrics,
    seconds_left,
    summary_rows,
)


def records(steps: int, validated: bool = True) -> list[dict]:
    made = []
    for step in range(10, steps + 1, 10):
        loss = 0.1 + 0.05 * math.exp(-step / 100)
        made.append(
            {
                "step": step,
                "loss": loss,
                "loss_smooth": loss,
                "loss_q1": loss * 2,
                "loss_q4": loss / 4,
                "lr": 1e-4,
                "samples_per_second": 8.0,
                "memory_gib": 3.0 + step / 1000,
                "seconds_data": 1.0,
                "seconds_step": 7.0,
                "seconds_checkpoint": 0.0,
            }
        )
        if validated and step % 50 == 0:
            made.append(
                {
                    "step": step,
                    "val_loss": 0.1 + abs(step - 100) / 1000,
                    "seconds_validation": 10.0,
                    "validation/invalid_images": 1,
                }
            )
    return made


def test_what_is_not_a_number_stays_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "loss": float("nan"), "lr": np.float32(0.5), "grad_norm": float("inf")})
    append_metrics(path, {"step": 2, "note": "größer"})
    lines = [json.loads(line, parse_constant=lambda name: 1 / 0) for line in path.read_text().splitlines()]
    assert lines == read_metrics(path)
    assert lines == [{"step": 1, "loss": None, "lr": 0.5, "grad_norm": None}, {"step": 2, "note": "größer"}]


def test_a_line_that_a_kill_tore_is_skipped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    append_metrics(path, {"step": 1})
    for torn in (b'{"step": 2, "lo', '{"note": "ö'.encode()[:-1], b"{"):
        path.write_bytes(b'{"step": 1}\n' + torn)
        assert read_metrics(path) == [{"step": 1}]
        append_metrics(path, {"step": 3})
        assert read_metrics(path) == [{"step": 1}, {"step": 3}]


def test_a_resumed_run_records_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert cut_metrics(path, 5) == [] and not path.exists()
    for record in records(100):
        append_metrics(path, record)
    path.write_bytes(path.read_bytes() + b'{"step": 110, "lo')
    kept = cut_metrics(path, 50)
    assert kept == read_metrics(path) == records(50) and kept[-1]["step"] == 50
    for record in records(100)[len(kept) :]:
        append_metrics(path, record)
    assert read_metrics(path) == records(100)
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_curve_shows_loss_and_validation(tmp_path):
    plot_losses(records(300), tmp_path / "with.png")
    plot_losses(records(300, validated=False), tmp_path / "without.png")
    with_it, without = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), dtype=int) for name in ("with", "without")
    )

    def pixels(image, colour):
        return int((np.abs(image - colour).max(-1) < 12).sum())

    assert pixels(with_it, (0x4A, 0x6F, 0xA5)) > 300 and pixels(with_it, (0xD1, 0x68, 0x2F)) > 300
    assert pixels(without, (0xD1, 0x68, 0x2F)) == 0


def test_no_label_of_the_curve_lies_on_another_or_on_the_curves():
    figure = draw_losses([record | {"val_loss_without_ema": 0.12} for record in records(300)])
    figure.draw_without_rendering()
    for axis in figure.axes[:2]:
        legend, title = axis.get_legend().get_window_extent(), axis._left_title.get_window_extent()
        assert not any(one.overlaps(legend) for one in (*(axis.bbox for axis in figure.axes), title))
        assert legend.x1 <= figure.bbox.x1 and not title.overlaps(axis.bbox) and not axis.texts


def test_the_bold_line_and_the_summary_have_no_bias_at_the_start():
    few = [{"step": 1, "loss": 0.3, "loss_smooth": 0.3}, {"step": 2, "loss": 0.1, "loss_smooth": 0.28}]
    bold = next(line for line in draw_losses(few).axes[0].lines if line.get_label() == "smoothed")
    assert list(bold.get_ydata()) == pytest.approx([0.3, (0.9 * 0.3 + 0.1) / 1.9])
    assert summary_rows(few, {})["smoothed loss"] == "0.3 at the start, 0.1947 at the end"


def test_any_record_can_be_plotted(tmp_path):
    plot_losses([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    for some in (
        [{"step": 1, "loss": 0.5}],
        [{"step": 0, "val_loss": 0.5}],
        [{"step": 1, "loss": 0.0}] * 2,
        [{"step": 1, "loss": None, "loss_q1": 0.0}, {"step": 2, "loss": 1e9, "lr": 0.0}],
    ):
        plot_losses(some, tmp_path / "curve.png")
        assert Image.open(tmp_path / "curve.png").size[0] > 500


def test_the_best_is_the_first_of_the_lowest():
    assert best_validation(
        [
            {"step": 1, "val_loss": 2.0},
            {"step": 2, "val_loss": 1.0},
            {"step": 3, "val_loss": 1.0},
            {"step": 4, "val_loss": None},
        ]
    ) == (2, 1.0)
    assert best_validation([{"step": 1, "loss": 1.0}]) is None


def test_the_summary_has_time_memory_and_losses():
    facts = {"seconds": 400.0, "samples": 4000, "skipped_steps": 2, "best_checkpoint": "best/"}
    rows = summary_rows(records(300), facts)
    assert rows["steps"] == "300" and rows["time"] == "6 min 40 s" and rows["skipped steps"] == "2"
    assert rows["samples a second"].startswith("10 ") and rows["peak memory"] == "3.30 GiB"
    assert rows["validation loss"] == "best 0.1 at step 100, 0.15 at the start"
    assert rows["time spent"] == "data 8%, step 52%, validation 15%, other 25%"
    assert rows["invalid validation images"] == "6" and rows["best checkpoint"] == "best/"
    assert summary_rows([], {})  # a run that ended before its first record


def test_the_time_left_counts_validations_and_forgets_the_hardware_of_before():
    assert seconds_left([], 100) is seconds_left([{"step": 0, "val_loss": 1.0}], 100) is None
    assert seconds_left([{"step": 0, "seconds_validation": 60.0}, {"step": 5, "seconds_step": 10.0}], 100) == 190
    some = records(300)  # 8 s for 10 steps, and 10 s for a validation every 50
    assert seconds_left(some, 400) == pytest.approx(100) and seconds_left(some, 300) == seconds_left(some, 200) == 0
    slow = [one | {"seconds_step": 700.0} if one["step"] < 100 else one for one in some]
    assert seconds_left(slow, 400) == pytest.approx(100)
