"""The page's table of training scores says how many seeds its means are over, and how many runs failed."""

from pathlib import Path

import numpy as np
import pandas as pd

from bench.analysis import Roles
from bench.analysis.training_scores import COLUMNS
from bench.report import evidence_sections
from bench.report.results_folder import Results


def test_seeds_and_failed_runs_are_shown() -> None:
    rows = [
        ("p", "equal", 20, 0, "ratio", 0.1, 0.2, 1.0, 1.0),
        ("p", "famo", 15, 5, "ratio", 0.1, 0.2, 0.9, 0.8),
        ("p", "dwa", 19, 1, "ratio", 0.1, 0.2, 0.9, 0.8),
        ("p", "lost", 0, 20, "ratio", np.nan, np.nan, np.nan, np.nan),
    ]
    tables = {"training_scores": pd.DataFrame(rows, columns=COLUMNS), "problems": pd.DataFrame({"problem": ["p"]})}
    labels = ("equal", "famo", "dwa", "lost")
    roles = Roles("equal", None, None, None, {})
    results = Results(Path(), "", "", {}, labels, "equal", roles, tables, pd.DataFrame(), True)
    table = evidence_sections.training(results)
    seeds = [row["cells"][table["header"].index("Seeds") - 1] for row in table["rows"]]
    assert [cell["text"] for cell in seeds] == ["20", "15", "19", "0"]
    assert [cell["below"] for cell in seeds] == [[], ["5 runs failed"], ["1 run failed"], ["20 runs failed"]]
    assert all(len(row["cells"]) == len(table["header"]) - 1 for row in table["rows"])
    assert table["rows"][-1]["cells"][1]["text"] == "–"
