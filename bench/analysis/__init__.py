"""Turn tables of scores into statements: selection, imputation, intervals, comparisons, the leaderboard.

Everything here is a pure function on data frames and arrays. It does not know how the numbers were made or where they
are kept, reads no file, and draws nothing. The columns that it expects are those of the tables under
``results/<suite>/tables``; `suite_tables` lists them.
"""

from .bands import at_common_steps, band
from .baselines import baselines
from .controls import controls
from .derived_tables import derived_tables
from .imputed_scores import impute_failures
from .intervals import (
    CONFIDENCE,
    EQUIVALENCE,
    Comparison,
    Estimate,
    compare,
    compare_unpaired,
    comparison_scale,
    median_estimate,
    summarise,
    t_interval,
)
from .leaderboard import is_ranking, leaderboard
from .learning_rate_choice import choose_learning_rates
from .primary_metric import primary_rows
from .relative_change import delta_m, interquartile_mean, mean_change
from .repeated_seeds import repeated_verdicts
from .roles import CORE_METHODS, Role, Roles, assign_roles
from .static_front import beyond, front_points
from .suite_tables import SuiteTables
from .target_time import time_to_target
from .task_scores import task_scores

__all__ = [
    "CONFIDENCE",
    "CORE_METHODS",
    "EQUIVALENCE",
    "Comparison",
    "Estimate",
    "Role",
    "Roles",
    "SuiteTables",
    "assign_roles",
    "at_common_steps",
    "band",
    "baselines",
    "beyond",
    "choose_learning_rates",
    "compare",
    "compare_unpaired",
    "comparison_scale",
    "controls",
    "delta_m",
    "derived_tables",
    "front_points",
    "impute_failures",
    "interquartile_mean",
    "is_ranking",
    "leaderboard",
    "mean_change",
    "median_estimate",
    "primary_rows",
    "repeated_verdicts",
    "summarise",
    "t_interval",
    "task_scores",
    "time_to_target",
]
