"""Describe what supports the verdicts: allowed claims, controls, other seeds, time-to-target and Delta m."""

from typing import TypedDict

import numpy as np
import pandas as pd

from bench.analysis import mean_change
from bench.style.numbers import NOTHING, join, number, quantity, rate, relative
from bench.style.short_label import short

from .results_folder import Results
from .text_grid import TextGrid

ENDLESS = "∞"
"""Text for a run or a median that never reaches the target."""


class Control(TypedDict):
    """The outcome of one control in words; ``holds`` is true if the outcome is the expected one."""

    name: str
    holds: bool
    text: str


def claims(results: Results) -> str:
    """Return a sentence that names confirmatory and exploratory methods; empty if no verdict is confirmatory."""
    if not results.ranking:
        return ""
    named = [label for label, role in results.roles.by_label.items() if role == "confirmatory"]
    if not named:
        return ""
    others = [label for label, role in results.roles.by_label.items() if role == "exploratory"]
    rest = f" Verdicts on {join(short(label, 40) for label in others)} are exploratory." if others else ""
    return (
        f"Verdicts on {join(named)} are confirmatory: the protocol named these methods before the suite was run.{rest}"
    )


def controls(results: Results) -> list[Control]:
    """Return the outcomes of the controls that could be checked."""
    table = results.tables["controls"]
    texts = {"random": _random, "second name": _second, "same tasks": _same}
    names = {
        "random": "Random weights",
        "second name": "Equal weighting under a second name",
        "same tasks": "Problems on which fixed weights cannot matter",
    }
    outcomes: list[Control] = []
    for control, text in texts.items():
        rows = table[table["control"] == control]
        if len(rows):
            holds = bool(rows["holds"].astype(bool).all())
            outcomes.append({"name": names[control], "holds": holds, "text": text(rows, results)})
    return outcomes


def _random(rows: pd.DataFrame, results: Results) -> str:
    label, equal, count = short(rows["balancer"].iloc[0], 40), short(results.baseline or "", 40), len(rows)
    beaten = rows[~rows["holds"].astype(bool)]
    if beaten.empty:
        where = f"any of {count} problems" if count > 1 else short(rows["problem"].iloc[0], 40)
        settled = rows["verdict"].isin(["worse", "tie"]).all()
        return f"{label} is not {'' if settled else 'shown to be '}better than {equal} on {where}."
    where = join(f"{short(row['problem'], 40)} ({_brief(row)})" for _, row in beaten.iterrows())
    return f"{label} IS BETTER than {equal} on {where}. A method that is no better than {label} has learned nothing."


def _second(rows: pd.DataFrame, results: Results) -> str:
    label, pairs, different = (
        short(rows["balancer"].iloc[0], 40),
        int(rows["pairs"].sum()),
        int(rows["different"].sum()),
    )
    equal = short(results.baseline or "", 40)
    compared = f"{pairs:,} scores at the same learning rates and seeds"
    if not different:
        return f"{label}: bit-identical to {equal} in all {compared}."
    where = join(short(problem, 40) for problem in rows.loc[rows["different"] > 0, "problem"])
    return f"{label}: NOT bit-identical. {different:,} of the {compared} differ from those of {equal}, on {where}."


def _same(rows: pd.DataFrame, results: Results) -> str:
    sentences = []
    for _, row in rows.iterrows():
        value = relative(row["scale"], row["relative"], row["low"], row["high"])
        alone = "the mean score of the tasks trained alone"
        score = f"{value} {'of' if row['scale'] == 'ratio' else 'on'} {alone}"
        verdict = "consistent with no difference" if row["holds"] else "NOT consistent with no difference"
        rates = row["lr"], row["baseline_lr"]
        differing = f" (at learning rates {rate(rates[0])} and {rate(rates[1])})" if rates[0] != rates[1] else ""
        problem, label = short(row["problem"], 40), short(row["balancer"], 40)
        sentences.append(f"On {problem}, {label} scores {score}{differing}: {verdict}.")
    return " ".join(sentences)


def _brief(row: pd.Series) -> str:
    return relative(row["scale"], row["relative"], np.nan, np.nan)


def alarm(results: Results) -> str:
    """Return a warning that names the controls that failed, for the top of the page; empty if all hold."""
    failed = [control["name"].lower() for control in controls(results) if not control["holds"]]
    if not failed:
        return ""
    subject = "A control" if len(failed) == 1 else "Controls"
    return f"{subject} FAILED: {join(failed)}. Read the section “Controls” before anything else."


def repeated_rows(results: Results) -> pd.DataFrame:
    """Return the verdicts whose repetition on other seeds is reported.

    Controls and yardsticks are left out, and each pair of methods is compared once. Confirmatory verdicts come first.
    """
    table = results.tables["repeated"]
    roles_of = table["balancer"].map(results.roles.by_label)
    mirrored = (table["against"] == "static") & (table["balancer"] == results.baseline)
    known = table["problem"].isin(results.evidence["problem"])
    wanted = known & roles_of.isin(["confirmatory", "exploratory"]) & ~mirrored
    rows: pd.DataFrame = table[wanted].assign(role=roles_of).sort_values("role", kind="stable")
    return rows


def repeated(results: Results) -> str:
    """Return a sentence with the number of verdicts that other seeds changed; empty if nothing was repeated."""
    rows = repeated_rows(results)
    if rows.empty:
        return ""
    flipped, changed = rows[rows["flipped"].astype(bool)], rows[rows["changed"].astype(bool)]
    flips = "none flipped between better and worse"
    if len(flipped):
        told = "confirmatory" in results.roles.by_label.values()
        named = join(_repeated_name(row, told) for _, row in flipped.iterrows())
        flips = f"{len(flipped)} flipped between better and worse ({named})"
    open_once = (changed[["verdict", "again_verdict"]] == "not settled").any(axis=1)
    sentence = f"Of {len(rows)} verdicts, {flips}; {int(open_once.sum())} changed between settled and not settled"
    others = int((~open_once).sum())
    return f"{sentence}{f', {others} between a tie and a difference' if others else ''}."


def _repeated_name(row: pd.Series, told: bool) -> str:
    """Return ``pcgrad on scenes``; if roles are ``told``, an exploratory one as ``mgda (exploratory) on scenes``."""
    role = " (exploratory)" if told and row["role"] == "exploratory" else ""
    return f"{short(row['balancer'], 40)}{role} on {short(row['problem'], 40)}"


def repeated_grid(results: Results) -> TextGrid | None:
    """Return a table of the verdicts that other seeds changed; None if they changed none."""
    rows = repeated_rows(results)
    rows = rows[rows["flipped"].astype(bool) | rows["changed"].astype(bool)]
    if rows.empty:
        return None
    names = {"equal": results.baseline, "static": results.roles.static}
    cells = []
    for _, row in rows.sort_values("flipped", ascending=False, kind="stable").iterrows():
        pairs = [
            (
                relative(row["scale"], *row[[f"{which}{value}" for value in ("relative", "low", "high")]]),
                row[which + word],
            )
            for which, word in (("", "verdict"), ("again_", "verdict"))
        ]
        first, again = pairs
        place = [row["balancer"], row["problem"], short(names[row["against"]] or "", 24)]
        cells.append([*place, *first, *again])
    header = ["Method", "Problem", "Compared with", "First seeds", "Verdict", "Other seeds", "Verdict"]
    return {"title": "", "header": header, "rows": cells, "marked": set()}


def part(mean: float, low: float, high: float) -> str:
    """Write a fraction of equal weighting's whole training: ``0.62 [0.55, 0.70]``; ``∞`` means never."""
    if np.isnan(mean):
        return NOTHING
    values = [f"{value:.2f}" if np.isfinite(value) else ENDLESS for value in (mean, low, high)]
    return values[0] if np.isnan(low) else f"{values[0]} [{values[1]}, {values[2]}]"


def target_grid(results: Results) -> TextGrid | None:
    """Return a table of how soon one problem's methods reach equal weighting's final score; None if unknown."""
    table = results.tables["target"]
    if table.empty or results.board.empty:
        return None
    timed, counted = (bool(table[column].notna().any()) for column in ("of_seconds", "of_flops"))
    rows = []
    for label in results.balancers_in(table):
        row = table[table["balancer"] == label].iloc[0]
        cells = [label, f"{row['reached']} of {row['seeds']}", f"{row['steps']:,.0f}" if _reached(row) else ENDLESS]
        cells.append(part(*row[["of_steps", "of_steps_low", "of_steps_high"]].astype(float)))
        if timed:
            cells.append(f"{number(row['seconds'])} s" if _reached(row) else ENDLESS)
            cells.append(part(*row[["of_seconds", "of_seconds_low", "of_seconds_high"]].astype(float)))
        if counted:
            cells.append(quantity(row["flops"], "FLOP") if _reached(row) else ENDLESS)
            cells.append(part(*row[["of_flops", "of_flops_low", "of_flops_high"]].astype(float)))
        rows.append(cells)
    equals = f"{short(results.baseline or '')}'s"
    header = ["Method", "Runs that reach it", "Steps", f"Fraction of {equals} steps"]
    header += ["Time", f"Fraction of {equals} time"] * timed
    header += ["Floating-point operations", f"Fraction of {equals} operations"] * counted
    grid: TextGrid = {"title": "", "header": header, "rows": rows, "marked": set()}
    if counted:
        reaching = table[np.isfinite(table["steps"].astype(float))].set_index("balancer")["flops"].astype(float)
        column = header.index("Floating-point operations")
        grid["sort"] = {(i, column): reaching[row[0]] for i, row in enumerate(rows) if row[0] in reaching}
    return grid


def _reached(row: pd.Series) -> bool:
    return bool(np.isfinite(row["steps"]))


def target_value(results: Results) -> str:
    """Return the target score on one problem as text; empty if there is no target."""
    table = results.tables["target"]
    return "" if table.empty else number(float(table["target"].iloc[0]), 4)


def change(results: Results) -> tuple[dict[str, str], list[str]]:
    """Return each method's mean relative change to single-task training as text, and the problems it is taken over.

    Both are empty for the evidence, which has nothing but counts across problems (rule 30).
    """
    table = results.tables["delta_m"]
    if table.empty or results.has_claims:
        return {}, []
    found = mean_change(table, results.tables["problems"], results.balancers)
    texts = {
        row["balancer"]: relative("difference", row["delta_m"], row["low"], row["high"]) for _, row in found.iterrows()
    }
    return texts, list(found["problems"].iloc[0]) if len(found) else []
