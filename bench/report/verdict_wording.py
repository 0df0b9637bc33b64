"""Numbers and findings in words: how many digits are meant, and what the intervals say."""

import numpy as np
import pandas as pd

from bench.style.numbers import decimal_places, join, relative, span
from bench.style.short_label import short

from .results_folder import Results

FEW_PROBLEMS = 2
BOARD_TITLE = "Leaderboard"
DEFAULTS_TITLE = "Defaults, not a ranking"
ONE_SEED_TITLE = "One seed, not a ranking"


def title(results: Results) -> str:
    """What the leaderboard may be called."""
    if not results.ranking:
        return DEFAULTS_TITLE
    return BOARD_TITLE if (results.board["seeds"] > 1).all() else ONE_SEED_TITLE


def seeds(rows: pd.DataFrame) -> str:
    """How many seeds the rows of a leaderboard rest on."""
    fewest, most = rows["seeds"].min(), rows["seeds"].max()
    if most == 1:
        return "1 seed"
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"


def reading(results: Results) -> str:
    """One paragraph: what the numbers of this folder say, and no more than they say."""
    board = results.board
    if board.empty:
        return "No reported run has finished yet, so there is nothing to compare."
    sentences = [_how_made(results)]
    problems = results.evidence.groupby("problem", sort=False)
    if len(problems) <= FEW_PROBLEMS:
        sentences += [finding(str(problem), rows, results) for problem, rows in problems]
    elif results.ranking:
        sentences = [*_counts(results), *sentences]
    steps = board[(board["balancer"] != results.baseline) & np.isfinite(board["step_ratio"].astype(float))]
    if len(steps):
        ratios = span(steps["step_ratio"])
        sentences.append(f"A training step takes {ratios} times as long as with equal weighting.")
    failed, runs = board["failed"].sum(), len(results.reported("runs"))
    if failed:
        sentences.append(f"{failed} of {runs} reported runs failed and count with an imputed score.")
    return " ".join(sentences)


def _how_made(results: Results) -> str:
    if results.ranking:
        searched = "trial" in results.tables["selection"]
        tuned = "learning rate and the options" if searched else "learning rate"
        return (
            f"Every method ran at the {tuned} that validation chose for it from "
            f"{'as many trials as any other' if searched else 'one grid'}; the "
            f"test scores are of {seeds(results.board)} that played no part in that choice."
        )
    return (
        f"No learning rate was tuned: every method ran at the problem's own, on {seeds(results.board)}, so these "
        "numbers describe defaults and rank nothing."
    )


def _counts(results: Results) -> list[str]:
    """On how many problems which methods are better and worse: than static weights, then than equal weighting."""
    static, equal = results.parts.static, results.baseline
    names = ((static, "static_verdict"), (equal, "verdict"))
    return [_count(results, name, column) for name, column in names if name is not None]


def _count(results: Results, name: str, column: str) -> str:
    """Controls are counted neither among the problems nor among the methods."""
    board = results.evidence
    board = board[(board["balancer"].map(results.parts.roles) != "control") & (board["balancer"] != name)]
    problems, told = board["problem"].nunique(), {}
    for verdict in ("better", "worse"):
        counts = board.loc[board[column] == verdict, "balancer"].value_counts()
        order = sorted(results.balancers_in(board[board[column] == verdict]), key=lambda label: -counts[label])
        told[verdict] = [f"{short(label, 40)} on {counts[label]}" for label in order]
    than = f"better than {short(name, 40)} beyond noise"
    if told["better"]:
        sentence = f"On {problems} problems, {than}: {join(told['better'])}"
    else:
        sentence = f"On none of {problems} problems is a method {than}"
    return f"{sentence}; worse: {join(told['worse'])}." if told["worse"] else f"{sentence}; none is worse."


def finding(problem: str, rows: pd.DataFrame, results: Results) -> str:
    """What one problem's rows of the leaderboard say."""
    baseline, name = results.baseline, short(results.baseline or "", 40)
    if baseline not in set(rows["balancer"]):
        return f"{short(problem, 40)} has no run of equal weighting to compare with."
    others = rows[rows["balancer"] != baseline]
    if others.empty:
        return f"{short(problem, 40)} has only equal weighting."
    if not results.ranking:
        return f"On {short(problem, 40)}, relative to {name}: {_methods(others)}."
    clauses = []
    for verdict, one, many in (
        ("better", "scores better than", "score better than"),
        ("worse", "scores worse than", "score worse than"),
        ("tie", "ties with", "tie with"),
        ("not settled", "is not told apart from", "are not told apart from"),
        ("", "has too few seeds to be told apart from", "have too few seeds to be told apart from"),
    ):
        found = others[others["verdict"] == verdict]
        if len(found):
            clauses.append(f"{_methods(found)} {one if len(found) == 1 else many} {name}")
    return f"On {short(problem, 40)}, {'; '.join(clauses)}.{_against_static(rows, results)}"


def _against_static(rows: pd.DataFrame, results: Results) -> str:
    """Which methods are better than static weights."""
    compared, name = rows[rows["static_verdict"] != ""], short(results.parts.static or "", 40)
    if compared.empty:
        return ""
    better = compared[compared["static_verdict"] == "better"]
    if better.empty:
        return f" None is better than {name} beyond noise."
    values = (
        f"{short(row['balancer'], 40)} ({_brief(row['scale'], row['static_relative'])})" for _, row in better.iterrows()
    )
    return f" Better than {name}: {join(values)}."


def _methods(rows: pd.DataFrame) -> str:
    """``GradNorm (0.71×) and uncertainty (1.03×)``, without the intervals, which the leaderboard shows."""
    return join(f"{short(row['balancer'], 40)} ({_brief(row['scale'], row['relative'])})" for _, row in rows.iterrows())


def _brief(scale: str, mean: float) -> str:
    if scale == "ratio" and np.isfinite(mean):
        return f"{mean:.{max(2, decimal_places(mean, 2))}f}×"
    return relative(scale, mean, np.nan, np.nan)
