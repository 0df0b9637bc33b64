"""Print and write what ``lossbench diagnose`` finds: the profile, the advice, and what the evidence says about it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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

from . import gradient_profile, kept_evidence, regret, rule, rule_verdict
from .advice import Advice, advice, written
from .gradient_profile import GradientProfile

UNTESTED = "The rule has not been tested yet; rule 34 of the protocol says how it will be."
GREW = 10
"""A loss is said to grow if it is this many times as large in the last quarter of the profile as in the first."""
SHORTEST, LONGEST = 0.5, 4.0
"""The shortest and the longest training of equal weighting in the evidence, as factors of the steps."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of ``lossbench diagnose`` on one problem.

    Attributes:
        profile: the beginning of the training.
        advice: what is advised: the rule's choice, or if the rule fails its test, that of its opponent.
        rule: what the rule advises.
        test: the result of the rule's test in words.
    """

    profile: GradientProfile
    advice: Advice
    rule: Advice
    test: str


def diagnose(
    name: str, options: Mapping[str, Any], seed: int, say: Callable[[str], None], file: Path | None = None
) -> Diagnosis:
    """Profile a registered problem, and print the profile and the advice.

    If the rule fails its test, this is said first, and the advice is that of its opponent.

    Args:
        name: the name of the problem.
        options: options of the problem.
        seed: seed of the training.
        say: is called with a short text before the training.
        file: the user's file that registers the problem, if one does.

    Raises:
        ProfileError: the problem can't be profiled.
    """
    say(f"training the beginning of {name} at equal weights")
    profile = gradient_profile.measure(name, options, seed)
    likelihoods = tasks.create(name, **options).likelihoods
    by_rule = with_likelihoods(advice(profile), likelihoods)
    by_opponent = opponents_advice(profile)
    advised = by_rule if by_opponent is None else with_likelihoods(by_opponent, likelihoods)
    found = Diagnosis(profile, advised, by_rule, result_of_test())
    out = new_console()

    def tell(*sentences: str) -> None:
        for sentence in filter(None, sentences):
            out.print(Text(sentence))

    if by_opponent:
        tell(
            f"{found.test} So the first advice is the best on average over the problems of the evidence, whatever the "
            f"profile; the second is the rule's. docs/advice.md has the figures.\n"
        )
    out.print(Text(heading(profile), style="bold"), grid(profile))
    tell(comparison(profile), without_gradient(profile), scaling(profile), growing(profile))
    out.print(Text(f"\nadvice for {name}: {advised.candidate}", style="bold"))
    out.print(Text(f"  {advised.code}"), soft_wrap=True)
    tell(*advised.notes, *advised.reasons, gain_and_cost(kept_evidence.ranges(), advised))
    if not by_opponent:
        tell(found.test)
    elif by_rule.candidate == advised.candidate:
        out.print(Text("\nor, by the profile: the same", style="bold"))
        tell(*by_rule.reasons, rule_in_numbers())
    else:
        out.print(Text(f"\nor, by the profile: {by_rule.candidate}", style="bold"))
        out.print(Text(f"  {by_rule.code}"), soft_wrap=True)
        ranges = gain_and_cost(kept_evidence.ranges(), by_rule)
        tell(*by_rule.notes, *by_rule.reasons, rule_in_numbers(), ranges)
    if file is not None:
        out.print(Text(f"\nTo compare these and others on your problem: lossbench try {file}"), soft_wrap=True)
    return found


def opponents_advice(profile: GradientProfile) -> Advice | None:
    """Return what the rule's opponent advises, if the rule fails its test and there is something to balance."""
    regrets, candidates = kept_evidence.regrets(), kept_evidence.candidates()
    if len(profile.tasks) == 1 or regrets is None or candidates is None or regrets["verdict"].iloc[0] != "fails":
        return None
    best = candidates.iloc[0]
    reason = (
        f"The best of {len(rule.CANDIDATES)} candidates on average over the problems of the evidence: "
        f"{_short_of_best(best['regret'], best['worst_regret'], best['worst'])}. These problems chose it. On a problem "
        f"that did not, the best on the others has {math.exp(regrets['opponent_regret'].mean()):.2f} times."
    )
    return written(best["candidate"], profile, (reason,))


def rule_in_numbers() -> str:
    """Return how good the rule's choices are on the problems of its test; empty if it has not been tested."""
    regrets = kept_evidence.regrets()
    if regrets is None:
        return ""
    there = regrets.dropna(subset=["regret"]).sort_values("regret")
    told = _short_of_best(there["regret"].mean(), there["regret"].iloc[-1], there["problem"].iloc[-1])
    lost = there[there["lower"] == "opponent"]
    beaten = (lost["regret"] - lost["opponent_regret"]).map(math.exp) - 1
    by = (
        f"Always advising one method was better on {len(lost)} of {len(there)}, by at most "
        f"{number(100 * beaten.max(), 2)} %."
    )
    return f"Its choices on the problems of the evidence: {told}.{f' {by}' if len(lost) else ''}"


def _short_of_best(mean: float, worst: float, problem: str) -> str:
    most = "more than " if worst >= regret.CAP else ""
    return (
        f"{math.exp(mean):.2f} times the error of the best candidate in the geometric mean, and {most}"
        f"{math.exp(worst):.2f} times at worst, on {problem}"
    )


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


def growing(profile: GradientProfile) -> str:
    """Return a warning that names tasks whose loss grows while the network learns; empty if there is none.

    A loss that the others drown may grow, and so does a penalty: the commitment loss of a codec, which methods that
    balance it give most of the weight (docs/reserved.md).
    """
    quarter = max(1, profile.steps // 4)
    first, last = profile.loss_curve[:quarter].mean(0), profile.loss_curve[-quarter:].mean(0)
    grew = [
        (task, after / before)
        for task, before, after in zip(profile.tasks, first.tolist(), last.tolist(), strict=True)
        if 0 < before * GREW < after < math.inf
    ]
    if not grew:
        return ""
    told = join(f"{task} ({number(factor, 2)} times)" for task, factor in grew)
    return (
        f"Warning: the loss of {told} grows in these steps. If it is a penalty and no task of its own, leave it out, "
        f"and add it to what the balancer returns, with a weight of your own: a method may give it most of the weight. "
        f"If it is a task, the others leave it behind."
    )


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
    regrets = kept_evidence.regrets()
    return UNTESTED if regrets is None else rule_verdict.sentence(regrets)


def gain_and_cost(table: pd.DataFrame | None, advised: Advice) -> str:
    """Return a sentence on the range of a candidate's gain and cost over the problems of the evidence.

    Args:
        table: ``candidate``, and ends of the ranges of q and of the step's cost: ``q_low``, ``q_high``, ``cost_low``,
            ``cost_high``. An end of q at `SHORTEST` or `LONGEST` stands for anything beyond it.
        advised: the candidate as advice. Weights to paste add nothing to a step.

    Returns:
        The sentence; empty if there is no table, or no row for the candidate, or if it is equal weights.
    """
    rows = None if table is None else table[table["candidate"] == advised.candidate]
    if rows is None or rows.empty or advised.candidate == "equal":
        return ""
    row = rows.iloc[0]
    low = f"less than {SHORTEST:g}" if row["q_low"] <= SHORTEST else f"{row['q_low']:.2f}"
    high = f"more than {LONGEST:g}" if row["q_high"] >= LONGEST else f"{row['q_high']:.2f}"
    took = f"a step took {row['cost_low']:.2f} to {row['cost_high']:.2f} times as long"
    return (
        f"Equal weights needed {low} to {high} times the steps to match it there; "
        f"{'fixed weights add nothing to a step' if advised.weights else took}."
    )


def write(found: Diagnosis, path: Path) -> None:
    """Write the profile, the advice and the rule's choice as JSON; not-a-number becomes null."""
    profile = found.profile
    measured = {
        name: value for name, value in asdict(profile).items() if name not in ("problem", "loss_curve", "norm_curve")
    }
    measured |= {name: getattr(profile, name) for name in ("steps", "losses", "norms", "first_losses", "first_norms")}
    choices = {"advice": asdict(found.advice), "rule": asdict(found.rule), "test": found.test}
    facts = {"problem": profile.problem, "profile": measured, **choices}
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
