"""The registry of problems: finds a problem by its name. Other packages can add problems of their own.

To add a problem, use the decorator::

    @register
    class MyProblem(Problem[MyData]):
        name = "my-problem"
        summary = "One sentence about it."
        ...

or declare a packaging entry point in the group ``lossbench.problems``:

.. code-block:: toml

    [project.entry-points."lossbench.problems"]
    my-problem = "my_package.my_module:MyProblem"
"""

import difflib
import inspect
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .problem import Problem

GROUP = "lossbench.problems"
"""Name of the entry-point group."""

ProblemClass = TypeVar("ProblemClass", bound=type[Problem[Any]])

_classes: dict[str, type[Problem[Any]]] = {}


def register(cls: ProblemClass) -> ProblemClass:
    """Register the problem ``cls`` under ``cls.name``, and return it.

    A class that is registered a second time, as when its file is loaded again, replaces its earlier version.

    Raises:
        TypeError: If ``cls`` is not a subclass of `Problem`, or has no ``name`` or ``summary``.
        ValueError: If another class has that name.
    """
    if not (isinstance(cls, type) and issubclass(cls, Problem)):
        raise TypeError(f"register expects a subclass of Problem, got {cls!r}")
    for fact in ("name", "summary"):
        if not isinstance(getattr(cls, fact, None), str):
            raise TypeError(f"{cls.__name__} must state a class attribute {fact!r}, a string, to be registered")
    known = _classes.get(cls.name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}")
    _classes[cls.name] = cls
    return cls


def names() -> list[str]:
    """Return the names of all known problems, sorted. Entry points are listed without loading them."""
    return sorted({*_classes, *(entry.name for entry in entry_points(group=GROUP))})


def get(name: str) -> type[Problem[Any]]:
    """Return the class that is registered under ``name``, loading its entry point if necessary.

    Raises:
        ValueError: If there is no such problem (the message lists all names), or the entry point called ``name`` holds
            a problem of another name.
    """
    if name not in _classes:
        for entry in entry_points(group=GROUP, name=name):
            if (found := register(entry.load()).name) != name:
                raise ValueError(f"the entry point {name!r} ({entry.value}) holds a problem named {found!r}")
    if name not in _classes:
        raise ValueError(f"no problem is named {name!r}{_hint(name, names())}; known: {', '.join(names())}")
    return _classes[name]


def create(name: str, **options: Any) -> Problem[Any]:
    """Create the problem called ``name`` and check its facts: ``create("regression", sigmas="T=10")``.

    Raises:
        ValueError: If there is no such problem or option (the message lists those that exist), or the problem refuses
            an option's value.
        TypeError: If the problem lacks a fact, see `Problem.check`.
    """
    cls = get(name)
    parameters = inspect.signature(cls).parameters.values()
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters]
        for option in options:
            if option not in known:
                raise ValueError(
                    f"{name} has no option {option!r}{_hint(option, known)}; known: {', '.join(known) or 'none'}"
                )
    problem = cls(**options)
    problem.check()
    return problem


def _hint(word: str, known: list[str]) -> str:
    """Return " (did you mean …?)" with the names that are close to ``word``; empty if there are none."""
    close = difflib.get_close_matches(word, known)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
