"""Problems that are unlike the small one in what they offer; its plugin is loaded before this one."""

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
class Apart(Small):
    """Tasks share parameters, but for all that it says no features; nothing to hold a score against."""

    name = "apart"
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
