"""Test ``lossbench diagnose`` as a user calls it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import balancers
from bench.cli import app
from bench.diagnose import diagnose_terminal, kept_evidence, regret, rule
from bench.diagnose.advice import Advice
from bench.diagnose.diagnose_terminal import gain_and_cost, with_likelihoods
from bench.run.spec import Method

pytestmark = pytest.mark.xdist_group("processes")

TREE = Path(__file__).resolve().parents[3]
SMALL = (Path(__file__).parents[1] / "plugins" / "small.py").read_text()


def lossbench(*arguments: str) -> tuple[int, str]:
    """Run a command in this process, and return its exit code and output."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a file that registers a problem under a name that only this test has."""
    name = re.sub(r"\W", "-", request.node.name)
    path = tmp_path / "mine.py"
    path.write_text(SMALL.replace('name = "small"', f'name = "{name}"'))
    return path


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Return the problem of docs/add-a-problem.md, which the README tries, under a name of its own."""
    text = (TREE / "docs/add-a-problem.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "my_problem.py"
    path.write_text(program.replace('name = "waves"', 'name = "diagnosed-waves"'), encoding="utf-8")
    return path


def test_the_readmes_example_gets_a_profile_and_advice(example: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "advice.json"
    code, output = lossbench("diagnose", str(example), "--json", str(out))
    assert code == 0, output
    told = " ".join(output.split())
    assert "means over the first 25 of 500 steps" in told
    for task in ("slow", "fast"):
        assert re.search(rf"{task}( +[\d.]+){{3}}", output), task
    assert "The gradients of slow and fast agree least" in told
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["problem"] == "diagnosed-waves"
    assert found["profile"]["tasks"] == ["slow", "fast"]
    assert found["profile"]["steps"] == 25
    assert len(found["profile"]["cosines"]) == 2
    assert "loss_curve" not in found["profile"]
    candidate = found["advice"]["candidate"]
    assert candidate in rule.CANDIDATES
    assert f"advice for diagnosed-waves: {candidate}" in output
    assert found["advice"]["code"] in output
    for reason in found["advice"]["reasons"]:
        assert reason in told


def test_a_problem_is_named_with_options_and_a_seed(file: Path) -> None:
    lossbench("list", str(file))
    name = "test_a_problem_is_named_with_options_and_a_seed"
    code, output = lossbench("diagnose", name, "--option", "steps = 500", "--option", "scales = [1.0, 30.0]")
    assert code == 0, output
    assert "25 of 500 steps" in output
    told = " ".join(output.split())
    assert "The first loss of b" in told
    assert told.index("Then run diagnose again: the advice below is for the losses as they are.") < told.index(
        "advice for"
    )
    assert "Warning" not in told
    assert lossbench("diagnose", name, "--seed", "2")[1] != lossbench("diagnose", name, "--seed", "3")[1]


def test_two_tasks_that_share_no_gradient_are_told(file: Path, tmp_path: Path) -> None:
    text = file.read_text().replace("model(batch.x)", "[y.detach() + model.heads[0].bias for y in model(batch.x)]")
    file.write_text(text)
    out = tmp_path / "advice.json"
    code, output = lossbench("diagnose", str(file), "--json", str(out))
    assert code == 0, output
    assert "There are no cosines" in output
    assert "Warning: the gradient of a and b is zero in every one of these steps" in " ".join(output.split())
    assert json.loads(out.read_text())["profile"]["cosines"] == [[None, None], [None, None]]


def test_a_penalty_that_grows_is_told(file: Path) -> None:
    code, output = lossbench("diagnose", str(file))
    assert code == 0, output
    assert "Warning" not in output
    text = file.read_text()
    line = next(line for line in text.splitlines() if "        return [nn.functional" in line)
    first = f"        first, _ = {line.strip().removeprefix('return ')}"
    counts = "        self.calls = getattr(self, 'calls', 0) + 1"
    grows = f"{first}\n{counts}\n        return [first, 2.0**self.calls * first]"
    file.write_text(text.replace(line, grows).replace('name = "', 'name = "penalised-'))
    told = " ".join(lossbench("diagnose", str(file))[1].split())
    assert re.search(r"Warning: the loss of b \(\d+ times\) grows in these steps\. If it is a penalty", told), told


def test_losses_may_be_a_dict_in_any_order(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "advice.json"
    assert lossbench("diagnose", str(file), "--json", str(out))[0] == 0
    expected = json.loads(out.read_text())["profile"]["losses"]
    text = file.read_text()
    assert text.count("        return [nn.functional") == 1
    line = next(line for line in text.splitlines() if "        return [nn.functional" in line)
    as_dict = f"        each = {line.strip().removeprefix('return ')}\n        return dict(zip('ba', each[::-1]))"
    other = tmp_path / "other.py"
    other.write_text(text.replace(line, as_dict).replace('name = "', 'name = "dict-'))
    code, output = lossbench("diagnose", str(other), "--json", str(out))
    assert code == 0, output
    assert json.loads(out.read_text())["profile"]["losses"] == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    def losses(",
            "    def losses(self, *_):\n        {}['x']\n\n    def _(",
            "KeyError: 'x' (mine.py, line ",
        ),
        ("return [nn.functional", "return [float('nan') * nn.functional", "the loss of a is nan at step 1"),
        ("return Net(", "return Nett(", "NameError: name 'Nett' is not defined (mine.py, line "),
        ("import torch\n", "import torhc\n", "mine.py can't be loaded: ModuleNotFoundError"),
    ],
)
def test_a_broken_problem_is_told_in_a_sentence(file: Path, old: str, new: str, message: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))
    code, output = lossbench("diagnose", str(file))
    assert code == 2
    told = output.splitlines()[-1]
    assert told.startswith("error: ")
    assert message in told
    assert "Traceback" not in output


def test_bad_input_is_told_in_a_sentence(file: Path, tmp_path: Path) -> None:
    empty, both = tmp_path / "empty.py", tmp_path / "both.py"
    empty.write_text("x = 1\n")
    second = '\n\n@register\nclass Second(Small):\n    name = "second-in-both"\n'
    both.write_text(file.read_text().replace('name = "', 'name = "first-in-both-') + second)
    for arguments, message in [
        ((str(tmp_path / "none.py"),), "error: there is no file"),
        ((str(empty),), f"error: {empty} registers no problem"),
        (("regresion",), "error: no problem is named 'regresion'; did you mean 'regression'"),
        (("regression", "--option", "sigmas"), "error: --option takes KEY=VALUE"),
        (("regression", "--option", "sigma=1"), "error: regression has no option 'sigma'"),
        ((str(both), "--json", str(tmp_path / "out.json")), f"error: {both} registers "),
    ]:
        code, output = lossbench("diagnose", *arguments)
        assert code == 2, arguments
        assert output.splitlines()[-1].startswith(message), output
    assert lossbench("diagnose", str(both))[1].count("advice for ") == 2


def test_the_evidence_is_told_once_there_is_some(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame(
        [(candidate, 0.5, 2.345, 1.02, 1.4) for candidate in rule.CANDIDATES],
        columns=["candidate", "q_low", "q_high", "cost_low", "cost_high"],
    )
    famo = Advice("famo", Method("famo", None, {}), "", (), None, ())
    told = "Equal weights needed less than 0.5 to 2.35 times the steps to match it there; "
    assert gain_and_cost(table, famo) == f"{told}a step took 1.02 to 1.40 times as long."
    fixed = replace(famo, candidate="inverse-norm", weights={"a": 1.5, "b": 0.5})
    assert gain_and_cost(table, fixed) == f"{told}fixed weights add nothing to a step."
    assert "1.50 to more than 4 times" in gain_and_cost(table.assign(q_low=1.5, q_high=4.0), famo)
    assert gain_and_cost(table[table["candidate"] != "famo"], famo) == ""
    assert gain_and_cost(None, famo) == ""

    monkeypatch.setattr(kept_evidence, "FOLDER", tmp_path)
    assert "Equal weights needed" not in lossbench("diagnose", str(file))[1]
    table.to_csv(tmp_path / kept_evidence.RANGES, index=False)
    assert "Equal weights needed" in lossbench("diagnose", str(file))[1]


def test_the_rule_counts_as_untested_until_its_test_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "or says that there is none yet" in " ".join(lossbench("diagnose", "--help")[1].split())
    monkeypatch.setattr(kept_evidence, "FOLDER", tmp_path)
    assert diagnose_terminal.result_of_test() == diagnose_terminal.UNTESTED
    keep_test(tmp_path, "fails")
    told = diagnose_terminal.result_of_test()
    assert told.startswith("The rule that reads the profile fails its test.")
    assert "on 1 of 2 problems of the evidence and on 0 of 1 reserved ones;" in told


def test_the_pages_say_what_became_of_the_test() -> None:
    regrets = kept_evidence.regrets()
    assert regrets is not None
    assert set(regrets["verdict"]) == {"fails"}
    for name in ("add-a-problem.md", "start/which-method.md", "advice.md"):
        page = " ".join((TREE / "docs" / name).read_text(encoding="utf-8").split())
        assert re.search(r"fails the test that was set for it", page), name


def keep_test(folder: Path, verdict: str, best: str = "famo") -> None:
    """Write a result of the rule's test, and that ``best`` is best on average."""
    found = pd.DataFrame({"problem": ["a", "b", "c"], "reserved": [False, False, True], "there": True})
    found = found.assign(regret=[0.0, 0.1, 0.2], opponent_regret=[0.3, 0.1, 0.15], lower=["advice", "", "opponent"])
    found.assign(verdict=verdict).to_csv(folder / kept_evidence.REGRETS, index=False)
    always = [(best, 0.05, "b", 0.25), *((each, 0.5, "a", 0.7) for each in rule.CANDIDATES if each != best)]
    pd.DataFrame(always, columns=regret.ALWAYS).to_csv(folder / kept_evidence.CANDIDATES, index=False)


def test_if_the_rule_fails_its_opponents_advice_comes_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "test_if_the_rule_fails_its_opponents_advice_comes_first"
    monkeypatch.setattr(kept_evidence, "FOLDER", tmp_path)
    out = tmp_path / "advice.json"
    keep_test(tmp_path, "not decided")
    code, output = lossbench("diagnose", str(file), "--json", str(out))
    assert code == 0, output
    by_rule = json.loads(out.read_text())["rule"]
    assert json.loads(out.read_text())["advice"] == by_rule
    assert f"advice for {name}: {by_rule['candidate']}" in output
    assert output.index("advice for") < output.index("is not decided yet")

    keep_test(tmp_path, "fails")
    code, output = lossbench("diagnose", str(file), "--json", str(out))
    assert code == 0, output
    told = " ".join(output.split())
    found = json.loads(out.read_text())
    assert found["advice"]["candidate"] == "famo"
    assert found["rule"] == by_rule
    assert found["test"] in told
    order = (
        "fails its test",
        f"advice for {name}: famo",
        f"or, by the profile: {by_rule['candidate']}",
        f"lossbench try {file}",
    )
    assert sorted(order, key=told.index) == list(order)
    best = "times the error of the best candidate in the geometric mean, and"
    assert f"average over the problems of the evidence: 1.05 {best} 1.28 times at worst, on b." in told
    assert f"Its choices on the problems of the evidence: 1.11 {best} 1.22 times at worst, on c." in told
    assert "These problems chose it. On a problem that did not, the best on the others has 1.20 times." in told
    assert "Always advising one method was better on 1 of 3, by at most 5.1 %." in told

    keep_test(tmp_path, "fails", by_rule["candidate"])
    output = lossbench("diagnose", str(file))[1]
    assert "or, by the profile: the same" in output
    assert output.count(by_rule["code"]) == 1


def test_the_help_names_what_the_rule_can_advise() -> None:
    assert "FAMO" not in lossbench("diagnose", "--help")[1]
    advised = set(re.findall(r'Choice\(\s*"([a-z-]+)"', Path(rule.__file__).read_text(encoding="utf-8")))
    assert advised == set(rule.CANDIDATES) - {"famo"}


def test_declared_likelihoods_are_in_the_advice() -> None:
    advised = Advice(
        "uncertainty",
        Method("uncertainty", None, {}),
        'balancers.UncertaintyWeighting(["a", "b"])',
        ("Give likelihoods.",),
        None,
        (),
    )
    likelihoods = {"a": "gaussian", "b": "softmax"}
    found = with_likelihoods(advised, likelihoods)
    assert found.method.options == {"likelihoods": likelihoods}
    assert found.notes == ()
    assert eval(found.code, {"balancers": balancers}).likelihoods == ["gaussian", "softmax"]
    assert with_likelihoods(advised, {}) == advised
    assert with_likelihoods(replace(advised, candidate="equal"), likelihoods).code == advised.code
