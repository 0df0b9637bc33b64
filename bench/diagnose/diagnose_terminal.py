"""Print and write what ``lossbench diagnose`` finds: the profile, the advice, and what the evidence says about it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

import tasks
from bench.analysis import loss_scales
from bench.run import atomic_file
from bench.run.spec import Method
from bench.style.console import new_console
from bench.style.numbers import join, number

from . import gradient_profile, rule, rule_verdict
from .advice import Advice, advice
from .gradient_profile import GradientProfile

CORE = Path(__file__).parents[2] / "results" / "reference" / "core"
EVIDENCE = CORE / "advice.csv"
"""Range of each candidate over the problems of the evidence: candidate, q_low, q_high, cost_low, cost_high."""
REGRETS = CORE / "tables" / "advice_regrets.csv"
"""Result of the rule's test, which `rule_verdict.sentence` words. ``python -m bench.evidence advice`` writes it."""
UNTESTED = "The rule has not been tested yet; rule 34 of the protocol says how it will be."
SHORTEST, LONGEST = 0.5, 4.0
"""The shortest and the longest training of equal weighting in the evidence, as factors of the steps."""


def diagnose(
    name: str, options: Mapping[str, Any], seed: int, say: Callable[[str], None]
) -> tuple[GradientProfile, Advice]:
    """Profile a registered problem, and print the profile and the advice.

    Args:
        name: the name of the problem.
        options: options of the problem.
        seed: seed of the training.
        say: is called with a short text before the training.

    Raises:
        ProfileError: the problem can't be profiled.
    """
    say(f"training the beginning of {name} at equal weights")
    profile = gradient_profile.measure(name, options, seed)
    advised = with_likelihoods(advice(profile), tasks.create(name, **options).likelihoods)
    out = new_console()
    out.print(Text(heading(profile), style="bold"), grid(profile))
    for sentence in (comparison(profile), without_gradient(profile), scaling(profile)):
        if sentence:
            out.print(Text(sentence))
    out.print(Text(f"\nadvice for {name}: {advised.candidate}", style="bold"))
    out.print(Text(f"  {advised.code}"), soft_wrap=True)
    for sentence in (*advised.notes, *advised.reasons, gain_and_cost(evidence(), advised.candidate), result_of_test()):
        if sentence:
            out.print(Text(sentence))
    return profile, advised


def heading(profile: GradientProfile) -> str:
    """Return a line on what was measured."""
    seconds = profile.steps * profile.seconds_per_step
    return (
        f"{profile.problem} at equal weights: means over the first {profile.steps} of {profile.total_steps} steps, in "
        f"{number(seconds, 2)} s"
    )


def grid(profile: GradientProfile) -> Table:
    """Return the profile as a table, with a row for each task."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task")
    for column in ("loss", "gradient norm", "noise"):
        table.add_column(column, justify="right")
    rows = zip(profile.tasks, profile.losses, profile.norms, profile.noise, strict=True)
    for task, loss, norm, noise in rows:
        cells = (task, number(loss), number(norm), "–" if math.isnan(noise) else f"{noise:.2f}")
        table.add_row(*(Text(cell.replace("-", "−") if cell is not task else cell) for cell in cells))
    return table


def comparison(profile: GradientProfile) -> str:
    """Return a sentence on the two tasks whose gradients agree least."""
    conflict = rule.strongest_conflict(profile)
    if conflict is None:
        return "There are no cosines: in no step did two tasks have gradients other than zero."
    return f"{rule.agreement(conflict)}.".replace(" -", " −")


def without_gradient(profile: GradientProfile) -> str:
    """Return a warning that names the tasks whose gradient is zero in every step; empty if there is none."""
    zero = [task for task, norm in zip(profile.tasks, profile.norms, strict=True) if norm == 0]
    if not zero:
        return ""
    return (
        f"Warning: the gradient of {join(zero)} is zero in every one of these steps, so the shared part of the model "
        f"does not learn from {'this task' if len(zero) == 1 else 'these tasks'}, and the advice does not count "
        f"{'it' if len(zero) == 1 else 'them'}. Look for a detached tensor."
    )


def scaling(profile: GradientProfile) -> str:
    """Return that the losses should be scaled, and diagnosed again, if they are far apart; empty if they are not."""
    sentence = loss_scales.advice(first_losses(profile))
    if not sentence:
        return ""
    return f"{sentence} Then run diagnose again: the advice below is for the losses as they are."


def first_losses(profile: GradientProfile) -> dict[str, float]:
    """Return the mean loss of each task over the first steps."""
    return dict(zip(profile.tasks, profile.first_losses.tolist(), strict=True))


def with_likelihoods(advised: Advice, likelihoods: Mapping[str, str]) -> Advice:
    """Return the advice with the likelihoods that a problem declares, if it is uncertainty weighting."""
    if advised.candidate != "uncertainty" or not likelihoods:
        return advised
    given = json.dumps(dict(likelihoods), ensure_ascii=False)
    method = Method("uncertainty", None, {"likelihoods": dict(likelihoods)})
    return replace(advised, method=method, code=f"{advised.code[:-1]}, likelihoods={given})", notes=())


def result_of_test() -> str:
    """Return the result of the rule's test in words, or that there is none yet."""
    if not REGRETS.is_file():
        return UNTESTED
    return rule_verdict.sentence(pd.read_csv(REGRETS))


def evidence() -> pd.DataFrame | None:
    """Return the table of what candidates gained and cost in the evidence; None if there is none."""
    return pd.read_csv(EVIDENCE) if EVIDENCE.is_file() else None


def gain_and_cost(table: pd.DataFrame | None, candidate: str) -> str:
    """Return a sentence on the range of a candidate's gain and cost over the problems of the evidence.

    Args:
        table: ``candidate``, and ends of the ranges of q and of the step's cost: ``q_low``, ``q_high``, ``cost_low``,
            ``cost_high``. An end of q at `SHORTEST` or `LONGEST` stands for anything beyond it.
        candidate: the candidate's name.

    Returns:
        The sentence; empty if there is no table, or no row for the candidate.
    """
    rows = None if table is None else table[table["candidate"] == candidate]
    if rows is None or rows.empty:
        return ""
    row = rows.iloc[0]
    low = f"less than {SHORTEST:g}" if row["q_low"] <= SHORTEST else f"{row['q_low']:.2f}"
    high = f"more than {LONGEST:g}" if row["q_high"] >= LONGEST else f"{row['q_high']:.2f}"
    return (
        f"On the problems of the evidence, equal weights needed {low} to {high} times the steps to do as well, and a "
        f"step of {candidate} took {row['cost_low']:.2f} to {row['cost_high']:.2f} times as long."
    )


def write(profile: GradientProfile, advised: Advice, path: Path) -> None:
    """Write the profile and the advice as JSON; not-a-number becomes null."""
    measured = {
        name: value for name, value in asdict(profile).items() if name not in ("problem", "loss_curve", "norm_curve")
    }
    measured |= {name: getattr(profile, name) for name in ("steps", "losses", "norms", "first_losses", "first_norms")}
    facts = {"problem": profile.problem, "profile": measured, "advice": asdict(advised)}
    text = json.dumps(_plain(facts), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_file.write(path, f"{text}\n".encode())


def _plain(value: Any) -> Any:
    """Return ``value`` with arrays as lists, and with None for numbers that JSON can't write."""
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
