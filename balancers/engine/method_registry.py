"""Balancers by name, open to methods from outside.

A method joins by the decorator, or by a packaging entry point in the group ``lossbench.balancers``::

    @register
    class MyMethod(LossBalancer):
        name = "my-method"
        ...

    [project.entry-points."lossbench.balancers"]
    my-method = "my_package.my_module:MyMethod"
"""

import difflib
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .base import LossBalancer

GROUP = "lossbench.balancers"

Balancer = TypeVar("Balancer", bound=type[LossBalancer])

_classes: dict[str, type[LossBalancer]] = {}


def register(cls: Balancer) -> Balancer:
    """Makes a balancer known under ``cls.name``.

    Raises:
        TypeError: ``cls`` is no `LossBalancer`, or states no ``name`` or ``summary`` of its own.
        ValueError: the name is another class's.
    """
    if not (isinstance(cls, type) and issubclass(cls, LossBalancer)):
        raise TypeError(f"register expects a subclass of LossBalancer, got {cls!r}")
    for attribute in ("name", "summary"):
        if attribute not in vars(cls):
            raise TypeError(f"{cls.__name__} must state a class attribute {attribute!r} to be registered")
    known = _classes.setdefault(cls.name, cls)
    if known is not cls and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}")
    _classes[cls.name] = cls
    return cls


def names() -> list[str]:
    """All known names, sorted."""
    return sorted({*_classes, *(entry.name for entry in entry_points(group=GROUP))})


def get(name: str) -> type[LossBalancer]:
    """The class registered under ``name``.

    Raises:
        ValueError: there is none; the message lists those that exist.
        TypeError: an entry point of that name is no balancer.
    """
    if name not in _classes:
        for entry in entry_points(group=GROUP, name=name):
            cls = entry.load()
            if not (isinstance(cls, type) and issubclass(cls, LossBalancer)):
                raise TypeError(f"the entry point {name!r} in {GROUP} is {entry.value}, which is no LossBalancer")
            _classes[name] = cls
    if name not in _classes:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"no balancer is named {name!r}{hint}; known: {', '.join(names())}")
    return _classes[name]


def create(name: str, *args: Any, **options: Any) -> LossBalancer:
    """An instance of the method called ``name``: ``create("gradnorm", net.fork, wrt=net.trunk[-1], alpha=0.12)``."""
    return get(name)(*args, **options)
