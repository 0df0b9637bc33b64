"""README's code is run as a reader would run it: each block on its own, named ones as files in a folder of theirs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import balancers
from bench.catalogue import method_list

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(python|toml)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
FILES = {match[1]: code for _, code in BLOCKS if (match := re.match(r"# (\S+\.(?:py|toml))\n", code))}


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python with ``arguments`` in ``folder``, the tree importable from there."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_first_example_trains_a_network(tmp_path: Path) -> None:
    example = next(code for _, code in BLOCKS if "class Net" in code and not code.startswith("# "))
    (tmp_path / "example.py").write_text(example)

    done = run("example.py", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    weights, norms = re.findall(r"tensor\(\[(.*?)\]", done.stdout)
    assert sum(map(float, weights.split(","))) == pytest.approx(2, abs=1e-3)
    assert all(float(norm) > 0 for norm in norms.split(","))


def test_ones_own_method_and_problem_run_beside_ours_from_a_folder_with_its_own_tasks(tmp_path: Path) -> None:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    for name in ("tasks.py", "balancers.py"):
        (tmp_path / name).write_text("raise RuntimeError('the wrong file was imported')\n")

    done = run("-m", "bench", "run", "mine.toml", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    scores = pd.read_parquet(tmp_path / "results" / "mine" / "tables" / "scores.parquet")
    assert set(scores["balancer"]) == {"equal", "gradnorm", "geometric-mean"}
    assert set(scores["problem"]) == {"waves"}
    assert (tmp_path / "results" / "mine" / "report.html").stat().st_size > 10_000


def test_the_cost_of_ones_own_model(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(FILES["my_model.py"])

    done = run("-m", "bench", "cost", "my_model.py:make_step", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert all(method in done.stdout for method in ("uncertainty", "gradnorm layer", "gradnorm every 10"))
    assert (tmp_path / "results" / "cost" / "my_model" / "cost.png").stat().st_size > 10_000


def test_the_ten_task_recipe_of_public_gradnorm_orders_the_weights_against_sigma(tmp_path: Path) -> None:
    logs: dict[str, np.ndarray] = {}
    exec(FILES["from_gradnorm.py"], logs)

    weights, ratios = logs["log_weights"], logs["log_loss"]
    assert weights.shape == ratios.shape == (1000, 10)
    assert (weights[0] == 1).all()
    assert (ratios[0] == 1).all()
    np.testing.assert_allclose(weights.sum(1), 10, rtol=1e-5)
    sigmas = (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)
    assert spearmanr(sigmas, weights[-100:].mean(0)).statistic < -0.95


def test_the_table_of_methods_is_what_they_declare() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- lossbench list balancers --markdown -->\n")[2].partition("\n<!-- end -->")[0]
    ours = [entry for entry in method_list.entries() if balancers.get(entry.name).__module__.startswith("balancers.")]
    assert table == method_list.markdown(ours)
