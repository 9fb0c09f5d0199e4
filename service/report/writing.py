"""The report on a run in words, by rules alone: what happened, what is odd, what to try."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.language import translate
from service.report.cost_rules import (
    judge_benchmark,
    judge_memory,
    judge_progress,
    judge_records,
    judge_silence,
    judge_speed,
    judge_time_spent,
)
from service.report.findings import Finding
from service.report.loss_rules import (
    judge_divergence,
    judge_gradients,
    judge_held_out,
    judge_plateau,
    judge_rate,
    judge_trend,
    judge_warm_up,
)
from service.report.result_rules import (
    judge_beside,
    judge_best,
    judge_discriminators,
    judge_evaluation,
    judge_images,
    judge_lengths,
    judge_sounds,
)
from service.report.run_record import RunRecord, read_run

RULES = (
    judge_progress,
    judge_records,
    judge_silence,
    judge_trend,
    judge_divergence,
    judge_plateau,
    judge_held_out,
    judge_rate,
    judge_warm_up,
    judge_gradients,
    judge_best,
    judge_images,
    judge_sounds,
    judge_lengths,
    judge_discriminators,
    judge_beside,
    judge_evaluation,
    judge_speed,
    judge_time_spent,
    judge_memory,
)


@dataclass(frozen=True)
class Report:
    """A title, and {heading: sentences}; `before`: paragraphs that stand above them."""

    title: str
    sections: dict[str, list[str]]
    before: tuple[str, ...] = ()

    def as_markdown(self) -> str:
        parts = [f"# {self.title}", *self.before]
        for heading, sentences in self.sections.items():
            parts += [f"## {heading}", "\n".join(f"- {sentence}" for sentence in sentences)]
        return "\n\n".join(parts) + "\n"


def find_all(run: RunRecord, benchmark: dict[str, Any] | None = None) -> list[Finding]:
    """What the rules say of a run, in their order; `benchmark`: benchmark.json, if there is one to compare with."""
    found = [rule(run) for rule in RULES] + [judge_benchmark(run, benchmark or {})]
    return [one for one in found if one]


def make_report(run: RunRecord, findings: list[Finding], language: str) -> Report:
    """The report by rules alone."""
    happened = [one.text(language) for one in findings if one.severity in ("good", "note")]
    odd = [one.text(language) for one in sorted(findings, key=is_minor) if one.severity in ("odd", "bad")]
    advice = [text for one in sorted(findings, key=is_minor) if (text := one.advice_text(language))]
    sections = {
        "report.happened": happened,
        "report.odd": odd or [translate(language, "report.nothing_odd")],
        "report.advice": list(dict.fromkeys(advice)) or [translate(language, "report.no_advice")],
    }
    titled = {translate(language, key): sentences for key, sentences in sections.items() if sentences}
    return Report(translate(language, "report.title", run=run.name), titled)


def is_minor(finding: Finding) -> bool:
    return finding.severity != "bad"


def write_report(folder: Path, language: str) -> str:
    """The report on the run in a folder by rules alone, as Markdown."""
    run = read_run(folder)
    return make_report(run, find_all(run), language).as_markdown()
