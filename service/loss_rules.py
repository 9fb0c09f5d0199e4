"""Rules on the course of the losses: each takes a run and returns its finding, or None where it has none."""

from statistics import mean

from service.findings import Finding
from service.run_record import RunRecord

FEWEST = 10  # records, below which there is no trend


def judge_trend(run: RunRecord) -> Finding | None:
    """The training loss of the last tenth of the records against the first."""
    losses = run.values("loss")
    if len(losses) < FEWEST:
        return None
    tenth = max(3, len(losses) // 10)
    first, last = mean(losses[:tenth]), mean(losses[-tenth:])
    values = {"first": first, "last": last, "change": abs(last / first - 1)}
    if last < 0.98 * first:
        return Finding("finding.loss_falls", "good", values)
    return Finding("finding.loss_rises" if last > 1.02 * first else "finding.loss_flat", "odd", values)
