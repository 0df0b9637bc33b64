"""Define a claim of the paper, the findings of its experiment, and the experiment's outcome."""

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
"""With one learning rate for all methods, as in the paper, and with the learning rate that validation chose for each
method. A finding that does not depend on learning rates has the setting ``""``."""


@dataclass(frozen=True)
class Finding:
    """A number that was found, with its 95 % interval if it has one.

    Attributes:
        setting: how learning rates were chosen.
        text: says what was measured.
        estimate: the number and its interval.
        unit: "×" for a ratio, "%" for a proportion, "" for a plain number, or the words after a count: ``of 6``.
        verdict: verdict on this part of the claim; None if the number is for information only.
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
        """Return a finding that is a ratio of scores."""
        return cls(setting, text, Estimate(comparison.mean, comparison.low, comparison.high), "×", verdict)

    @property
    def measured(self) -> str:
        """The number as text: ``0.62× [0.58, 0.66]``."""
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
    """The outcome of an experiment.

    Attributes:
        findings: the numbers that were found.
        figure: draws the figure; None if an earlier call of the command has drawn it.
        caption: caption of the figure.
        table: the table that the figure is drawn from.
    """

    findings: list[Finding]
    figure: Callable[[], Figure] | None
    caption: str
    table: pd.DataFrame

    @property
    def settings(self) -> list[RateSetting]:
        """Settings that have findings."""
        return list(dict.fromkeys(one.setting for one in self.findings))

    @property
    def by_text(self) -> dict[str, dict[RateSetting, Finding]]:
        """Findings by their text, then by setting."""
        found: dict[str, dict[RateSetting, Finding]] = {}
        for one in self.findings:
            found.setdefault(one.text, {})[one.setting] = one
        return found

    def verdict(self, setting: RateSetting) -> ClaimVerdict | None:
        """Return the verdict on the claim, which holds if all its parts hold; None if ``setting`` has no verdicts."""
        parts = [one.verdict for one in self.findings if one.setting == setting and one.verdict is not None]
        return every(parts) if parts else None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        number: number of the claim.
        short: the claim in a few words.
        text: the claim in a sentence.
        source: place in the paper.
        rule: rule by which the claim is judged here.
        experiment: runs the experiment.
    """

    number: int
    short: str
    text: str
    source: str
    rule: str
    experiment: "Callable[[Lab], Outcome]"


def rows(findings: Iterable[Finding], claim: Claim) -> list[dict[str, object]]:
    """Return the findings of ``claim`` as rows of a table."""
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


def stored_findings(table: pd.DataFrame) -> list[Finding]:
    """Return the findings of the rows that `rows` returned, as read from a file."""
    return [
        Finding(
            setting=row["setting"],
            text=row["finding"],
            estimate=Estimate(row["value"], row["low"], row["high"]),
            unit=row["unit"],
            verdict=row["verdict"] or None,
        )
        for row in table.to_dict("records")
    ]
