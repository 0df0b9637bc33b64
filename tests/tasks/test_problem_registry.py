"""Problems are found by name: ours, a user's by the decorator, and another distribution's by its entry point."""

import sys
from pathlib import Path

import pytest

import tasks
from tasks import Problem, Regression, problem_registry

ENTRY_POINTS = "[lossbench.problems]\nborrowed = borrowed_problem:Borrowed\nmisnamed = borrowed_problem:Misnamed\n"
MODULE = """
from tasks import Regression

class Borrowed(Regression):
    name = "borrowed"
    summary = "From another distribution."

class Misnamed(Regression):
    name = "something-else"
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Use a registry of our problems only, as other tests may have loaded plugins into this process."""
    ours = {name: cls for name, cls in problem_registry._classes.items() if cls.__module__.startswith("tasks.")}
    monkeypatch.setattr(problem_registry, "_classes", ours)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution that offers problems."""
    info = tmp_path / "borrowed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: borrowed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "borrowed_problem.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "borrowed_problem", raising=False)


def test_ours_are_known():
    assert "regression" in tasks.names()
    assert tasks.get("regression") is Regression
    assert tasks.create("regression", sigmas=[1, 2, 3]).sigmas == (1, 2, 3)


def test_a_decorated_class_is_known_by_its_name():
    @tasks.register
    class Mine(Regression):
        name = "mine"

    assert tasks.get("mine") is Mine
    assert type(tasks.create("mine")) is Mine
    assert tasks.names() == sorted(tasks.names())
    assert "mine" in tasks.names()


def test_a_taken_name_is_refused():
    class Other(Regression):
        pass

    with pytest.raises(ValueError, match=r"the name 'regression' is taken by tasks\.regression\.Regression"):
        tasks.register(Other)
    assert tasks.get("regression") is Regression


def test_registering_a_class_again_is_harmless():
    assert tasks.register(Regression) is Regression


def test_what_is_no_problem_is_refused():
    with pytest.raises(TypeError, match="expects a subclass of Problem, got <class 'dict'>"):
        tasks.register(dict)

    class Nameless(Problem[int]):
        pass

    with pytest.raises(TypeError, match="Nameless must state a class attribute 'name'"):
        tasks.register(Nameless)


def test_an_unknown_name_lists_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"no problem is named 'regresion' \(did you mean 'regression'\?\); known: .*"):
        tasks.get("regresion")
    with pytest.raises(ValueError, match=r"no problem is named 'zzz'; known: apart, burgers, .*regression, "):
        tasks.create("zzz")


def test_an_unknown_option_lists_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"no option 'sigma' \(did you mean 'sigmas'\?\); known: sigmas, inputs, "):
        tasks.create("regression", sigma=(1, 2))


def test_a_problem_without_options_says_so():
    @tasks.register
    class Optionless(Regression):
        name = "optionless"

        def __init__(self):
            super().__init__()

    with pytest.raises(ValueError, match="optionless has no option 'sigmas'; known: none"):
        tasks.create("optionless", sigmas=(1, 2))


def test_created_problems_are_checked():
    @tasks.register
    class Contradictory(Regression):
        name = "contradictory"
        primary = "a metric"

        def __init__(self):
            super().__init__()
            self.metrics = ()

    with pytest.raises(ValueError, match=r"Contradictory\.metrics is \[\]"):
        tasks.create("contradictory")


@pytest.mark.usefixtures("distribution")
def test_an_entry_point_is_named_without_being_loaded_and_loaded_when_asked_for():
    assert {"borrowed", "regression"} <= set(tasks.names())
    assert "borrowed_problem" not in sys.modules
    problem = tasks.create("borrowed", sigmas=(1, 5))
    assert type(problem) is sys.modules["borrowed_problem"].Borrowed
    assert tasks.get("borrowed") is type(problem)


@pytest.mark.usefixtures("distribution")
def test_an_entry_point_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"'misnamed' .* holds a problem named 'something-else'"):
        tasks.get("misnamed")
