"""Rules on progress, time and memory: each takes a run and returns its finding, or None where it has none."""

from statistics import median
from typing import Any

from service.report.findings import Finding
from service.report.loss_rules import FEWEST
from service.report.run_record import SILENT, RunRecord, is_number, seconds_silent
from utils.metrics_log import TIMED, seconds_left

SLOWED = 0.7  # of the speed that it had
MUCH_WAITING, MUCH_VALIDATION, MUCH_SAVING = 0.2, 0.3, 0.15  # of the time
ALONE_GIB = 2.0  # what Python, the libraries and the device's own may take beside the estimate
BEYOND = 1.3  # times the estimate


def judge_records(run: RunRecord) -> Finding | None:
    """Lines of metrics.jsonl that can't be read, or none at all though the run has trained."""
    if run.unread:
        values = {"unread": run.unread, "records": len(run.records)}
        return Finding("finding.records_damaged", "odd", values, "advice.records")
    if run.records or not run.has_trained:
        return None
    is_there = (run.folder / "metrics.jsonl").exists()
    return Finding("finding.records_empty" if is_there else "finding.records_missing", "odd", advice="advice.records")


def judge_progress(run: RunRecord) -> Finding | None:
    """How far it is, and how long the rest takes; or that it has ended."""
    if not run.step:
        return None if judge_records(run) else Finding("finding.not_begun", "note", advice="advice.not_begun")
    values: dict[str, float] = {"steps": run.step, "last_step": run.last_step or run.step}
    if run.has_ended:
        values["seconds"] = run.summary.get("seconds", 0.0)
        if "stopped_early" in run.summary:
            return Finding("finding.stopped_early", "note", values)
        return Finding("finding.ended", "good", values)
    if not run.last_step:
        return Finding("finding.open_end", "note", values)
    if run.step > run.last_step:
        return Finding("finding.beyond_end", "odd", values, "advice.beyond_end")
    values["share"] = run.step / run.last_step
    left = seconds_left(run.records, int(run.last_step))
    if left is None:
        return Finding("finding.time_unknown", "note", values)
    return Finding("finding.time_left", "note", values | {"left": left})


def judge_silence(run: RunRecord) -> Finding | None:
    """No new record for far longer than one takes."""
    if run.has_ended or not run.step or not (run.folder / "metrics.jsonl").exists():
        return None
    silent = seconds_silent(run.folder)
    usual = max((sum(record.get(f"seconds_{name}") or 0 for name in TIMED) for record in run.records), default=0.0)
    if silent < max(SILENT, 10 * usual):
        return None
    return Finding("finding.silent", "odd", {"silent": silent, "usual": usual}, "advice.silent")


def judge_speed(run: RunRecord) -> Finding | None:
    """Samples a second, and whether they became fewer."""
    rates = run.values("samples_per_second")
    if not rates:
        return None
    quarter = max(1, len(rates) // 4)
    before, now = median(rates[:-quarter] or rates), median(rates[-quarter:])
    if len(rates) >= 2 * FEWEST and now < SLOWED * before:
        values = {"speed_before": before, "speed_now": now, "share": 1 - now / before}
        return Finding("finding.slows", "odd", values, "advice.slows")
    return Finding("finding.speed", "note", {"speed": median(rates)})


def judge_time_spent(run: RunRecord) -> Finding | None:
    """Time that goes into anything but training steps."""
    times = {name: sum(run.values(f"seconds_{name}")) for name in TIMED}
    whole = sum(times.values())
    if not whole or run.step < FEWEST:
        return None
    shares = {name: spent / whole for name, spent in times.items()}
    if shares["data"] > MUCH_WAITING:
        return Finding("finding.waits_for_data", "odd", {"share": shares["data"]}, "advice.waits_for_data")
    if shares["validation"] > MUCH_VALIDATION:
        return Finding("finding.validates_long", "note", {"share": shares["validation"]}, "advice.validates_long")
    if shares["checkpoint"] > MUCH_SAVING:
        return Finding("finding.saves_long", "note", {"share": shares["checkpoint"]}, "advice.saves_long")
    return None


def judge_memory(run: RunRecord) -> Finding | None:
    """The peak beside the dry run's estimate, where that was recorded; it leaves out Python and the device's own."""
    peak = max(run.values("memory_gib"), default=0.0)
    estimates = run.values("estimated_memory_gib")
    if not peak:
        return None
    if not estimates:
        return Finding("finding.memory", "note", {"peak": peak})
    values = {"peak": peak, "estimate": estimates[-1]}
    if peak > BEYOND * estimates[-1] + ALONE_GIB:
        return Finding("finding.memory_above", "odd", values, "advice.memory_above")
    return Finding("finding.memory_as_estimated", "note", values)


def judge_benchmark(run: RunRecord, benchmark: dict[str, Any]) -> Finding | None:
    """Speed beside what benchmark.py measured with the settings that it recommended."""
    wanted = benchmark.get("recommended") or {}
    names = [name for name in wanted if name != "command"]
    rows = [row for row in benchmark.get("rows", []) if all(row.get(name) == wanted[name] for name in names)]
    measured = rows[0].get("samples_per_second") if wanted and rows else None
    rates = run.values("samples_per_second")
    if not is_number(measured) or not rates:
        return None
    values = {"speed": median(rates), "measured": measured, "times": median(rates) / measured}
    if values["times"] < SLOWED:
        return Finding("finding.slower_than_measured", "odd", values, "advice.slower_than_measured")
    return Finding("finding.as_measured", "good", values)
