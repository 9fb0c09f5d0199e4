"""A finding: what one rule has to say of a run, with the numbers that it follows from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from service.language import translate


@dataclass(frozen=True)
class Finding:
    """`key` and `advice` (what to try, if anything) are keys of the catalogue; `values` the numbers in their texts."""

    key: str
    severity: Literal["good", "note", "odd", "bad"]
    values: Mapping[str, float | str] = field(default_factory=dict)
    advice: str | None = None

    def text(self, language: str) -> str:
        return translate(language, self.key, **self.values)

    def advice_text(self, language: str) -> str | None:
        return self.advice and translate(language, self.advice, **self.values)
