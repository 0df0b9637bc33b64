"""From tables of scores to statements: selection, imputation, intervals, comparisons, the leaderboard.

Pure functions on data frames and arrays. They don't know how the numbers were made or where they are kept, read no
file, and draw nothing. The columns they expect are those of the tables under ``results/<suite>/tables``.
"""

from .bands import at_common_steps, band
from .baselines import baselines
from .controls import controls
from .failed_runs import impute_failures
from .intervals import (
    CONFIDENCE,
    Comparison,
    Estimate,
    compare,
    compare_unpaired,
    comparison_scale,
    median_interval,
    summarise,
    t_interval,
)
from .leaderboard import is_ranking, leaderboard
from .learning_rate_choice import choose_learning_rates
from .primary_metric import primary_rows
from .relative_change import delta_m, interquartile_mean, mean_change
from .repeated_seeds import repeated_verdicts
from .roles import CORE_METHODS, Cast, Role, cast
from .static_front import beyond, front_points
from .target_time import time_to_target

__all__ = [
    "CONFIDENCE",
    "CORE_METHODS",
    "Cast",
    "Comparison",
    "Estimate",
    "Role",
    "at_common_steps",
    "band",
    "baselines",
    "beyond",
    "cast",
    "choose_learning_rates",
    "compare",
    "compare_unpaired",
    "comparison_scale",
    "controls",
    "delta_m",
    "front_points",
    "impute_failures",
    "interquartile_mean",
    "is_ranking",
    "leaderboard",
    "mean_change",
    "median_interval",
    "primary_rows",
    "repeated_verdicts",
    "summarise",
    "t_interval",
    "time_to_target",
]
