"""The report on a run in words, by rules alone: what happened, what is odd, what to try."""

from pathlib import Path

from service.findings import Finding
from service.language import translate
from service.loss_rules import judge_trend
from service.run_record import RunRecord, read_run

RULES = (judge_trend,)


def find_all(run: RunRecord) -> list[Finding]:
    """What the rules say of a run, in their order."""
    return [found for rule in RULES if (found := rule(run))]


def write_report(folder: Path, language: str) -> str:
    """The report on the run in a folder, as Markdown."""
    run = read_run(folder)
    found = find_all(run)
    happened = [one.text(language) for one in found if one.severity in ("good", "note")]
    odd = [one.text(language) for one in found if one.severity in ("odd", "bad")]
    advice = [text for one in found if (text := one.advice_text(language))]
    parts = [f"# {translate(language, 'report.title', run=run.folder.resolve().name)}"]
    for title, lines in (("report.happened", happened), ("report.odd", odd), ("report.advice", advice)):
        parts.append(f"## {translate(language, title)}")
        parts.append("\n".join(f"- {line}" for line in lines) or translate(language, "report.nothing"))
    return "\n\n".join(parts) + "\n"
