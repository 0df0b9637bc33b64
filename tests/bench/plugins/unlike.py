"""Define variants of the small problem that offer more or less than it does. Load ``small.py`` before this file."""

import tasks
from tasks import MissingDataError, Shared

Small = tasks.get("small")


@tasks.register
class Absent(Small):
    name = "absent"
    summary = "Its data aren't there."

    def require(self) -> None:
        raise MissingDataError("absent needs a file that no one has")


@tasks.register
class Unforked(Small):
    """A problem that declares shared parameters but no shared features, and no baselines."""

    name = "unforked"
    summary = "Without a fork to name."
    baselines = frozenset()
    full = None
    constant = tasks.Problem.constant

    def __init__(self) -> None:
        super().__init__()
        self.full = None

    def shared(self, model) -> Shared:
        return Shared(None, None, tuple(model.trunk.parameters()))


@tasks.register
class Looks(Small):
    name = "looks"
    summary = "To be looked at."
    illustration = True


@tasks.register
class KeptBack(Small):
    name = "kept-back"
    summary = "Kept for the evidence."
    reserved = True


@tasks.register
class Undrawable(Small):
    name = "undrawable"
    summary = "Its picture fails."

    def draw(self, figure, data, model=None) -> str:
        raise RuntimeError("no ink")


@tasks.register
class Versioned(Small):
    name = "versioned"
    summary = "Its data have a version."

    def __init__(self, version: str = "1") -> None:
        super().__init__()
        self.version = version

    def fingerprint(self) -> str:
        return f"version {self.version}"
