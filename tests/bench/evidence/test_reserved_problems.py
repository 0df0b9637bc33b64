"""Reserved problems stay untouched until all parts of A and B are kept: rule 33 of the protocol."""

from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from bench.evidence import __main__ as command
from bench.evidence import evidence_parts, evidence_tables
from bench.evidence.evidence_parts import TABLES
from bench.run import suite_text
from bench.suite import suite_file

from . import made_up_parts


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command.app, arguments)


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Return the names of all parts of A and B."""
    return [
        evidence_parts.part_name(table, entry.get("label", entry["name"]))
        for table in ("A", "B")
        for entry in suite_text.read(suite_file.find(TABLES[table])).values["problems"]
    ]


def touch(kept: Path, names: list[str]) -> Path:
    """Write empty files in place of the scores of these parts."""
    for name in names:
        (kept / name).mkdir(parents=True)
        (kept / name / "scores.parquet").touch()
    return kept


@pytest.mark.parametrize("name", ["run", "costs"])
def test_they_are_refused_in_one_line_that_names_what_is_missing(
    name: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No run may begin, not even where the command fails to refuse.
    monkeypatch.setattr(evidence_parts, "parts", lambda only, reserved: pytest.fail("reserved parts were listed"))
    absent = ["A/scenes", "B/apart"]
    kept = touch(tmp_path / "kept", [part for part in names if part not in absent])
    where = ["--kept", str(kept), "--results", str(tmp_path / "results")]
    done = invoke(name, "--reserved", *where)
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith("error: reserved problems come after all parts of A and B (rule 33")
    assert done.output.endswith("lacks A/scenes, B/apart\n")
    assert not (tmp_path / "results").exists()
    assert not (kept / "reserved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "costs"])
def test_they_are_let_through_once_everything_is_kept(name: str, names: list[str], tmp_path: Path) -> None:
    kept = touch(tmp_path / "kept", names)
    done = invoke(name, "nothing", "--reserved", "--kept", str(kept), "--results", str(tmp_path / "results"))
    assert "error: no part of the evidence is called 'nothing'" in done.output


@pytest.mark.slow
def test_the_tables_leave_them_out_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made_up_parts.keep(tmp_path / "kept", problems=("scenes", "burgers", "recommender"), seeds=3)
    early, told = tables(kept, tmp_path / "early")
    assert "missing: reserved/recommender" in told
    named = [name for name, table in early.items() if table.isin(["recommender", "reserved"]).any(axis=None)]
    assert named == ["parts"]
    refused = invoke("markdown", "reserved-scores", "--kept", str(kept))
    assert (refused.exit_code, refused.output.splitlines()) == (
        2,
        ["error: no reserved problem is there: python -m bench.evidence run --reserved"],
    )
    monkeypatch.setattr(evidence_tables, "missing", lambda kept: [])
    late, told = tables(kept, tmp_path / "late")
    assert "missing: reserved/recommender" not in told
    for name in ("problems", "scores", "comparisons", "claims", "counts"):
        assert late[name].isin(["recommender", "reserved"]).any(axis=None), name
    assert set(late) == set(early)
    assert invoke("markdown", "reserved-scores", "--kept", str(kept)).output.startswith("|  | recommender |")


def tables(kept: Path, out: Path) -> tuple[dict[str, pd.DataFrame], str]:
    """Run the command that makes the tables, and return these and what it said."""
    done = invoke("tables", "--kept", str(kept), "--out", str(out))
    assert done.exit_code == 0, done.output
    found = {path.stem: pd.read_csv(path) for path in out.glob("tables/*.csv")}
    return found | {path.stem: pd.read_parquet(path) for path in out.glob("tables/*.parquet")}, done.output
