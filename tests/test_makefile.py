"""What `make reference` keeps is replaced by a whole copy, or not at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
NEEDED = {
    "keep": (
        *("report.html", "suite.toml", "environment.json", "figures/summary.png", "tables/runs.csv"),
        *("tables/scores.parquet", "tables/baselines.csv", "tables/problems.csv"),
    ),
    "keep-claims": (
        *("report.html", "environment.json", "figures/claim-1.png", "tables/claims.csv", "tables/findings.csv"),
        *("tables/claim-4.csv", "tables/claim-5.csv", "tables/claim-6.csv"),
    ),
}
"""The files that each of the two commands copies."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", NEEDED)
def test_what_was_kept_stays_until_the_copy_is_whole(command: str, tmp_path: Path) -> None:
    made, kept = (tmp_path / name / "paper" for name in ("results", "results/reference"))
    kept.mkdir(parents=True)
    (kept / "report.html").write_text("before")

    def make() -> int:
        rule = f"keep-it: ; $(call {command},paper)"
        line = ["make", "-f", str(MAKEFILE), f"PYTHON={sys.executable}", "--eval", rule, "keep-it"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, check=False).returncode

    *most, last = NEEDED[command]
    for name in most:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("now")
    assert make() != 0
    assert files(kept) == {"report.html": "before"}
    (made / last).write_text("now")
    (made / "tables" / "trajectory.csv").write_text("too large to keep")
    assert make() == 0
    assert files(kept) == dict.fromkeys(NEEDED[command], "now")
