"""Generate the pages of the API from docstrings. Each public name of `balancers` and `tasks` has exactly one place.

Methods and problems have pages of their own, which `method_pages` and `problem_pages` write; here they are listed.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import command_pages
import method_pages
import problem_pages
from docutils import nodes
from page_text import escaped, heading, hidden_toctree, table, write_folder
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import balancers
import tasks
from balancers import LossBalancer
from tasks import Problem

FOLDER = "api"


class Page(NamedTuple):
    """A page with the descriptions of some names."""

    file: str
    title: str
    names: tuple[str, ...]
    """Full names, in the order of the page."""


PAGES = (
    Page(
        "loss-balancer",
        "What every method is",
        (
            *("balancers.LossBalancer", "balancers.engine.DeclaredMethod", "balancers.GradientBalancer"),
            "balancers.Losses",
        ),
    ),
    Page(
        "fork",
        "Forks and heads",
        ("balancers.Fork", "balancers.LinearHeads", "balancers.ForkError", "balancers.CapturedStep"),
    ),
    Page("registry", "Methods by name", ("balancers.create", "balancers.get", "balancers.names", "balancers.register")),
    Page(
        "method-parts",
        "Parts of a method",
        (
            *("balancers.option", "balancers.Range", "balancers.state", "balancers.State", "balancers.Read"),
            *("balancers.Result", "balancers.Draws", "balancers.engine.LearnedState"),
            *("balancers.engine.SecondBatchBalancer", "balancers.engine.ResidualBalancer"),
            "balancers.engine.PeriodMeans",
        ),
    ),
    Page(
        "integrations",
        "Integrations",
        (
            *("balancers.integrations.lightning.LogWeights", "balancers.integrations.deepxde.BalanceLosses"),
            *("balancers.integrations.pina.BalancerWeighting", "balancers.integrations.pina.ResidualLoss"),
        ),
    ),
    Page(
        "tasks",
        "Problems",
        (
            *("tasks.Problem", "tasks.Metric", "tasks.Recipe", "tasks.Shared", "tasks.Split", "tasks.Baseline"),
            *("tasks.MissingDataError", "tasks.evaluating", "tasks.create", "tasks.get", "tasks.names"),
            *("tasks.register", "tasks.dense.dense_problem.DensePrediction", "tasks.dense.network.SegNet"),
        ),
    ),
)
FUNCTIONS = {
    "balancers.option": "balancers.engine.method.declared.Option",
    "balancers.state": "balancers.engine.method.declared.Declared",
}
"""Functions that the source has as classes."""
WITHOUT_MEMBERS = {"tasks.dense.dense_problem.DensePrediction", "tasks.dense.network.SegNet"}
"""Classes whose members only implement those of `tasks.Problem` or of PyTorch."""


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: write_folder(Path(app.srcdir) / FOLDER, pages()))
    app.connect("autodoc-process-docstring", _keep_colons, priority=499)  # before napoleon, and after it
    app.connect("autodoc-process-docstring", _keep_colons, priority=501)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _keep_colons(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon, in an attribute's text, for the attribute's type."""
    if what not in ("attribute", "data", "property"):
        return
    if name in _KEPT:
        lines[:] = _KEPT.pop(name)
    else:
        _KEPT[name] = list(lines)


_KEPT: dict[str, list[str]] = {}
"""The texts of attributes that napoleon is working on."""


def _resolve(
    app: Sphinx, environment: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Find what a docstring names without its module: a member of a base class, or a name that stands for one thing.

    In the docstring of `balancers.AutoLambda`, for example, ``second_batch`` is that of `balancers.LossBalancer`.
    """
    if node.get("refdomain") != "py":
        return None
    target, known = node["reftarget"], environment.get_domain("py").objects
    candidates = [name for name in known if name.endswith(f".{target}") and not known[name].aliased]
    if len(candidates) > 1 and node.get("py:class"):
        module, _, cls = f"{node.get('py:module')}.{node['py:class']}".rpartition(".")
        bases = [base.__name__ for base in getattr(importlib.import_module(module), cls).__mro__]
        inherited = {name.split(".")[-1 - len(target.split("."))]: name for name in candidates}
        candidates = [inherited[base] for base in bases if base in inherited][:1]
    if len(candidates) != 1:
        return None
    [name] = candidates
    entry = known[name]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def places() -> dict[str, str]:
    """Return the document that describes each public name of `balancers` and of `tasks`.

    Raises:
        LookupError: a public name has no place.
    """
    found = {name: f"{FOLDER}/{page.file}" for page in PAGES for name in page.names}
    found |= {f"balancers.{cls.__name__}": method_pages.document(cls) for cls in method_pages.methods()}
    found |= {f"tasks.{cls.__name__}": problem_pages.document(cls) for cls in problem_pages.problems()}
    public = [f"{package.__name__}.{name}" for package in (balancers, tasks) for name in package.__all__]
    missing = sorted(set(public) - set(found))
    if missing:
        raise LookupError(f"no page describes {', '.join(missing)}: add it to PAGES in docs/_ext/api_pages.py")
    return found


def pages() -> dict[str, str]:
    """Return the pages of the API, by file name."""
    written = {f"{page.file}.rst": _page(page) for page in PAGES}
    return written | {f"{command_pages.PAGE}.rst": command_pages.page(), "index.rst": _index()}


def _index() -> str:
    places()
    everything = [
        heading("API"),
        "Every public name, with its description and a link to its source.\n",
        heading("The library: balancers", "-"),
        ".. automodule:: balancers\n",
        *(_names(page) for page in PAGES if page.names[0].startswith("balancers.")),
        heading("Methods", "~"),
        table(("class", "in the registry", "what it does"), map(_method_row, method_pages.methods())),
        heading("The problems: tasks", "-"),
        ".. automodule:: tasks\n",
        *(_names(page) for page in PAGES if page.names[0].startswith("tasks.")),
        heading("The problems that come with it", "~"),
        table(("class", "in the registry", "what it is"), map(_problem_row, problem_pages.problems())),
        heading("The benchmark", "-"),
        f":doc:`The command line <{command_pages.PAGE}>` has every command and its options.\n",
        hidden_toctree([*(page.file for page in PAGES), command_pages.PAGE]),
    ]
    return "\n".join(everything)


def _method_row(cls: type[LossBalancer]) -> tuple[str, str, str]:
    return f"`balancers.{cls.__name__}`", f"``{cls.name}``", escaped(cls.summary)


def _problem_row(cls: type[Problem]) -> tuple[str, str, str]:
    return f"`tasks.{cls.__name__}`", f"``{cls.name}``", escaped(cls.summary)


def _names(page: Page) -> str:
    rows = [(f"`{name}`", _first_sentence(name)) for name in page.names]
    return f"{heading(page.title, '~')}\n{table(('name', 'what it is'), rows)}"


def _first_sentence(name: str) -> str:
    """Return the first paragraph of what the source says about a name."""
    return " ".join(_text(name).split("\n\n")[0].split())


def _text(name: str) -> str:
    """Return what the source says about a name: its docstring, or the string below an assignment.

    Raises:
        LookupError: the source says nothing.
    """
    found = _found(name)
    text = inspect.getdoc(found) if inspect.isroutine(found) or inspect.isclass(found) else _string_below(name)
    if not text:
        raise LookupError(f"{name} has no docstring")
    return text


def _found(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _home(name: str) -> str:
    """Return the module that a package imports ``name`` from."""
    package, _, last = name.rpartition(".")
    for node in ast.parse(inspect.getsource(importlib.import_module(package))).body:
        if isinstance(node, ast.ImportFrom) and last in [alias.name for alias in node.names]:
            return f"{package}.{node.module}"
    raise LookupError(f"{package} does not import {last}")


def _string_below(name: str) -> str:
    documented = ModuleAnalyzer.for_module(_home(name)).find_attr_docs()
    return "\n".join(documented.get(("", name.rpartition(".")[2]), [])).strip()


def _page(page: Page) -> str:
    described = [heading(page.title)]
    module = ""
    for name in page.names:
        parent = name.rpartition(".")[0]
        if parent != module and parent.startswith("balancers.integrations"):
            described += [heading(parent.rpartition(".")[2].capitalize(), "-"), f".. automodule:: {parent}\n"]
        module = parent
        described.append(_directive(name))
    return "\n".join(described)


def _directive(name: str) -> str:
    """Return the directive that describes a name."""
    found = _found(name)
    if name in FUNCTIONS:
        return _class_as_function(name, FUNCTIONS[name])
    if inspect.isclass(found):
        kind = "exception" if issubclass(found, Exception) else "class"
        return f".. auto{kind}:: {name}\n" + "   :members:\n" * (name not in WITHOUT_MEMBERS)
    if inspect.isroutine(found):
        return f".. autofunction:: {name}\n"
    value = next(
        ast.unparse(node.value)
        for node in ast.parse(inspect.getsource(importlib.import_module(_home(name)))).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name.rpartition(".")[2]
    )
    return f".. py:data:: {name}\n   :value: {value}\n\n{_indented(_text(name))}\n\n   {_source(_home(name))}\n"


def _class_as_function(name: str, cls: str) -> str:
    """Describe a class that users know as a function, which only makes an object: its fields are the arguments."""
    module, _, last = cls.rpartition(".")
    fields = ModuleAnalyzer.for_module(module).find_attr_docs()
    signature = inspect.signature(_found(name))
    arguments = [
        f":param {field}: {' '.join(' '.join(fields[last, field]).split())}"
        for field in signature.parameters
        if (last, field) in fields
    ]
    shown = ", ".join(_arguments(signature))
    text = f"{_text(name)}\n\n" + "\n".join(arguments)
    return f".. py:function:: {name}({shown})\n\n{_indented(text)}\n\n   {_source(module)}\n"


def _arguments(signature: inspect.Signature) -> Iterator[str]:
    only_by_name = False
    for argument in signature.parameters.values():
        if argument.kind is inspect.Parameter.KEYWORD_ONLY and not only_by_name:
            only_by_name = True
            yield "*"
        yield argument.name if argument.default is inspect.Parameter.empty else f"{argument.name}={argument.default!r}"


def _source(module: str) -> str:
    return f":repository-file:`{module.replace('.', '/')}.py`"


def _indented(text: str) -> str:
    return textwrap.indent(text, "   ")
