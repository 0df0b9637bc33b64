"""Generate a page for each registered problem from its facts, with a picture that the problem draws of its data.

Pictures are kept beside the built pages, under a hash of the code that they come from: only a change draws them anew.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from page_text import escaped, facts, heading, table, write_folder
from sphinx.application import Sphinx
from sphinx.util import logging

import tasks
from bench.run import result_picture
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from bench.style.numbers import number, rate
from tasks import Metric, MissingDataError, Problem, Recipe

FOLDER = "problems"
OVERVIEW = "problems"
ROOT = Path(__file__).resolve().parents[2]
DRAWN_BY = ("tasks", "bench/style", "bench/run")
"""Folders of the code that pictures come from."""
BASELINES = {"constant": "the best constant predictor", "single-task": "each task trained alone"}
KINDS = {
    "illustration": "Only there to be looked at: its scores say nothing about methods.",
    "control": "A control: its result is known in advance, so it tests the benchmark and not the methods.",
    "reserved": "Reserved for the evidence: only suites with reserved = true compare methods that learn weights on it.",
}
SEED = 1


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _write_pages)
    app.connect("env-get-outdated", lambda *_: [OVERVIEW])  # it changes with the problems, not only with its file
    app.connect("source-read", _add_pages_to_overview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


@cache
def problems() -> list[type[Problem[Any]]]:
    """Return the registered problems of this project, sorted by name."""
    known = [tasks.get(name) for name in tasks.names()]
    return [cls for cls in known if cls.__module__.partition(".")[0] == "tasks"]


def document(cls: type[Problem[Any]]) -> str:
    """Return the name of a problem's page."""
    return f"{FOLDER}/{cls.name}"


def _write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / FOLDER
    about = {cls.name: _drawn(Path(app.outdir).parent / "pictures", cls.name) for cls in problems()}
    write_folder(folder, {f"{cls.name}.rst": _page(cls, about[cls.name]) for cls in problems()})
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, (png, _, _) in about.items():
        path = pictures / f"{name}.png"
        if png and not (path.is_file() and path.read_bytes() == png):
            path.write_bytes(png)


def _add_pages_to_overview(app: Sphinx, document: str, content: list[str]) -> None:
    if document == OVERVIEW:
        names = "\n".join(f"/{FOLDER}/{cls.name}" for cls in problems())
        links = "\n".join(f"- [`{cls.name}`](/{FOLDER}/{cls.name}.rst): {cls.summary}" for cls in problems())
        content[0] += f"\n## Each problem\n\n{links}\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


# The picture, and the numbers of samples.


def _drawn(folder: Path, name: str) -> tuple[bytes, str, dict[str, int]]:
    """Return the picture of a problem's data, its caption, and the samples in each split.

    All are empty for a problem whose data are not here.
    """
    about, png = folder / f"{name}-{_code()}.json", folder / f"{name}-{_code()}.png"
    if about.is_file():
        caption, sizes = json.loads(about.read_text(encoding="utf-8"))
        return png.read_bytes(), caption, sizes
    logging.getLogger(__name__).info("drawing the problem %s", name)
    picture, caption, sizes = _draw(name)
    if picture:  # without one, the data may be here at the next build
        folder.mkdir(parents=True, exist_ok=True)
        png.write_bytes(picture)
        about.write_text(json.dumps([caption, sizes]), encoding="utf-8")
    return picture, caption, sizes


def _draw(name: str) -> tuple[bytes, str, dict[str, int]]:
    problem = tasks.create(name)
    try:
        problem.require()
    except MissingDataError:
        return b"", "", {}
    method = Method("equal", None, {})
    training = Training(RunSpec(name, {}, problem.recipe, method, SEED, "tuning", "cpu", 1))
    training.prepare()
    picture = result_picture.draw(training.problem, training.data, None)
    return picture.png, picture.caption, dict(training.problem.sizes(training.data))


@cache
def _code() -> str:
    """Return a hash of everything that pictures come from."""
    found = hashlib.sha256(version("matplotlib").encode())
    for folder in DRAWN_BY:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


# The page.


def _page(cls: type[Problem[Any]], drawn: tuple[bytes, str, dict[str, int]]) -> str:
    problem = tasks.create(cls.name)
    png, caption, sizes = drawn
    parts = [heading(cls.name), f"{escaped(cls.summary)}\n"]
    if png:
        alt = f"The data of {cls.name}: {' '.join(caption.split())}"
        parts.append(f".. figure:: /{FOLDER}/pictures/{cls.name}.png\n   :alt: {alt}\n\n   {escaped(caption)}\n")
    parts += [
        facts(_facts(problem, sizes)),
        heading("Metrics", "-"),
        "Methods are compared by the first one.\n",
        table(("metric", "unit", "better", "of", "what it is"), _metrics(problem)),
        heading("Recipe", "-"),
        _recipes(problem),
        *_static_weights(problem),
        heading("Look at it", "-"),
        _commands(problem),
        heading("The class", "-"),
        f".. autoclass:: tasks.{cls.__name__}\n",
    ]
    return "\n".join(parts)


def _facts(problem: Problem[Any], sizes: dict[str, int]) -> Iterator[tuple[str, str]]:
    kinds = [text for kind, text in KINDS.items() if getattr(problem, kind)]
    yield "Kind", " ".join(kinds)
    yield "Tasks", ", ".join(f"``{task}``" for task in problem.tasks)
    yield "Samples", ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    yield "Compared with", ", ".join(text for key, text in BASELINES.items() if key in problem.baselines)
    try:
        problem.require()
    except MissingDataError as error:
        yield "Data", escaped(str(error))


def _metrics(problem: Problem[Any]) -> Iterator[tuple[str, ...]]:
    first = [metric for metric in problem.metrics if metric.name == problem.primary]
    for metric in (*first, *(metric for metric in problem.metrics if metric not in first)):
        yield _metric(metric)


def _metric(metric: Metric) -> tuple[str, ...]:
    better = "higher" if metric.higher_is_better else "lower"
    task = f"``{metric.task}``" if metric.task else "all"
    return escaped(metric.name), escaped(metric.unit or "–"), better, task, escaped(metric.description)


def _recipes(problem: Problem[Any]) -> str:
    recipes = {"default": problem.recipe} | ({"full": problem.full} if problem.full else {})
    header = ("recipe", "optimiser", "learning rate", "schedule", "batch", "steps")
    return table(header, [(name, *_recipe(recipe)) for name, recipe in recipes.items()])


def _recipe(recipe: Recipe) -> tuple[str, ...]:
    optimizer = {"adam": "Adam", "sgd": "SGD"}[recipe.optimizer]
    if recipe.optimizer == "adam" and recipe.betas != Recipe.betas:
        optimizer += f", betas {recipe.betas[0]:g} and {recipe.betas[1]:g}"
    if recipe.weight_decay:
        optimizer += f", weight decay {rate(recipe.weight_decay)}"
    return optimizer, rate(recipe.lr), recipe.schedule, f"{recipe.batch_size:,}", f"{recipe.steps:,}"


def _static_weights(problem: Problem[Any]) -> list[str]:
    if not problem.static_weights:
        return []
    text = "Fixed weights that are known before any training; the first are the ones to try first.\n"
    rows = [
        (f"``{name}``", ", ".join(map(_weight, weights, problem.tasks)))
        for name, weights in problem.static_weights.items()
    ]
    return [heading("Static weights", "-"), text, table(("name", "weights"), rows)]


def _weight(weight: float, task: str) -> str:
    return f"{number(weight)} for {task}"


def _commands(problem: Problem[Any]) -> str:
    lines = [f"lossbench show {problem.name} --train"]
    if not problem.illustration:
        lines.insert(0, f"lossbench list {problem.name}")
    return ".. code-block:: shell\n\n" + "\n".join(f"   {line}" for line in lines) + "\n"
