"""Make every table of a suite that follows from its base tables. Nothing else computes these numbers."""

import pandas as pd

from .baselines import baselines
from .controls import controls
from .leaderboard import leaderboard
from .relative_change import delta_m
from .repeated_seeds import repeated_verdicts
from .roles import Roles
from .suite_tables import SuiteTables
from .target_time import time_to_target


def derived_tables(base: SuiteTables, roles: Roles) -> dict[str, pd.DataFrame]:
    """Return every table that follows from the ``base`` tables, by its name in a results folder.

    Returns:
        - "leaderboard" and "baselines", always;
        - "delta_m", if tasks were trained alone;
        - "controls", if there is a control that can be checked;
        - "target", if learning rates were chosen;
        - "repeated", if learning rates were chosen and the reported runs were repeated on other seeds.

        The functions of these names in `bench.analysis` document the columns; "target" is made by `time_to_target` and
        "repeated" by `repeated_verdicts`.
    """
    phases = set(base.runs["phase"])
    board = leaderboard(base, roles)
    derived = {"leaderboard": board, "baselines": baselines(base, roles)}
    if "baseline" in phases:
        derived["delta_m"] = delta_m(base.scores, base.metrics)
    checked = controls(base, roles)
    if len(checked):
        derived["controls"] = checked
    if len(base.selection):
        derived["target"] = time_to_target(base, roles)
        if "repeated" in phases:
            derived["repeated"] = repeated_verdicts(board, leaderboard(base, roles, "repeated"))
    return derived
