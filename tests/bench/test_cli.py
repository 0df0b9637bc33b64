"""Test the command line as a user calls it."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.run import machine_facts
from bench.run.spec import protocol_version

pytestmark = pytest.mark.xdist_group("processes")

TREE = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).parent / "plugins" / "small.py"


def lossbench(*arguments: str) -> tuple[int, str]:
    """Run a command in this process, and return its exit code and output."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_everything_there_is_is_listed_with_a_line() -> None:
    code, output = lossbench("list")
    assert code == 0
    for name in ("equal", "static", "uncertainty", "gradnorm", "regression", "default", "smoke"):
        assert re.search(rf"^ {name} +\w+", output, re.MULTILINE), name
    code, output = lossbench("list", "suites")
    assert code == 0
    assert "smoke" in output
    assert "gradnorm " not in output


def test_help_says_what_a_command_does_and_how_it_ends() -> None:
    assert {"run", "report", "list"} <= set(lossbench("--help")[1].split())
    code, output = lossbench("run", "--help")
    assert code == 0
    assert "Exit codes" in output


def test_bad_input_is_told_in_a_sentence(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(balancers=[{"name": "gradnorm", "options": {"alpah": 1}}]))
    results = ("--results", str(tmp_path / "results"))
    for command, message in [
        (("run", "smoek"), "error: no suite is called 'smoek'; did you mean 'smoke'?"),
        (("run", str(path), *results), "error: mine.toml: balancers[0].options.alpah: unknown key"),
        (("report", "default", *results), "error: there are no tables in"),
    ]:
        code, output = lossbench(*command)
        assert code == 2
        assert output.startswith(message)
        assert "Traceback" not in output
    assert lossbench("run", str(path), "--jobs", "0")[0] == 2
    assert not (tmp_path / "results").exists()


OWN = """
from balancers import EqualWeighting, register


@register
class Own(EqualWeighting):
    name = "{name}-balancer"
    summary = "The user's own balancer."
"""


@pytest.fixture
def own_file(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """Return a user's file that registers a problem and a balancer, and the problem's name."""
    name = f"own-{zlib.crc32(request.node.name.encode())}"
    path = tmp_path / "mine.py"
    path.write_text(SMALL.read_text().replace('name = "small"', f'name = "{name}"') + OWN.format(name=name))
    return path, name


def test_a_users_file_is_listed_in_detail(own_file: tuple[Path, str]) -> None:
    file, name = own_file
    code, output = lossbench("list", str(file))
    assert code == 0, output
    for words in (name, f"{name}-balancer", "Linear maps", "error ↓", "train 64, validation 64, test 64", "12 steps"):
        assert words in " ".join(output.split()), words
    assert "uncertainty" not in output
    assert "regression" not in output


def test_a_users_problem_that_fails_is_listed_with_the_cause(own_file: tuple[Path, str]) -> None:
    file, _ = own_file
    file.write_text(
        file.read_text().replace("    def losses(", "    def losses(self, *_):\n        {}['x']\n\n    def _(")
    )
    code, output = lossbench("list", str(file))
    assert code == 0, output
    assert "its first steps fail: KeyError: 'x' (mine.py, line " in " ".join(output.split())


def test_a_users_problem_is_drawn(own_file: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, name = own_file
    monkeypatch.chdir(tmp_path)
    code, output = lossbench("show", str(file))
    assert code == 0, output
    assert output.startswith("The targets of a.")
    assert (tmp_path / "results/show" / f"{name}.png").stat().st_size > 1000


def test_a_drawing_that_fails_is_told_in_a_sentence(own_file: tuple[Path, str]) -> None:
    file, name = own_file
    file.write_text(file.read_text().replace("axes = figure.subplots()", "axes = None"))
    code, output = lossbench("show", str(file))
    assert code == 2
    assert output.startswith(f"error: {name} can't be drawn: AttributeError: ")


def test_a_users_file_that_registers_nothing_is_told_so(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.py", tmp_path / "broken.py"
    empty.write_text("x = 1\n")
    broken.write_text("import nothing_of_this_name\n")
    for command, message in [
        (("list", str(empty)), f"error: {empty} registers neither a problem nor a balancer"),
        (("show", str(empty)), f"error: {empty} registers no problem"),
        (("list", str(broken)), "error: broken.py can't be loaded: ModuleNotFoundError"),
        (("show", str(tmp_path / "none.py")), "error: there is no file"),
    ]:
        code, output = lossbench(*command)
        assert code == 2
        assert output.startswith(message)
    code, output = lossbench("list", "problem")
    assert code == 2
    assert "'problem' is neither a .py file nor one of balancers, problems, suites" in " ".join(
        output.replace("│", " ").split()
    )


@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_python_file_is_no_suite_and_the_message_names_try(command: str) -> None:
    code, output = lossbench(command, "my_problem.py")
    assert code == 2
    assert output.startswith("error: my_problem.py is a Python file")
    assert output.endswith("lossbench try my_problem.py\n")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(("run", "smoke"), "--results"), (("show", "regression"), "--out"), (("try", str(SMALL)), "--results")],
)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_names_the_option(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], option: str, number: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, output = lossbench(*arguments)
    assert code == 2
    assert f"{os.strerror(number)}: 'results" in output
    assert output.endswith(f"if nothing can be written there, {option} names another place\n")


def test_what_it_was_run_on_names_no_person_machine_or_folder() -> None:
    facts = machine_facts.describe(jobs=2)
    assert facts["protocol"] == protocol_version()
    told = json.dumps(facts)
    for private in (platform.node(), str(Path.home()), str(TREE), os.getcwd()):
        assert private not in told


USERS_TASKS = '''
"""A user's method and problem, in a file that is called like one of our packages."""

from balancers import LossBalancer, register
from tasks import Regression
import tasks


@register
class Mine(LossBalancer):
    name = "mine"
    summary = "The user's own."
    reads = "nothing"

    def weigh(self, losses):
        return losses.new_tensor([0.5, 1.5])


@register
class Broken(LossBalancer):
    name = "broken"
    summary = "The user's own, not working yet."
    reads = "nothing"

    def weigh(self, losses):
        raise ValueError("not working yet")


@tasks.register
class Tiny(Regression):
    name = "tiny"
    summary = "The user's own problem."
'''


@pytest.mark.slow
def test_it_runs_from_a_folder_with_a_tasks_file_of_its_own(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    """That file is the user's plugin; were it, or one of the others, imported by its name, nothing would work."""
    (tmp_path / "tasks.py").write_text(USERS_TASKS)
    for name in ("balancers.py", "numpy.py", "joblib.py", "random.py"):
        (tmp_path / name).write_text(f"raise ImportError('the {name} of the folder that the user works in')\n")
    text = suite_text(
        plugins=["tasks.py"],
        problems=[{"name": "tiny", "steps": 4}],
        balancers=[{"name": name} for name in ("equal", "mine", "broken")],
        learning_rates=None,
        reported=[1, 2],
    )
    (tmp_path / "mine.toml").write_text(text)

    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "bench", "run", "mine.toml", "--jobs", "2"]
        surroundings = {**os.environ, "PYTHONPATH": str(TREE)}
        return subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)

    first = run()
    assert first.returncode == 1, first.stderr  # some runs failed
    assert "6 runs computed, 0 already stored, 2 failed" in first.stderr
    assert "ValueError: not working yet (tasks.py, line 26)" in first.stderr
    assert "results/mine/report.html" in first.stdout
    folder = tmp_path / "results/mine"
    assert (folder / "report.html").is_file()
    assert (folder / "suite.toml").read_text() == text
    runs = pd.read_parquet(folder / "tables/runs.parquet").set_index("balancer")["status"]
    assert runs.groupby(level=0).agg(set).to_dict() == {"equal": {"ok"}, "mine": {"ok"}, "broken": {"failed"}}

    # The repaired file is another file for all three methods, as the problem is in it too.
    (tmp_path / "tasks.py").write_text(
        USERS_TASKS.replace('raise ValueError("not working yet")', "return losses * 0 + 1")
    )
    second = run()
    assert second.returncode == 0, second.stderr
    assert "6 runs computed, 0 already stored, 0 failed" in second.stderr


def test_a_changed_file_reruns_what_goes_through_it(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    """Keys are computed in new processes, because a process keeps the source of a file that it has imported."""
    methods = ("first", "second")
    source = (
        "from balancers import EqualWeighting, register\n\n"
        "@register\nclass Own(EqualWeighting):\n    name = '{}'\n    summary = 'A test.'\n"
    )
    for method in methods:
        (tmp_path / f"{method}.py").write_text(source.format(method))
    files = [SMALL, *(tmp_path / f"{method}.py" for method in methods)]
    text = suite_text(plugins=files, balancers=[{"name": name} for name in ("equal", *methods)], reported=[1])
    (tmp_path / "mine.toml").write_text(text)

    def keys() -> list[str]:
        script = (
            "import sys; from pathlib import Path; from bench.suite import plan, suite_file;"
            "print(*(run.key for run in plan.reported(suite_file.load(Path(sys.argv[1])), None)))"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "mine.toml")]
        surroundings = {**os.environ, "PYTHONPATH": str(TREE)}
        return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True).stdout.split()

    before = keys()
    (tmp_path / "second.py").write_text(source.format("second") + "    changed = True\n")
    after = keys()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False]
