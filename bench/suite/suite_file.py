"""Reads a suite's TOML file and checks all of it before anything runs.

Whatever is wrong is a `SuiteError` that names the file and the key: ``mine.toml: balancers[2].options.alpah: ...``.
Each problem is made, and each balancer on each problem's model, so that an option that one of them refuses is found.
"""

import inspect
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch

import balancers
import tasks
from balancers import GradientBalancer, StaticWeighting
from balancers.engine.gradients import Wrt
from bench.run import build, plugins
from bench.run.spec import Device, Method, Options
from tasks import MissingDataError, Problem, Recipe

from . import search
from .toml_table import SuiteError, TomlTable, ValueKind, closest

SUITES = Path(__file__).parents[1] / "suites"
KEPT = "suite.toml"
"""What a suite's file is called in its results folder, which has the suite's name."""
FROM_PROBLEM = "problem:"
"""An option ``"problem:KEY"`` stands for the problem's fixed weights called KEY, ``"problem:first"`` for its first and
``"problem:ones"`` for a weight of one for each of its tasks."""
SEARCH = "search"
"""The weights of static weighting in a suite that searches for them."""


TOP = (
    *("description", "device", "evaluations", "baselines", "plugins"),
    *("seeds", "learning_rates", "search", "cost", "problems", "balancers"),
)
PROBLEM = ("name", "label", "recipe", "steps", "batch_size", "options")
BALANCER = ("name", "label", "wrt", "options")


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least  # isinstance would let true and false pass


def _distinct(value: object, least: int) -> bool:
    return isinstance(value, list) and len(value) >= least and len({*map(repr, value)}) == len(value)


TEXT = ValueKind("a text", lambda value: isinstance(value, str))
TEXTS = ValueKind(
    "a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)
)
YES_OR_NO = ValueKind("true or false", lambda value: isinstance(value, bool))
RECIPE = ValueKind('"default" or "full"', lambda value: value in ("default", "full"))
TRIALS = ValueKind("a whole number, 4 or more", lambda value: _whole(value, 4))
COUNT = ValueKind("a whole number, 1 or more", lambda value: _whole(value, 1))
ROUNDS = ValueKind("a whole number, 0 or more", lambda value: _whole(value, 0))
DEVICE = ValueKind('"cpu", "cuda" or "auto"', lambda value: value in ("cpu", "cuda", "auto"))
DEVICES = ValueKind(
    'a list of "cpu", "cuda" or both',
    lambda value: _distinct(value, 1) and all(one in get_args(Device) for one in value),
)
WRT = ValueKind('"features", "layer" or "parameters"', lambda value: value in get_args(Wrt))
SEEDS = ValueKind(
    "a list of different whole numbers, 0 or more",
    lambda value: _distinct(value, 1) and all(_whole(one, 0) for one in value),
)
RATES = ValueKind(
    "a list of different positive numbers, two or more",
    lambda value: _distinct(value, 2) and all(type(one) in (int, float) and 0 < one < float("inf") for one in value),
)
LIMITS = ValueKind(
    "two positive numbers, the smaller first", lambda value: RATES.accepts(value) and [*value] == sorted(value)[:2]
)


@dataclass(frozen=True)
class ProblemEntry:
    """A problem of a suite; ``recipe`` is its own with what the suite changes."""

    label: str
    name: str
    options: Options
    recipe: Recipe
    problem: Problem[Any]


@dataclass(frozen=True)
class BalancerEntry:
    """A balancer of a suite; ``methods`` says how it is made, by the problem's label.

    In a suite that searches, ``trials`` says how it is made in each trial, by the problem's label and the trial's
    learning rate; ``searches_weights`` is true of static weighting whose weights are searched for.
    """

    label: str
    name: str
    methods: Mapping[str, Method]
    trials: Mapping[str, Mapping[float, Method]] = field(default_factory=dict)
    searches_weights: bool = False

    def method(self, problem: str, lr: float) -> Method:
        """How it is made on ``problem`` at the learning rate ``lr``, which matters where that is a trial's."""
        return self.trials.get(problem, {}).get(lr, self.methods[problem])


@dataclass(frozen=True)
class Suite:
    """What is to be run.

    Without a grid, ``learning_rates`` is empty: each problem's own is used, untuned. Where the suite ``searches``, they
    are the trials' learning rates, all different, in the order of trials. On ``repeated_seeds`` the reported
    runs are made once more, to see which verdicts that changes. ``baselines`` says whether models
    are trained on each task alone too. ``left_out`` names the problems whose data aren't there, and what is missing.
    """

    name: str
    description: str
    text: str
    device: Device
    evaluations: int
    baselines: bool
    plugins: tuple[Path, ...]
    tuning_seeds: tuple[int, ...]
    reported_seeds: tuple[int, ...]
    repeated_seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    searches: bool
    cost_rounds: int
    cost_devices: tuple[Device, ...]
    problems: tuple[ProblemEntry, ...]
    balancers: tuple[BalancerEntry, ...]
    left_out: Mapping[str, str]


def names() -> list[str]:
    """The suites that come with the benchmark."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def find(suite: str, results: Path | None = None) -> Path:
    """The file of a suite: ``suite`` is its path, or its name where it comes with the benchmark.

    The name of a folder in ``results`` finds the suite that is kept there.

    Raises:
        SuiteError: there is none.
    """
    path = Path(suite)
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not path.is_file():
            raise SuiteError(f"there is no file {suite}")
        return path
    if suite not in names():
        if results is not None and (results / suite / KEPT).is_file():
            return results / suite / KEPT
        raise SuiteError(f"no suite is called {suite!r}{closest(suite, names())}; or give the path of a .toml file")
    return SUITES / f"{suite}.toml"


def load(path: Path) -> Suite:
    """Reads and checks a suite; its plugins are loaded on the way.

    Raises:
        SuiteError: the first thing found to be wrong with it.
    """
    text = path.read_text(encoding="utf-8")
    try:
        top = TomlTable(path.name, "", tomllib.loads(text), TOP)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{path.name}: {error}") from error
    files = _load_plugins(top, path.parent)
    device = _device(top)
    seeds = top.table("seeds", ("tuning", "reported", "repeated"))
    tuning, reported = seeds.take("tuning", SEEDS, ()), seeds.take("reported", SEEDS)
    repeated = seeds.take("repeated", SEEDS, ())
    if both := sorted(set(tuning) & {*reported, *repeated}):
        seeds.fail("tuning", f"{both} are reported seeds too, but a seed is for tuning or for reporting")
    if both := sorted(set(repeated) & set(reported)):
        seeds.fail("repeated", f"{both} are reported seeds too, but what is repeated is to have seeds of its own")
    rates = _learning_rates(top)
    if rates and not tuning:
        seeds.fail("tuning", "missing; a learning rate is chosen on seeds of its own")
    searches = "search" in top.values
    cost = top.table("cost", ("rounds", "devices"))
    problem_tables, balancer_tables = top.tables("problems", PROBLEM), top.tables("balancers", BALANCER)
    for tables in (problem_tables, balancer_tables):
        _require_unique_labels(tables)
    problems = [_problem(table) for table in problem_tables]
    left_out = {entry.label: missing for entry in problems if (missing := _missing(entry.problem))}
    problems = [entry for entry in problems if entry.label not in left_out]
    if not problems:
        raise SuiteError(f"{path.name}: no problem can be run: {'; '.join(left_out.values())}")
    methods = [_balancer(table, problems, rates if searches else ()) for table in balancer_tables]
    searching = [i for i, entry in enumerate(methods) if entry.searches_weights]
    if len(searching) > 1:
        balancer_tables[searching[1]].fail("options.weights", f"balancers[{searching[0]}] searches for weights already")
    return Suite(
        name=path.resolve().parent.name if path.name == KEPT else path.stem,
        description=top.take("description", TEXT, ""),
        text=text,
        device=device,
        evaluations=top.take("evaluations", COUNT, 20),
        baselines=top.take("baselines", YES_OR_NO, False),
        plugins=files,
        tuning_seeds=tuple(tuning),
        reported_seeds=tuple(reported),
        repeated_seeds=tuple(repeated),
        learning_rates=rates,
        searches=searches,
        cost_rounds=cost.take("rounds", ROUNDS, 0),
        cost_devices=tuple(cost.take("devices", DEVICES, (device,))),
        problems=tuple(problems),
        balancers=tuple(methods),
        left_out=left_out,
    )


def _missing(problem: Problem[Any]) -> str | None:
    try:
        problem.require()
    except MissingDataError as error:
        return str(error)
    return None


def _require_unique_labels(tables: list[TomlTable]) -> None:
    labels = [_label(table) for table in tables]
    for table, label in zip(tables, labels, strict=True):
        first = tables[labels.index(label)]
        if first is not table:
            table.fail("label", f"{label!r} is the label of {first.path} too; give another")


def _label(table: TomlTable) -> str:
    label: str = table.take("label", TEXT, table.take("name", TEXT))
    return label


def _load_plugins(top: TomlTable, folder: Path) -> tuple[Path, ...]:
    names = top.take("plugins", TEXTS, ())
    files = tuple((folder / name).resolve() for name in names)
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        if not file.is_file():
            top.fail(f"plugins[{i}]", f"there is no file {name}, as seen from the suite's folder")
        try:
            plugins.load([file])
        except Exception as error:
            top.fail(f"plugins[{i}]", f"{name} can't be loaded: {type(error).__name__}: {error}")
    return files


def _learning_rates(top: TomlTable) -> tuple[float, ...]:
    """The grid, or the learning rates of the search's trials; empty where there is neither."""
    if "search" not in top.values:
        if "learning_rates" not in top.values:
            return ()
        return tuple(sorted(map(float, top.table("learning_rates", ("grid",)).take("grid", RATES))))
    if "learning_rates" in top.values:
        top.fail("search", "learning_rates is there too, but they are tuned on a grid or by a search")
    table = top.table("search", ("trials", "rates"))
    low, high = map(float, table.take("rates", LIMITS))
    return search.learning_rates(table.take("trials", TRIALS), low, high)


def _device(top: TomlTable) -> Device:
    device = top.take("device", DEVICE, "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        top.fail("device", '"cuda", but PyTorch finds no CUDA device on this machine')
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _problem(table: TomlTable) -> ProblemEntry:
    name = table.take("name", TEXT)
    if name not in tasks.names():
        table.fail("name", f"no problem is called {name!r}{closest(name, tasks.names())}")
    options = _options(table, tasks.get(name))
    try:
        problem = tasks.create(name, **options)
    except Exception as error:
        table.fail(_culprit(options, error), str(error))
    if problem.illustration:
        table.fail("name", f"{name} is an illustration, nothing to rank methods by; `lossbench show {name}` draws it")
    recipe = problem.full if table.take("recipe", RECIPE, "default") == "full" else problem.recipe
    if recipe is None:
        table.fail("recipe", f"{name} has no full recipe")
    changes = {key: table.take(key, COUNT) for key in ("steps", "batch_size") if key in table.values}
    return ProblemEntry(_label(table), name, options, replace(recipe, **changes), problem)


def _balancer(table: TomlTable, problems: list[ProblemEntry], rates: tuple[float, ...]) -> BalancerEntry:
    """``rates`` are those of the trials of a search; empty where there is none."""
    name = table.take("name", TEXT)
    if name not in balancers.names():
        table.fail("name", f"no balancer is called {name!r}{closest(name, balancers.names())}")
    cls = balancers.get(name)
    wrt: Wrt | None = table.take("wrt", WRT) if "wrt" in table.values else None
    if wrt is not None and not issubclass(cls, GradientBalancer):
        table.fail("wrt", f"{name} doesn't read gradients, so there is nothing to take them with respect to")
    options = _options(table, cls)
    searches_weights = issubclass(cls, StaticWeighting) and options.get("weights") == SEARCH
    if searches_weights and not rates:
        table.fail("options.weights", f'"{SEARCH}" is for a suite that has a table [search]')
    methods, trials = {}, {}
    for entry in problems:
        try:
            with torch.random.fork_rng(devices=[]):
                model = entry.problem.model()
                where = wrt or build.default_wrt(cls, entry.problem.shared(model))
                fixed = {key: _resolve(table, key, value, entry) for key, value in options.items()}
                if searches_weights:
                    own = next(iter(entry.problem.static_weights.values()), None)
                    drawn = search.weights(own, len(entry.problem.tasks), len(rates))
                    tried: list[Options] = [{**fixed, "weights": weights} for weights in drawn]
                    fixed = dict(tried[0])
                else:
                    tried = search.options(cls.tunable, fixed, len(rates)) if rates else []
                made = [Method(name, where, options) for options in (fixed, *tried)]
                for method in made:
                    build.balancer(method, entry.problem, model)
        except SuiteError:
            raise
        except Exception as error:
            key = "wrt" if "wrt" in str(error) else _culprit(options, error)
            table.fail(key, f"{error} (on {entry.label})")
        methods[entry.label], trials[entry.label] = made[0], dict(zip(rates, made[1:], strict=True))
    return BalancerEntry(_label(table), name, methods, trials if rates else {}, searches_weights)


def _options(table: TomlTable, cls: type) -> dict[str, Any]:
    """The entry's options, each of which ``cls`` takes, and all that it needs."""
    parameters = inspect.signature(cls).parameters.values()
    takes = {p.name: p for p in parameters if p.name not in ("fork", "wrt", "tasks") and p.kind is not p.VAR_POSITIONAL}
    others = [name for name, p in takes.items() if p.kind is p.VAR_KEYWORD]
    options = table.table("options", table.values.get("options", ()) if others else takes).values
    for name, p in takes.items():
        if name not in options and name not in others and p.default is p.empty:
            table.fail("options", f"{table.values['name']} needs the option {name!r}")
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            table.fail(f"options.{name}", f"expected texts, finite numbers, true or false, got {value!r}")
    return dict(options)


def _resolve(table: TomlTable, key: str, value: object, entry: ProblemEntry) -> object:
    if not isinstance(value, str) or not value.startswith(FROM_PROBLEM):
        return value
    weightings, name = entry.problem.static_weights, value.removeprefix(FROM_PROBLEM)
    if name == "ones":
        return [1.0] * len(entry.problem.tasks)
    if name == "first" and weightings:
        return list(next(iter(weightings.values())))
    if name not in weightings:
        table.fail(f"options.{key}", f"{entry.label} has no fixed weights called {name!r}{closest(name, weightings)}")
    return list(weightings[name])


def _culprit(options: Options, error: Exception) -> str:
    """The key that an error is about: the one option that its message speaks of, else all of them, if there are any."""
    named = [name for name in options if re.search(rf"\b{re.escape(name)}\b", str(error))]
    return f"options.{named[0]}" if len(named) == 1 else "options" if options else "name"
