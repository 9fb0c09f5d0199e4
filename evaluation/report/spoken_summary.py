"""The evaluation of a voice as text: what evaluate_speech.py prints."""

from typing import Any

from evaluation.report.formatting import format_interval, read_estimate
from evaluation.report.spoken_verdict import judge_voice
from utils.console import format_table


def summarise(metrics: dict[str, Any]) -> str:
    """The verdict, what can't be trusted, and the figures as a table."""
    headline, sentences, doubts = judge_voice(metrics)
    rows = [figure_row(one) for one in metrics["figures"] if one["value"] is not None]
    headers = ["figure", "value", "95 % interval", "recordings", "copy-synthesis", "n"]
    table = [format_table(rows, headers)] if rows else []
    refused = [f"not computed: {one['name']}: {one['refused']}" for one in metrics["figures"] if one.get("refused")]
    return "\n".join([headline, *doubts, *table, *refused, *sentences])


def figure_row(figure: dict[str, Any]) -> list[str]:
    value, ends = format_interval(read_estimate(figure), figure["unit"])
    beside = [figure["beside"].get(kind) for kind in ("real", "copy")]
    others = [format_interval(read_estimate(one), figure["unit"])[0] if one else "" for one in beside]
    return [figure["name"], value, ends, *others, str(figure["n"])]
