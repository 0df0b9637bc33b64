"""Problems by name, open to problems from outside.

A problem joins by the decorator, or by a packaging entry point in the group ``lossbench.problems``::

    @register
    class MyProblem(Problem[MyData]):
        name = "my-problem"
        ...

    [project.entry-points."lossbench.problems"]
    my-problem = "my_package.my_module:MyProblem"
"""

import difflib
import inspect
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .problem import Problem

GROUP = "lossbench.problems"

ProblemClass = TypeVar("ProblemClass", bound=type[Problem[Any]])

_classes: dict[str, type[Problem[Any]]] = {}


def register(cls: ProblemClass) -> ProblemClass:
    """Makes a problem known under ``cls.name``. A file that is loaded again replaces its own class.

    Raises:
        TypeError: ``cls`` is no `Problem`, or states no ``name`` or ``summary``.
        ValueError: the name is another class's.
    """
    if not (isinstance(cls, type) and issubclass(cls, Problem)):
        raise TypeError(f"register expects a subclass of Problem, got {cls!r}")
    for fact in ("name", "summary"):
        if not isinstance(getattr(cls, fact, None), str):
            raise TypeError(f"{cls.__name__} must state a class attribute {fact!r}, a text, to be registered")
    known = _classes.get(cls.name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}")
    _classes[cls.name] = cls
    return cls


def names() -> list[str]:
    """All known names, sorted. Entry points are named without being loaded."""
    return sorted({*_classes, *(entry.name for entry in entry_points(group=GROUP))})


def get(name: str) -> type[Problem[Any]]:
    """The class registered under ``name``.

    Raises:
        ValueError: there is none, with those that exist; or the entry point holds a problem of another name.
    """
    if name not in _classes:
        for entry in entry_points(group=GROUP, name=name):
            if (found := register(entry.load()).name) != name:
                raise ValueError(f"the entry point {name!r} ({entry.value}) holds a problem named {found!r}")
    if name not in _classes:
        raise ValueError(f"no problem is named {name!r}{_hint(name, names())}; known: {', '.join(names())}")
    return _classes[name]


def create(name: str, **options: Any) -> Problem[Any]:
    """The problem called ``name``, its stated facts checked: ``create("regression", sigmas="T=10")``.

    Raises:
        ValueError: no such problem or option, with those that exist; or the problem refuses an option's value.
        TypeError: the problem doesn't state what it must, see `Problem.check`.
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
    close = difflib.get_close_matches(word, known)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
