"""Look balancers up by name, including those from other packages.

A method is registered by the decorator::

    @register
    class MyMethod(LossBalancer):
        name = "my-method"
        summary = "One sentence that says how it works."
        ...

or by a packaging entry point in the group ``lossbench.balancers``:

.. code-block:: toml

    [project.entry-points."lossbench.balancers"]
    my-method = "my_package.my_module:MyMethod"
"""

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .classes.base import LossBalancer
from .classes.gradients import GradientBalancer
from .forks.fork import Fork
from .forks.fork_argument import tasks_at

GROUP = "lossbench.balancers"

Balancer = TypeVar("Balancer", bound=type[LossBalancer])

_classes: dict[str, type[LossBalancer]] = {}


def register(cls: Balancer) -> Balancer:
    """Register a balancer class under ``cls.name`` and return the class.

    Raises:
        TypeError: ``cls`` is not a subclass of `LossBalancer`, or does not define its own ``name`` and ``summary``.
        ValueError: another class has this name.
    """
    if not (isinstance(cls, type) and issubclass(cls, LossBalancer)):
        raise TypeError(f"register expects a subclass of LossBalancer, got {cls!r}")
    for attribute in ("name", "summary"):
        if attribute not in vars(cls):
            raise TypeError(f"{cls.__name__} must state a class attribute {attribute!r} to be registered")
    known = _classes.setdefault(cls.name, cls)
    if known is not cls and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"the name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}; give {cls.__name__} another "
            f"name, or if both are one method, register it once: leave its file out of the suite's plugins"
        )
    _classes[cls.name] = cls
    return cls


def names() -> list[str]:
    """Return all known names, sorted."""
    return sorted({*_classes, *(entry.name for entry in entry_points(group=GROUP))})


def get(name: str) -> type[LossBalancer]:
    """Return the class registered under ``name``.

    Raises:
        ValueError: no class has this name; the message lists the known names.
        TypeError: an entry point of this name is not a balancer.
    """
    if name not in _classes:
        for entry in entry_points(group=GROUP, name=name):
            cls = entry.load()
            if not (isinstance(cls, type) and issubclass(cls, LossBalancer)):
                raise TypeError(f"the entry point {name!r} in {GROUP} is {entry.value}, which is not a LossBalancer")
            _classes[name] = cls
    if name not in _classes:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"no balancer is named {name!r}{hint}; known: {', '.join(names())}")
    return _classes[name]


def create(name: str, *arguments: Any, **options: Any) -> LossBalancer:
    """Return a new balancer by name: ``create("gradnorm", net.fork, wrt=net.trunk[-1], alpha=0.12)``.

    Everything but the name is passed to the class's constructor. A method that reads no gradients takes no fork: a
    `Fork` in first place then stands for its tasks, and ``wrt``, which says where to measure, is left out. So one line
    makes any method for a model with a fork::

        for name in ("equal", "uncertainty", "pcgrad", "gradnorm"):
            balancer = create(name, net.fork, wrt=net.trunk, tasks=["depth", "normals"])

    None in first place, for a model without a fork, does the same, with ``tasks`` to be given.

    Raises:
        ValueError, TypeError: see `get`, and the constructor; or ``tasks`` are not as many as the fork's.
    """
    cls = get(name)
    make: Callable[..., LossBalancer] = cls
    if issubclass(cls, GradientBalancer) or not (arguments and isinstance(arguments[0], Fork | None)):
        return make(*arguments, **options)
    fork, *others = arguments
    if fork is not None:
        options["tasks"] = tasks_at(fork, options.get("tasks"))
    options.pop("wrt", None)
    return make(*others[1:], **options)
