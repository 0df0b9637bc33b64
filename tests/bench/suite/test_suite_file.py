"""Read suites, and refuse each for the first mistake in it, by file and key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import balancers
import tasks
from bench.cli import run_and_report
from bench.suite import suite_file
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

from ...slow_params import others_slow
from ..conftest import toml

MakeSuite = Callable[..., Suite]

SMALL = str(Path(__file__).parents[1] / "plugins" / "small.py")


@pytest.mark.parametrize("name", others_slow(suite_file.names(), "default", "smoke"))
def test_the_suites_that_come_along_can_be_run(name: str) -> None:
    loaded = suite_file.load(suite_file.find(name))
    assert loaded.name == name
    assert loaded.description
    assert not set(loaded.tuning_seeds) & set(loaded.reported_seeds)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"sedes": 1}, "mine.toml: sedes: unknown key; did you mean 'seeds'?"),
        ({"evaluations": 0}, "mine.toml: evaluations: expected a whole number, 1 or more, got 0"),
        ({"evaluations": True}, "mine.toml: evaluations: expected a whole number, 1 or more, got True"),
        ({"device": "gpu"}, 'mine.toml: device: expected "cpu", "cuda" or "auto", got \'gpu\''),
        ({"rounds": -1}, "mine.toml: cost.rounds: expected a whole number, 0 or more, got -1"),
        ({"tuning": [1, 11]}, "mine.toml: seeds.tuning: [1] are reported seeds too"),
        ({"tuning": [11, 11]}, "mine.toml: seeds.tuning: expected a list of different whole numbers"),
        ({"reported": []}, "mine.toml: seeds.reported: expected a list of different whole numbers"),
        (
            {"reported": [2**63]},
            "mine.toml: seeds.reported: expected a list of different whole numbers, 0 or more and below 2**63, got",
        ),
        (
            {"learning_rates": [0.1]},
            "mine.toml: learning_rates.grid: expected a list of different positive numbers, two",
        ),
        ({"learning_rates": [1, 1.0]}, "mine.toml: learning_rates.grid: expected a list of different positive"),
        ({"learning_rates": [0.1, -0.1]}, "mine.toml: learning_rates.grid: expected a list of different positive"),
        ({"plugins": ["nowhere.py"]}, "mine.toml: plugins[0]: there is no file nowhere.py"),
        ({"problems": []}, "mine.toml: problems: expected one [[problems]] table or more"),
        ({"problems": [{"label": "x"}]}, "mine.toml: problems[0].name: missing; expected a text"),
        (
            {"problems": [{"name": "smal"}]},
            "mine.toml: problems[0].name: no problem is called 'smal'; did you mean 'small'?",
        ),
        (
            {"problems": [{"name": "small", "step": 3}]},
            "mine.toml: problems[0].step: unknown key; did you mean 'steps'?",
        ),
        ({"problems": [{"name": "small", "steps": 0}]}, "mine.toml: problems[0].steps: expected a whole number, 1 or"),
        (
            {"problems": [{"name": "small", "options": {"scale": [1, 2]}}]},
            "mine.toml: problems[0].options.scale: unknown key; did you mean 'scales'?",
        ),
        (
            {"problems": [{"name": "small", "options": {"scales": [1, -2]}}]},
            "mine.toml: problems[0].options.scales: scales holds -2; expected positive numbers",
        ),
        (
            {"balancers": [{"name": "equal"}, {"name": "gradnrom"}]},
            "mine.toml: balancers[1].name: no balancer is called 'gradnrom'; did you mean 'gradnorm'?",
        ),
        (
            {"balancers": [{"name": "equal"}, {"name": "gradnorm", "options": {"alpah": 0.1}}]},
            "mine.toml: balancers[1].options.alpah: unknown key; did you mean 'alpha'?",
        ),
        (
            {"balancers": [{"name": "gradnorm", "options": {"update_evry": 10}}]},
            "mine.toml: balancers[0].options.update_evry: unknown key; did you mean 'update_every'? "
            "Known: 'accumulate', 'alpha', 'check_finite', 'compile', 'exact', 'freeze_after', 'initial_losses', 'lr', "
            "'optimizer', 'update_every'",
        ),
        (
            {"balancers": [{"name": "uncertainty", "options": {"update_every": 10}}]},
            "mine.toml: balancers[0].options.update_every: unknown key; "
            "known: 'accumulate', 'check_finite', 'compile', 'likelihoods', 'lr', 'optimizer'",
        ),
        (
            {"balancers": [{"name": "gradnorm", "options": {"process_group": False}}]},
            "mine.toml: balancers[0].options.process_group: unknown key",
        ),
        (
            {"balancers": [{"name": "gradnorm", "options": {"alpha": -1}}]},
            "mine.toml: balancers[0].options.alpha: alpha is -1",
        ),
        (
            {"balancers": [{"name": "gradnorm", "options": {"tasks": 2}}]},
            "mine.toml: balancers[0].options.tasks: unknown key",
        ),
        ({"balancers": [{"name": "gradnorm", "wrt": "trunk"}]}, 'mine.toml: balancers[0].wrt: expected "features"'),
        (
            {"balancers": [{"name": "equal", "wrt": "layer"}]},
            "mine.toml: balancers[0].wrt: equal doesn't read gradients",
        ),
        ({"balancers": [{"name": "static"}]}, "mine.toml: balancers[0].options: static needs the option 'weights'"),
        (
            {"balancers": [{"name": "static", "options": {"weights": "problem:inverted"}}]},
            "mine.toml: balancers[0].options.weights: small has no fixed weights called 'inverted'; "
            "did you mean 'inverse'?",
        ),
        (
            {"balancers": [{"name": "static", "options": {"weights": [1, 1, 1]}}]},
            "mine.toml: balancers[0].options.weights: weights",
        ),
        (
            {"balancers": [{"name": "equal"}, {"name": "equal"}]},
            "mine.toml: balancers[1].label: 'equal' is the label of balancers[0] too",
        ),
        (
            {"balancers": [{"name": "equal", "times_steps": 1e308}]},
            "mine.toml: balancers[0].times_steps: 1e+308 times the steps of small are more than 1e+15",
        ),
        (
            {"balancers": [{"name": "gradnorm", "options": {"alpha": float("inf")}}]},
            "mine.toml: balancers[0].options.alpha: expected texts, finite numbers",
        ),
    ],
)
def test_what_is_wrong_is_told_by_its_key(make_suite: MakeSuite, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError) as refusal:
        make_suite(**parts)
    assert str(refusal.value).startswith(message)


def test_rates_without_room_for_trials_are_refused_if_weights_are_searched(make_suite: MakeSuite) -> None:
    near = [1e-3, 1.0000000000000002e-3]
    assert make_suite(learning_rates=near).learning_rates == tuple(near)
    searched = {"name": "static", "label": "searched", "options": {"weights": "search"}}
    with pytest.raises(
        SuiteError, match=r"^mine\.toml: learning_rates\.grid: there are no \d different learning rates"
    ):
        make_suite(learning_rates=near, balancers=[{"name": "equal"}, searched])


def test_a_search_without_room_for_its_rates_is_refused(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "mine.toml"
    search = "[search]\ntrials = 8\nrates = [1e-3, 1.0000000000000002e-3]\n"
    path.write_text(suite_text(learning_rates=None) + search)
    with pytest.raises(SuiteError, match=r"^mine\.toml: search\.rates: there are no 8 different learning rates"):
        suite_file.load(path)


def test_only_the_copy_in_a_results_folder_has_the_folders_name(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(suite_text())
    assert suite_file.load(path).name == "suite"
    (tmp_path / "environment.json").write_text("{}")
    assert suite_file.load(path).name == tmp_path.name


def test_options_that_all_methods_share_are_accepted(make_suite: MakeSuite) -> None:
    options = {"accumulate": 2, "update_every": 5, "alpha": 0.5}
    entry = make_suite(balancers=[{"name": "gradnorm", "options": options}]).balancers[0]
    assert entry.method("small", 0.1).options == options


THEIRS = """
from torch import Tensor

from balancers import LossBalancer, option, register


@register
class Theirs(LossBalancer):
    name = "theirs"
    summary = "A method that declares an option."
    rate: float = option(1.0, above=0)

    def weigh(self, losses: Tensor) -> Tensor:
        return self.rate / losses
"""


def test_the_options_that_a_plugin_declares_are_known(make_suite: MakeSuite, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)

    def load(**options: float) -> Suite:
        return make_suite(plugins=[SMALL, "theirs.py"], balancers=[{"name": "theirs", "options": options}])

    assert load(rate=2.0)
    with pytest.raises(SuiteError, match=r"options\.rat: unknown key; did you mean 'rate'\? Known: 'accumulate'"):
        load(rat=2.0)
    with pytest.raises(SuiteError, match=r"options\.rate: rate is -1"):
        load(rate=-1)


def test_a_grid_needs_tuning_seeds(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(line for line in suite_text().splitlines() if not line.startswith("tuning")))
    with pytest.raises(SuiteError, match=r"^mine.toml: seeds.tuning: missing"):
        suite_file.load(path)


def test_what_is_no_toml_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("device = \n")
    with pytest.raises(SuiteError, match=r"^mine.toml: .*line 1"):
        suite_file.load(path)


@pytest.mark.parametrize(
    ("source", "why"),
    [("import nothing_of_this_name", "ModuleNotFoundError"), ("raise SystemExit(0)", "SystemExit: 0")],
)
def test_a_plugin_that_raises_is_told_of(make_suite: MakeSuite, tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "broken.py").write_text(f"{source}\n")
    with pytest.raises(SuiteError, match=rf"^mine.toml: plugins\[0\]: broken.py can't be loaded: {why}"):
        make_suite(plugins=["broken.py"])


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("__init__", RuntimeError("no licence"), r"problems\[0\]\.name: RuntimeError: no licence$"),
        ("__init__", ValueError("no sizes"), r"problems\[0\]\.name: no sizes$"),
        (
            "require",
            ImportError("no nibabel"),
            r"problems\[0\]\.name: require of small raises ImportError: no nibabel \(",
        ),
        ("require", SystemExit(0), r"problems\[0\]\.name: require of small raises SystemExit: 0 \("),
        (
            "model",
            KeyError("weights"),
            r"the model of mine can't be used: KeyError: 'weights' \(test_suite_file.py, line",
        ),
        ("shared", SystemExit(0), r"the model of mine can't be used: SystemExit: 0 \(test_suite_file.py, line"),
    ],
)
@pytest.mark.parametrize("needs_fork", [True, False])
def test_what_a_problem_raises_is_told_with_its_type_and_not_blamed_on_a_balancer(
    make_suite: MakeSuite,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: BaseException,
    message: str,
    needs_fork: bool,
) -> None:
    def fail(*_: object) -> None:
        raise error

    parts = {
        "problems": [{"name": "small", "label": "mine"}],
        "balancers": [{"name": "equal", "needs_fork": needs_fork}],
    }
    make_suite(**parts)
    monkeypatch.setattr(tasks.get("small"), method, fail)
    with pytest.raises(SuiteError, match=f"^mine.toml: {message}"):
        make_suite(**parts)


def test_what_a_balancer_raises_is_told_with_its_type(make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("weights")

    monkeypatch.setattr(balancers.get("gradnorm"), "__init__", fail)
    with pytest.raises(SuiteError, match=r"^mine.toml: balancers\[1\]\.name: KeyError: 'weights' \(on small\)$"):
        make_suite()


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused without a GPU only")
def test_steps_are_timed_on_a_device_that_is_there(make_suite: MakeSuite, tmp_path: Path) -> None:
    def load(devices: list[str], rounds: int) -> Suite:
        make_suite()
        path = tmp_path / "mine.toml"
        path.write_text(path.read_text().replace("rounds = 0", f"rounds = {rounds}\ndevices = {toml(devices)}"))
        return suite_file.load(path)

    with pytest.raises(SuiteError, match=r'^mine.toml: cost.devices: "cuda", but PyTorch finds no CUDA device on this'):
        load(["cuda"], 2)
    assert load(["cuda"], 0).cost_rounds == 0
    assert load(["cpu", "cuda"], 2).cost_devices == ("cpu", "cuda")  # the one that is missing is left out


def test_a_byte_order_mark_is_no_part_of_a_suite(make_suite: MakeSuite, tmp_path: Path) -> None:
    make_suite(description="Mine")
    path = tmp_path / "mine.toml"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert suite_file.load(path).written.text == text
    assert suite_file.description(path) == "Mine"
    assert run_and_report.file_of(str(path)) == path


def test_a_problem_that_does_not_say_what_it_must_is_told_of(make_suite: MakeSuite, tmp_path: Path) -> None:
    source = (Path(__file__).parents[1] / "plugins" / "small.py").read_text()
    (tmp_path / "silent.py").write_text(source.replace('"small"', '"silent"').replace('primary = "error"', ""))
    with pytest.raises(SuiteError, match=r"^mine.toml: problems\[0\].name: Small states no 'primary'"):
        make_suite(plugins=["silent.py"], problems=[{"name": "silent"}])


def test_what_a_method_or_a_problem_declares_is_filled_in(make_suite: MakeSuite) -> None:
    balancers = [
        {"name": "gradnorm"},
        {"name": "gradnorm", "label": "said", "wrt": "layer"},
        {"name": "gradnorm", "label": "elsewhere", "wrt": "features"},
        {"name": "static", "options": {"weights": "problem:inverse"}},
    ]
    loaded = make_suite(problems=[{"name": "small", "label": "short", "steps": 7}], balancers=balancers)
    default, said, elsewhere, static = (entry.methods["short"] for entry in loaded.balancers)
    assert default == said
    assert (default.wrt, elsewhere.wrt) == ("layer", "features")
    assert static.options["weights"] == [1.8, 0.2]
    assert (loaded.problems[0].recipe.steps, loaded.problems[0].recipe.batch_size) == (7, 16)


def test_a_suite_is_found_by_name_or_by_path(tmp_path: Path) -> None:
    assert suite_file.find("smoke").name == "smoke.toml"
    path = tmp_path / "own.toml"
    path.touch()
    assert suite_file.find(str(path)) == path
    with pytest.raises(SuiteError, match="no suite is called 'smok'; did you mean 'smoke'"):
        suite_file.find("smok")
    with pytest.raises(SuiteError, match="there is no file"):
        suite_file.find(str(tmp_path / "other.toml"))


def test_a_suite_keeps_its_file_as_written(make_suite: MakeSuite, tmp_path: Path) -> None:
    loaded = make_suite(balancers=[{"name": "equal"}, {"name": "static", "options": {"weights": "problem:ones"}}])
    assert loaded.written.text == (tmp_path / "mine.toml").read_text()
    assert loaded.written.values["balancers"][1] == {"name": "static", "options": {"weights": "problem:ones"}}
    assert loaded.written.roles(loaded.name).second == "static"


def test_a_description_is_read_without_a_check_of_the_suite(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('plugins = ["nowhere.py"]\n')
    assert suite_file.description(path) == ""
    path.write_text('description = "Mine"\nplugins = ["nowhere.py"]\n')
    assert suite_file.description(path) == "Mine"
