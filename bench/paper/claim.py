"""A claim of the paper, and what an experiment found of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
from matplotlib.figure import Figure

from bench.analysis import Comparison, Estimate
from bench.style.numbers import interval, relative

from .claim_verdicts import ClaimVerdict, every

if TYPE_CHECKING:
    from .experiments import Lab

RateSetting = Literal["one learning rate", "tuned", ""]
SETTINGS: tuple[RateSetting, ...] = ("one learning rate", "tuned")
"""As the paper has it, with one for all methods; and each method at the one that validation chose for it. What has
nothing to do with learning rates is of the setting ``""``."""


@dataclass(frozen=True)
class Finding:
    """A number with its 95 % interval, if it has one. Without a ``verdict`` it only stands beside the claim.

    ``unit`` is "×" for a ratio, "%" for a part of one, "" for a plain number, or what follows a count: ``of 6``.
    """

    setting: RateSetting
    text: str
    estimate: Estimate
    unit: str
    verdict: ClaimVerdict | None = None

    @classmethod
    def of(
        cls, setting: RateSetting, text: str, comparison: Comparison, verdict: ClaimVerdict | None = None
    ) -> "Finding":
        """One that is a ratio of scores."""
        return cls(setting, text, Estimate(comparison.mean, comparison.low, comparison.high), "×", verdict)

    @property
    def measured(self) -> str:
        """The number in words: ``0.62× [0.58, 0.66]``."""
        value, low, high = self.estimate.mean, self.estimate.low, self.estimate.high
        if self.unit == "×":
            return relative("ratio", value, low, high)
        if self.unit == "%":
            return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        if self.unit:
            return f"{value:.0f} {self.unit}"
        return interval(value, low, high).replace("-", "−")


@dataclass(frozen=True)
class Outcome:
    """What an experiment found, the figure that shows it, and the table that the figure is drawn from."""

    findings: list[Finding]
    figure: Callable[[], Figure]
    caption: str
    table: pd.DataFrame

    @property
    def settings(self) -> list[RateSetting]:
        """In which anything was found."""
        return list(dict.fromkeys(one.setting for one in self.findings))

    @property
    def by_text(self) -> dict[str, dict[RateSetting, Finding]]:
        """What was found of one and the same thing in each setting."""
        found: dict[str, dict[RateSetting, Finding]] = {}
        for one in self.findings:
            found.setdefault(one.text, {})[one.setting] = one
        return found

    def verdict(self, setting: RateSetting) -> ClaimVerdict | None:
        """Of the whole claim: it holds where all its parts do; None where nothing was found in this setting."""
        parts = [one.verdict for one in self.findings if one.setting == setting and one.verdict is not None]
        return every(parts) if parts else None


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, by which rule that is judged here, and what finds it out."""

    number: int
    short: str
    text: str
    source: str
    rule: str
    experiment: "Callable[[Lab], Outcome]"


def rows(findings: Iterable[Finding], claim: Claim) -> list[dict[str, object]]:
    """The findings as rows of a table."""
    return [
        {
            "claim": claim.number,
            "setting": one.setting,
            "finding": one.text,
            "measured": one.measured,
            "value": one.estimate.mean,
            "low": one.estimate.low,
            "high": one.estimate.high,
            "unit": one.unit,
            "verdict": one.verdict or "",
        }
        for one in findings
    ]
