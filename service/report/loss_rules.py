"""Rules on losses, gradients and learning rate: each takes a run and returns its finding, or None where it has none."""

from statistics import fmean, median

from service.report.findings import Finding, Severity
from service.report.run_record import RunRecord
from service.report.trends import compare_ends, compare_lowest, fit_line, part_of

FEWEST, MANY = 10, 50  # records, below which nothing is said of a trend, and nothing of its absence
FEW_VALIDATIONS = 3
LITTLE = 0.05  # that a loss falls in a third of the training
SMALL = 0.02  # a change of a loss that means nothing
WORSE, FAR_WORSE = 1.02, 1.15  # the held-out loss, of its best
DIVERGED = 1.5  # the training loss, of the lowest it was
LONG_AGO = 2  # validations since the best one
# Learning rates that usually work, by what is trained and how.
USUAL_RATES = {"lora": (1e-5, 1e-3), "full": (2e-7, 5e-5), "voice": (1e-5, 5e-4), "prodigy": (0.1, 3.0)}


def judge_trend(run: RunRecord) -> Finding | None:
    """The training loss at the end against that at the start."""
    losses = run.values(run.loss_name)
    if len(losses) < FEWEST:
        return None
    change = compare_ends(losses)
    values = {"first": change.first, "last": change.last, "change": abs(change.relative)}
    if not change.is_beyond(SMALL):
        if held_out_has_improved(run) or len(losses) < MANY:  # which says more: the training loss is noisy
            return Finding("finding.loss_noisy", "note", values)
        return Finding("finding.loss_flat", "odd", values, "advice.loss_flat")
    if change.relative > 0:
        return Finding("finding.loss_rises", "bad", values, "advice.lower_rate")
    return Finding("finding.mel_falls" if run.is_voice else "finding.loss_falls", "good", values)


def held_out_has_improved(run: RunRecord) -> bool:
    losses = run.values("val_loss")
    return bool(losses) and min(losses) < (1 - SMALL) * losses[0]


def judge_plateau(run: RunRecord) -> Finding | None:
    """Whether the last third of the training brought little, where what was before it had brought something.

    Of the held-out loss where it was measured often enough: it has no noise of its own, the training loss has much.
    """
    held_out, losses = run.values("val_loss"), run.values(run.loss_name)
    advice = "advice.voice_plateau" if run.is_voice else "advice.plateau"
    if len(held_out) >= 3 * FEW_VALIDATIONS:
        early, late = held_out[: -len(held_out) // 3], held_out[-len(held_out) // 3 :]
        share = -part_of(min(late) - min(early), min(early))
        if held_out_has_improved(run) and abs(share) < SMALL:
            return Finding("finding.held_out_plateau", "note", {"share": max(0.0, share)}, advice)
        return None
    late = losses[-len(losses) // 3 :]
    if len(losses) < MANY or compare_ends(losses).relative > -SMALL:
        return None
    change, error = fit_line(late)
    share, doubt = part_of(-change, fmean(late)), part_of(2 * error, fmean(late))
    if abs(share) + doubt > LITTLE:
        return None
    return Finding("finding.plateau", "note", {"share": max(0.0, share + doubt)}, advice)


def judge_held_out(run: RunRecord) -> Finding | None:
    """The held-out loss: over-fitting, if it rose since its best while the training loss fell on."""
    pairs = run.pairs("val_loss")
    if not pairs:
        return Finding("finding.no_held_out", "note", {}, "advice.no_held_out") if run.records and run.step else None
    (first_step, first), (_, last) = pairs[0], pairs[-1]
    best_step, best = min(pairs, key=lambda pair: pair[1])
    values = {"first": first, "best": best, "best_step": best_step, "last": last, "rise": part_of(last - best, best)}
    if last > WORSE * best and sum(step > best_step for step, _ in pairs) >= LONG_AGO:
        return judge_worse(run, best_step, values)
    if len(pairs) < 2 or best_step == first_step:
        return Finding("finding.held_out_no_better", "odd", values, "advice.lower_rate") if len(pairs) > 2 else None
    return Finding("finding.held_out_falls", "good", values | {"change": part_of(first - best, first)})


def judge_worse(run: RunRecord, best_step: int, values: dict[str, float]) -> Finding:
    """Over-fitting where the training loss did not rise with the held-out one."""
    before = [loss for step, loss in run.pairs(run.loss_name) if step <= best_step][-FEWEST:]
    after = run.values(run.loss_name)[-FEWEST:]
    severity: Severity = "bad" if values["last"] > FAR_WORSE * values["best"] else "odd"
    if before and fmean(after) > WORSE * fmean(before):
        return Finding("finding.held_out_rises", severity, values, "advice.lower_rate")
    return Finding(
        "finding.over_fits", severity, values, "advice.voice_over_fits" if run.is_voice else "advice.over_fits"
    )


def judge_divergence(run: RunRecord) -> Finding | None:
    """Steps that were not finite, or a loss far above the lowest that it was."""
    lost = sum(run.loss_name in record and record[run.loss_name] is None for record in run.records)
    skipped = max(run.values("skipped_steps"), default=0)
    if lost or skipped:
        severity: Severity = "bad" if lost or skipped > 0.01 * run.step else "odd"
        return Finding("finding.not_finite", severity, {"count": skipped or lost}, "advice.not_finite")
    losses, held_out = run.values(run.loss_name), run.values("val_loss")
    if len(losses) < MANY or (held_out and held_out[-1] < FAR_WORSE * min(held_out)):
        return None
    change = compare_lowest(losses)
    if change.relative > DIVERGED - 1 and change.is_beyond(SMALL, errors=4):  # the lowest of many is low by chance too
        values = {"last": change.last, "lowest": change.first, "times": part_of(change.last, change.first)}
        return Finding("finding.diverges", "bad", values, "advice.lower_rate")
    return None


def judge_gradients(run: RunRecord) -> Finding | None:
    """Gradients that have grown, or that are nearly all cut."""
    norms = run.values("grad_norm")
    if len(norms) < 3 * FEWEST:
        return None
    early, late = median(norms[: len(norms) // 2]), median(norms[-len(norms) // 10 :])
    if late > 10 * early:
        values = {"early": early, "late": late, "times": part_of(late, early)}
        return Finding("finding.gradients_grow", "odd", values, "advice.lower_rate")
    limit = run.number("max_grad_norm")
    cut = fmean(norm > limit for norm in norms)
    if limit and cut > 0.9:
        return Finding("finding.gradients_cut", "note", {"share": cut, "limit": limit, "norm": median(norms)})
    return None


def judge_rate(run: RunRecord) -> Finding | None:
    """A learning rate outside of what usually works; how grave that is follows from the loss."""
    rate = max(run.values("lr"), default=0.0)
    if not rate:
        return None
    low, high = USUAL_RATES[kind_of(run)]
    values = {"rate": rate, "low": low, "high": high}
    losses = run.values(run.loss_name)
    learns = len(losses) < MANY or held_out_has_improved(run) or compare_ends(losses).relative < -SMALL
    if rate > high:
        if learns and not judge_divergence(run):
            return Finding("finding.rate_above", "note", values)
        return Finding("finding.rate_high", "bad", values, "advice.rate_high")
    if rate < low and not learns:
        return Finding("finding.rate_low", "odd", values, "advice.rate_low")
    return None


def kind_of(run: RunRecord) -> str:
    """Which of the usual rates count: Prodigy takes a factor of the rate that it finds itself."""
    if run.settings.get("optimizer") == "prodigy":
        return "prodigy"
    if run.is_voice:
        return "voice"
    return "full" if run.settings.get("method") == "full" else "lora"


def judge_warm_up(run: RunRecord) -> Finding | None:
    """A rate that climbs until the end."""
    steps, last = run.number("lr_warmup_steps"), run.last_step
    if last and steps >= last and run.settings.get("lr_scheduler") != "constant":
        return Finding("finding.warm_up_long", "odd", {"warm_up": steps, "last_step": last}, "advice.warm_up_long")
    return None
