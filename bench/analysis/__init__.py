"""From tables of scores to statements: selection, imputation, intervals, comparisons, the leaderboard.

Pure functions on data frames and arrays. They don't know how the numbers were made or where they are kept, read no
file, and draw nothing. The columns they expect are those of the tables under ``results/<suite>/tables``.
"""

from .bands import at_common_steps, band
from .baselines import baselines
from .delta import delta_m, interquartile_mean
from .failures import impute_failures
from .front import beyond, front_points
from .intervals import Comparison, Estimate, compare, comparison_scale, summarise, t_interval
from .leaderboard import is_ranking, leaderboard
from .primary import primary_rows
from .selection import choose_learning_rates

__all__ = [
    "Comparison",
    "Estimate",
    "at_common_steps",
    "band",
    "baselines",
    "beyond",
    "choose_learning_rates",
    "compare",
    "comparison_scale",
    "delta_m",
    "front_points",
    "impute_failures",
    "interquartile_mean",
    "is_ranking",
    "leaderboard",
    "primary_rows",
    "summarise",
    "t_interval",
]
