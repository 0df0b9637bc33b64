"""Put the findings of a leaderboard into words: its title, a sentence per problem, and the paragraph on top."""

import numpy as np
import pandas as pd

from bench.style.numbers import decimal_places, join, relative, span
from bench.style.short_label import short

from .results_folder import Results

FEW_PROBLEMS = 2
"""Maximum number of problems whose findings the top of the page states one by one; for more, it counts verdicts."""
BOARD_TITLE = "Leaderboard"
DEFAULTS_TITLE = "Defaults, not a ranking"
ONE_SEED_TITLE = "One seed, not a ranking"
CLAUSES = {
    "better": ("scores better than", "score better than"),
    "worse": ("scores worse than", "score worse than"),
    "tie": ("ties with", "tie with"),
    "not settled": ("cannot be distinguished from", "cannot be distinguished from"),
    "": ("has too few seeds for a verdict against", "have too few seeds for a verdict against"),
}
"""The words for each verdict, for one method and for several, in the order in which a sentence names them."""


def as_predicate(verdict: str) -> str:
    """Return what follows "it is": ``better``, ``worse``, ``a tie``, or ``not settled``."""
    return {"tie": "a tie", "": "not settled"}.get(verdict, verdict)


def title(results: Results) -> str:
    """Return the heading that the leaderboard deserves: a ranking needs tuned learning rates and several seeds."""
    if not results.ranking:
        return DEFAULTS_TITLE
    return BOARD_TITLE if (results.board["seeds"] > 1).all() else ONE_SEED_TITLE


def seeds(rows: pd.DataFrame) -> str:
    """Return the number of seeds behind the rows of a leaderboard: ``5 seeds``, or ``3 to 5 seeds``."""
    fewest, most = rows["seeds"].min(), rows["seeds"].max()
    if most == 1:
        return "1 seed"
    return f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"


def reading(results: Results) -> str:
    """Return one paragraph on what the numbers of this folder support, and no more than that."""
    board = results.board
    if board.empty:
        return "No reported run has finished yet, so there is nothing to compare."
    sentences = [_how_made(results)]
    problems = results.evidence.groupby("problem", sort=False)
    if not results.has_claims:  # of which the answers at the head of the page tell
        if len(problems) <= FEW_PROBLEMS:
            sentences += [finding(str(problem), rows, results) for problem, rows in problems]
        elif results.ranking:
            sentences = [*_counts(results), *sentences]
    steps = board[(board["balancer"] != results.baseline) & np.isfinite(board["step_ratio"].astype(float))]
    if len(steps):
        ratios = span(steps["step_ratio"])
        sentences.append(f"A training step takes {ratios} times as long as under equal weighting.")
    failed, runs = board["failed"].sum(), len(results.reported("runs"))
    if failed:
        sentences.append(f"{failed} of {runs} reported runs failed; a failed run counts with an imputed score.")
    return " ".join(sentences)


def _how_made(results: Results) -> str:
    if results.has_claims:
        return (
            "Validation chose each method's learning rate. Claims, q and the picture rest on the seeds of both sets, "
            f"which played no part in that choice; the leaderboards show the first set ({seeds(results.board)})."
        )
    if results.ranking:
        searched = "trial" in results.tables["selection"]
        chosen = (
            "learning rate and options, from the same number of trials for every method"
            if searched
            else "learning rate, from one grid for all methods"
        )
        return (
            f"Validation chose each method's {chosen}. The test scores are from {seeds(results.board)} that played no "
            "part in that choice."
        )
    return (
        f"No learning rate was tuned: every method ran at the problem's default, on {seeds(results.board)}. These "
        "numbers describe defaults and rank nothing."
    )


def _counts(results: Results) -> list[str]:
    """Return two sentences that count better and worse methods: than static weights, and than equal weighting."""
    static, equal = results.roles.static, results.baseline
    names = ((static, "static_verdict"), (equal, "verdict"))
    return [_count(results, name, column) for name, column in names if name is not None]


def _count(results: Results, name: str, column: str) -> str:
    """Return on how many problems each method is better or worse than ``name``.

    Controls are counted neither among the problems nor among the methods, and yardsticks are no methods.
    """
    board = results.evidence
    board = board[board["balancer"].map(results.roles.is_compared) & (board["balancer"] != name)]
    problems, counted = board["problem"].nunique(), {}
    for verdict in ("better", "worse"):
        counts = board.loc[board[column] == verdict, "balancer"].value_counts()
        order = sorted(results.balancers_in(board[board[column] == verdict]), key=lambda label: -counts[label])
        counted[verdict] = [f"{short(label, 40)} on {counts[label]}" for label in order]
    than = f"better than {short(name, 40)} beyond noise"
    if counted["better"]:
        sentence = f"Counted over {problems} problems, these methods are {than}: {join(counted['better'])}"
    else:
        sentence = f"No method is {than} on any of {problems} problems"
    worse = f"these are worse: {join(counted['worse'])}" if counted["worse"] else "none is worse"
    return f"{sentence}; {worse}."


def finding(problem: str, rows: pd.DataFrame, results: Results) -> str:
    """Return one or two sentences on what one problem's rows of the leaderboard show."""
    baseline, name = results.baseline, short(results.baseline or "", 40)
    if baseline not in set(rows["balancer"]):
        return f"{short(problem, 40)} has no run of equal weighting to compare with."
    others = rows[rows["balancer"] != baseline]
    if others.empty:
        return f"{short(problem, 40)} has runs of equal weighting alone."
    if not results.ranking:
        return f"On {short(problem, 40)}, relative to {name}: {_methods(others)}."
    clauses = []
    for verdict, (singular, plural) in CLAUSES.items():
        methods = others[(others["verdict"] == verdict) & (others["failed"] == 0)]
        if len(methods):
            clauses.append(f"{_methods(methods)} {singular if len(methods) == 1 else plural} {name}")
    if failed := failures(rows):
        clauses.append(f"runs of {failed} failed")
    return f"On {short(problem, 40)}, {'; '.join(clauses)}.{_against_static(rows, results)}"


def failures(rows: pd.DataFrame) -> str:
    """Return the methods of which runs failed, ``famo (2 of 5) and equal (1 of 5)``; empty if none failed."""
    failed = rows[rows["failed"] > 0]
    if failed.empty:
        return ""
    return join(f"{short(row['balancer'], 40)} ({row['failed']} of {row['seeds']})" for _, row in failed.iterrows())


def _against_static(rows: pd.DataFrame, results: Results) -> str:
    """Return a sentence that names the methods better than static weights; empty if nothing was compared with them."""
    compared, name = rows[rows["static_verdict"] != ""], short(results.roles.static or "", 40)
    if compared.empty:
        return ""
    better = compared[compared["static_verdict"] == "better"]
    if better.empty:
        return f" No method is better than {name} beyond noise."
    values = (
        f"{short(row['balancer'], 40)} ({_brief(row['scale'], row['static_relative'])})" for _, row in better.iterrows()
    )
    return f" Better than {name} beyond noise: {join(values)}."


def _methods(rows: pd.DataFrame) -> str:
    """Return ``GradNorm (0.71×) and uncertainty (1.03×)``, without the intervals, which the leaderboard shows."""
    return join(f"{short(row['balancer'], 40)} ({_brief(row['scale'], row['relative'])})" for _, row in rows.iterrows())


def _brief(scale: str, mean: float) -> str:
    if scale == "ratio" and np.isfinite(mean):
        return f"{mean:.{max(2, decimal_places(mean, 2))}f}×"
    return relative(scale, mean, np.nan, np.nan)
