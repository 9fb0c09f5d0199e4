"""A finding: what one rule has to say of a run, with the numbers that it follows from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from service.language import translate

Severity = Literal["good", "note", "odd", "bad"]


# Numbers of findings by their unit, so that one finding's may be compared with another's.
UNITS = {
    "loss": "first last best lowest own theirs",
    "steps": "step steps best_step last_step warm_up",
    "seconds": "seconds left silent usual",
    "speed": "speed speed_now speed_before measured",
}


@dataclass(frozen=True)
class Finding:
    """`key` and `advice` (what to try, if anything) are keys of the catalogue; `values` stand in their texts."""

    key: str
    severity: Severity
    values: Mapping[str, float | str] = field(default_factory=dict)
    advice: str | None = None

    def text(self, language: str) -> str:
        return translate(language, self.key, **self.values)

    def advice_text(self, language: str) -> str | None:
        return self.advice and translate(language, self.advice, **self.values)

    def without_names(self) -> "Finding":
        """The same with `…` for all that is no number, such as the name of a run."""
        return replace(self, values={key: "…" if isinstance(one, str) else one for key, one in self.values.items()})

    def numbers(self) -> dict[str, float]:
        return {key: value for key, value in self.values.items() if not isinstance(value, str)}


def comparable_numbers(findings: list[Finding]) -> list[list[float]]:
    """Groups of numbers whose differences and ratios mean something: those of one finding, and those of one unit."""
    by_unit = [
        [number for finding in findings for name, number in finding.numbers().items() if name in names.split()]
        for names in UNITS.values()
    ]
    return by_unit + [list(finding.numbers().values()) for finding in findings]
