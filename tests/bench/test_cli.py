"""Test the command line as a user calls it."""

import errno
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

import balancers
import tasks
from bench.catalogue import shell_completion
from bench.cli import app, on_suites, on_yours
from bench.cost.devices import DeviceName
from bench.diagnose import gradient_profile
from bench.paper.all_claims import CLAIMS
from bench.run import machine_facts
from bench.run.spec import protocol_version
from tasks import problem_registry

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


@pytest.fixture
def our_problems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the problems that other tests of this process have registered."""
    ours = {name: tasks.get(name) for name in tasks.names() if tasks.get(name).__module__.startswith("tasks.")}
    monkeypatch.setattr(problem_registry, "_classes", ours)


@pytest.mark.usefixtures("our_problems_alone")
def test_problems_are_listed_without_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def data(*_: object) -> None:
        raise AssertionError("data are loaded")

    for name in tasks.names():
        monkeypatch.setattr(tasks.get(name), "data", data)
    code, output = lossbench("list", "problems")
    assert code == 0, output
    words = " ".join(output.split())
    for each in ("regression", "normalized loss ↓", "relative depth error", "steps of"):
        assert each in words, each
    assert "fail" not in words


def test_a_method_is_listed_with_its_arguments_and_its_documentation() -> None:
    code, output = lossbench("list", "gradnorm")
    assert code == 0, output
    words = " ".join(output.split())
    assert "GradNorm(fork, wrt=None, *, tasks=None" in words
    assert "alpha=1.5" in words
    assert "With the norms G_i = ‖∇_W w_i L_i‖_2, their mean over the tasks Ḡ" in words
    assert "L_grad = Σ_i | G_i - Ḡ r_i^α |" in words
    assert "ICML 2018" in words
    assert "`wrt=net.trunk[-1]`" in words
    assert ":math:`" not in words
    assert "math::" not in words


def test_a_suite_is_listed_with_what_it_compares() -> None:
    code, output = lossbench("list", "default")
    assert code == 0, output
    words = " ".join(output.split())
    for each in ("Six methods on seven problems", "digit-pairs; flights", "gradnorm; nash-mtl", "seeds 1, 2, 3"):
        assert each in words, each
    assert "bench/suites/default.toml" in output.replace("\n", "").replace(" ", "")


def test_ones_own_suite_is_checked_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = '[[problems]]\nname = "regression"\n[[balancers]]\nname = "equal"\n[seeds]\nreported = [7]\n'
    path.write_text(text)
    code, output = lossbench("list", str(path))
    assert code == 0, output
    words = output.split()
    assert words[0] == "mine"
    for what, value in (("problems", "regression"), ("balancers", "equal"), ("seeds", "7")):
        assert words[words.index(what) + 1] == value
    path.write_text(text.replace("regression", "regresion"))
    code, output = lossbench("list", str(path))
    assert code == 2
    assert output.startswith("error: mine.toml: ")
    assert "did you mean 'regression'?" in output
    assert lossbench("list", str(tmp_path / "none.toml")) == (2, f"error: there is no file {tmp_path / 'none.toml'}\n")


def test_the_markdown_table_is_of_the_balancers_alone() -> None:
    for arguments in ((), ("balancers",)):
        code, output = lossbench("list", "--markdown", *arguments)
        assert code == 0
        assert output.startswith("| method | class |")
    code, output = lossbench("list", "--markdown", "problems")
    assert code == 2
    assert "--markdown prints the balancers alone; leave out 'problems'" in output
    assert "|" not in output


@pytest.mark.parametrize("option", ["--scheduler", "--cluster"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_name_of_a_cluster_does_not_mean_this_machine(tmp_path: Path, option: str, value: str) -> None:
    code, output = lossbench("run", "smoke", "--results", str(tmp_path / "results"), option, value)
    assert code == 2
    assert output == f"error: {option} is empty; is a variable of the shell not set?\n"
    assert not (tmp_path / "results").exists()


def test_a_problem_is_listed_with_its_samples() -> None:
    code, output = lossbench("list", "apart")
    assert code == 0, output
    assert "samples" in output
    assert "regression" not in output


def test_help_says_what_a_command_does_and_how_it_ends() -> None:
    assert {"run", "report", "list"} <= set(lossbench("--help")[1].split())
    code, output = lossbench("run", "--help")
    assert code == 0
    assert "Exit codes" in output


GROUP = typer.main.get_command(app)
EXAMPLES = [
    pytest.param(line, id=line[2:].strip())
    for command in (GROUP, *GROUP.commands.values())
    for line in command.epilog.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_the_help_is_a_command_and_fits_in_a_narrow_terminal(line: str) -> None:
    assert len(line.rstrip()) <= 78
    program, name, *arguments = shlex.split(line[2:], comments=True)
    assert program == "lossbench"
    GROUP.commands[name].make_context(name, arguments)  # parses them


@pytest.mark.parametrize("name", [None, *GROUP.commands])
def test_every_command_has_examples_and_says_how_it_ends(name: str | None) -> None:
    code, output = lossbench(*([name] if name else []), "--help")
    assert code == 0
    assert "Examples" in output
    assert f"$ lossbench {name or ''}" in output
    assert name is None or "Exit codes: 0" in output


def test_the_versions_are_told() -> None:
    code, output = lossbench("--version")
    assert code == 0
    assert re.fullmatch(r"lossbench \S+, PyTorch \S+, Python \S+\n", output)
    assert f"PyTorch {torch.__version__.partition('+')[0]}" in output
    assert f"Python {platform.python_version()}" in output


def test_what_the_command_line_states_again_is_what_the_rooms_state() -> None:
    """It does not import them for its help, as they import PyTorch."""
    assert list(on_yours.MeasuredOn) == list(DeviceName)
    assert len(CLAIMS) == on_suites.NUM_CLAIMS
    assert on_yours.PROFILE_SEED == gradient_profile.SEED


COMPLETE = """
import sys
from bench.cli import app
try:
    app(prog_name="lossbench")
finally:
    slow = {"torch", "pandas", "matplotlib"} & set(sys.modules)
    print(slow or "quick", file=sys.stderr)
"""


def answered_at_once(*arguments: str, **surroundings: str) -> str:
    """Run a command in a process of its own, check that it imports nothing slow, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, *arguments],
        env={**os.environ, "PYTHONPATH": str(TREE), **surroundings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "quick\n", done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("tune", "--help"), ("--version",)])
def test_help_and_version_import_nothing_slow(arguments: tuple[str, ...]) -> None:
    assert answered_at_once(*arguments)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("lossbench di", ["diagnose"]),
        ("lossbench show conf", ["conflict-2d"]),
        ("lossbench run smo", ["smoke"]),
        ("lossbench list ba", ["balancers"]),
        ("lossbench list smo", ["smoke"]),
        ("lossbench tune smoke --problem reg", ["regression"]),
        ("lossbench tune smoke --balancer stat", ["static"]),
        ("lossbench run my_suite", []),  # the shell then offers files
    ],
)
def test_the_shell_completes_names(words: str, completed: list[str]) -> None:
    count = str(len(words.split()) - 1)
    prepared = {"_LOSSBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    assert sorted(answered_at_once(**prepared).split()) == completed


def test_completion_is_shown_at_once_for_the_shell_that_is_named() -> None:
    assert "_LOSSBENCH_COMPLETE=complete_bash" in answered_at_once(_LOSSBENCH_COMPLETE="source_bash")


def test_the_names_that_the_shell_completes_are_those_that_are_registered() -> None:
    ours = {name for name in balancers.names() if balancers.get(name).__module__.startswith("balancers.")}
    assert ours == set(shell_completion.balancers(""))
    ours = {name for name in tasks.names() if tasks.get(name).__module__.startswith("tasks.")}
    assert ours == set(shell_completion.problems(""))


def test_the_shell_completes_suites_and_keys_of_stored_results(tmp_path: Path) -> None:
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    (tmp_path / "mine" / "suite.toml").write_text("")
    (tmp_path / "mine" / "runs" / "3f2a9c.parquet").write_text("")
    assert shell_completion.suites("mi", tmp_path) == ["mine"]
    assert shell_completion.keys("3f", tmp_path / "mine") == ["3f2a9c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rnu", r"no command is called 'rnu'; did you mean 'run'\? Known: .*; see \S+ --help"),
        ("run smoke --jbs 2", r"no such option: --jbs.*; see \S+ run --help"),
        ("run", r"missing argument 'SUITE'; see \S+ run --help"),
        ("run smoke --jobs many", r"invalid value for '--jobs': .*"),
        ("run smoek", r"no suite is called 'smoek'; did you mean 'smoke'\? .*"),
        ("run none.toml", r"there is no file none.toml"),
        ("run bytes.toml", r"bytes.toml is not a text in UTF-8: .*"),
        ("tune bytes.toml", r"bytes.toml is not a text in UTF-8: .*"),
        ("tune smoke --balancer gradnrom", r"no balancer .*'gradnrom'; did you mean 'gradnorm'\? .*"),
        ("show regresion", r"no problem is named 'regresion' \(did you mean 'regression'\?\).*"),
        (
            "show regression --out picture.pdf",
            r"--out is picture.pdf, but pictures are PNG files: give a name .* \.png",
        ),
        ("show regression --out pictures", r"--out is pictures, but pictures are PNG files: .*"),
        ("diagnose regresion", r"no problem is named 'regresion'; did you mean 'regression'\? .*"),
        ("try none.py", r"there is no file none.py"),
        ("cost none.py:f", r"there is no file none.py"),
        ("report smoek", r"there are no tables in results/smoek; .*; did you mean 'smoke'\? .*"),
        ("report mine.v2", r"there are no tables in results/mine\.v2; .*"),
        ("report folder/mine.v2.toml", r"there are no tables in results/mine\.v2; .*"),
        ("report results/mine/suite.toml", r"there are no tables in results/mine; .*"),
        ("report mine.py", r"there are no tables in results/mine; .*"),
        ("list balancer", r"invalid value: nothing is called 'balancer'; did you mean 'balancers'\? .*"),
        ("run smoke --cluster none.py:f", r"there is no Python file none.py"),
    ],
)
@pytest.mark.usefixtures("our_problems_alone")
def test_an_error_is_one_line(arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bytes.toml").write_bytes(b"\xff\xfe\x00")
    Path("results/smoke/tables").mkdir(parents=True)
    code, output = lossbench(*arguments.split())
    assert code == 2
    assert re.fullmatch(rf"error: {message}\n", output), output


def test_without_arguments_the_help_is_printed() -> None:
    code, output = lossbench()
    assert code == 2
    assert "Examples" in output
    assert "error" not in output


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


@pytest.mark.parametrize("error", ["RuntimeError('no licence')", "SystemExit('no licence')"])
def test_a_users_problem_that_cannot_be_made_is_told_in_a_line(own_file: tuple[Path, str], error: str) -> None:
    file, name = own_file
    file.write_text(file.read_text().replace("if min(scales) <= 0:", f"raise {error}\n        if min(scales) <= 0:"))
    cause = f"{error.partition('(')[0]}: no licence (mine.py, line "
    code, output = lossbench("list", str(file))
    assert code == 0, output
    assert f"it can't be made: {cause}" in " ".join(output.split())
    code, output = lossbench("show", str(file))
    assert code == 2
    assert output.startswith(f"error: {name} can't be made: {cause}")


def test_a_users_problem_whose_require_raises_is_told_in_a_line(own_file: tuple[Path, str]) -> None:
    file, name = own_file
    raising = "    def require(self):\n        import nothing_of_this_name\n\n    def data("
    file.write_text(file.read_text().replace("    def data(", raising))
    cause = "ModuleNotFoundError: No module named 'nothing_of_this_name' (mine.py, line "
    code, output = lossbench("list", str(file))
    assert code == 0, output
    assert f"its require raises {cause}" in " ".join(output.split())
    code, output = lossbench("show", str(file))
    assert code == 2
    assert output.startswith(f"error: {name} can't be made: {cause}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no server')", "raises RuntimeError: no server"),
        ("return b'1'", "returns b'1'; expected a text"),
        ("raise MissingDataError('it needs a file')", None),
    ],
)
def test_a_fingerprint_that_fails_is_told_in_a_line(
    own_file: tuple[Path, str], suite_text: Callable[..., str], body: str, message: str | None
) -> None:
    file, name = own_file
    source = file.read_text().replace("    def data(", f"    def fingerprint(self):\n        {body}\n\n    def data(")
    file.write_text(source.replace("from tasks import ", "from tasks import MissingDataError, "))
    suite = file.with_suffix(".toml")
    suite.write_text(suite_text(plugins=[file], problems=[{"name": name}], balancers=[{"name": "equal"}]))
    code, output = lossbench("run", str(suite), "--results", str(file.parent / "results"), "--jobs", "1")
    assert code == 2
    assert output == f"error: {f'fingerprint of {name} {message}' if message else 'it needs a file'}\n"


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
    empty, broken, exits = tmp_path / "empty.py", tmp_path / "broken.py", tmp_path / "exits.py"
    empty.write_text("x = 1\n")
    broken.write_text("import nothing_of_this_name\n")
    exits.write_text("import sys\n\nsys.exit(0)\n")
    for command, message in [
        (("list", str(empty)), f"error: {empty} registers neither a problem nor a balancer"),
        (("show", str(empty)), f"error: {empty} registers no problem"),
        (("list", str(broken)), "error: broken.py can't be loaded: ModuleNotFoundError"),
        (("list", str(exits)), "error: exits.py can't be loaded: SystemExit: 0\n"),
        (("show", str(exits)), "error: exits.py can't be loaded: SystemExit: 0\n"),
        (("try", str(exits)), "error: exits.py can't be loaded: SystemExit: 0\n"),
        (("show", str(tmp_path / "none.py")), "error: there is no file"),
    ]:
        code, output = lossbench(*command)
        assert code == 2
        assert output.startswith(message)


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
    assert f"error: {os.strerror(number)}: results" in output
    assert output.endswith(f"if nothing can be written there, {option} names another place\n")


def test_what_it_was_run_on_names_no_person_machine_or_folder() -> None:
    facts = machine_facts.describe(jobs=2)
    assert facts["protocol"] == protocol_version()
    told = json.dumps(facts)
    for private in (platform.node(), str(Path.home()), str(TREE), os.getcwd()):
        assert private not in told


def test_the_commit_is_that_of_the_process_s_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes on after a pull runs the code from before."""
    before = machine_facts.describe(jobs=1)
    pulled = subprocess.CompletedProcess([], 0, stdout="another commit")
    monkeypatch.setattr(machine_facts.subprocess, "run", lambda *_, **__: pulled)
    after = machine_facts.describe(jobs=1)
    assert [after[fact] for fact in ("commit", "dirty")] == [before[fact] for fact in ("commit", "dirty")]


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
    assert (folder / "suite.toml").read_text() == text.replace('"tasks.py"', '"../../tasks.py"')
    runs = pd.read_parquet(folder / "tables/runs.parquet").set_index("balancer")["status"]
    assert runs.groupby(level=0).agg(set).to_dict() == {"equal": {"ok"}, "mine": {"ok"}, "broken": {"failed"}}

    # The repaired file is another file for all three methods, as the problem is in it too.
    (tmp_path / "tasks.py").write_text(
        USERS_TASKS.replace('raise ValueError("not working yet")', "return losses * 0 + 1")
    )
    second = run()
    assert second.returncode == 0, second.stderr
    assert "6 runs computed, 0 already stored, 0 failed" in second.stderr


@pytest.mark.slow
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


def test_a_results_folder_is_reported_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path(__file__).parents[2] / "results" / "reference" / "default"
    shutil.copytree(kept, tmp_path / "elsewhere" / "kept")
    code, output = lossbench("report", "elsewhere/kept")
    assert code == 0, output
    assert "Leaderboard" in output
    assert not (tmp_path / "results").exists()


def test_a_file_in_the_place_of_the_results_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = lossbench("run", "smoke", "--results", str(tmp_path / "file"))
    assert code == 2
    assert "Errno" not in output
    assert output.endswith("file/smoke; if nothing can be written there, --results names another place\n")
