"""Turn tables of scores into statements: selection, imputation, intervals, comparisons, the leaderboard.

Everything here is a pure function on data frames and arrays. It does not know how the numbers were made or where they
are kept, reads no file, and draws nothing. The columns that it expects are those of the tables under
``results/<suite>/tables``; `suite_tables` lists them.
"""

from .balancing_claims import balancing_claims, best_static, detectable_effects
from .bands import at_common_steps, band
from .baselines import baselines
from .controls import controls
from .derived_tables import derived_tables
from .equivalent_steps import EquivalentSteps, chord_excess, doubling, equivalent_steps, match_steps
from .free_choice import free_choice, free_comparisons, free_tables
from .gates import failed_gates, gates, passed_gates
from .hypothesis_tests import detectable_difference, holm, paired_p_value
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
from .learning_rate_choice import choose_learning_rates, has_best_rate, mean_score
from .paying_methods import paying_methods
from .pooled_comparisons import pooled_comparisons
from .pooled_scores import PooledScores, pooled_scores
from .primary_metric import primary_rows
from .relative_change import delta_m, interquartile_mean, mean_change
from .repeated_seeds import repeated_verdicts
from .roles import CORE_METHODS, Role, Roles, assign_roles, label_of
from .static_front import beyond, front_points
from .step_length import step_length
from .suite_tables import SuiteTables
from .target_time import time_to_target
from .task_scores import task_scores
from .training_scores import training_scores

__all__ = [
    "CONFIDENCE",
    "CORE_METHODS",
    "EQUIVALENCE",
    "Comparison",
    "EquivalentSteps",
    "Estimate",
    "PooledScores",
    "Role",
    "Roles",
    "SuiteTables",
    "assign_roles",
    "at_common_steps",
    "balancing_claims",
    "band",
    "baselines",
    "best_static",
    "beyond",
    "choose_learning_rates",
    "chord_excess",
    "compare",
    "compare_unpaired",
    "comparison_scale",
    "controls",
    "delta_m",
    "derived_tables",
    "detectable_difference",
    "detectable_effects",
    "doubling",
    "equivalent_steps",
    "failed_gates",
    "free_choice",
    "free_comparisons",
    "free_tables",
    "front_points",
    "gates",
    "has_best_rate",
    "holm",
    "impute_failures",
    "interquartile_mean",
    "is_ranking",
    "label_of",
    "leaderboard",
    "match_steps",
    "mean_change",
    "mean_score",
    "median_estimate",
    "paired_p_value",
    "passed_gates",
    "paying_methods",
    "pooled_comparisons",
    "pooled_scores",
    "primary_rows",
    "repeated_verdicts",
    "step_length",
    "summarise",
    "t_interval",
    "task_scores",
    "time_to_target",
    "training_scores",
]
