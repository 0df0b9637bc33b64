"""Make a second host of this computer: a network namespace that a cable joins to it, which can be cut."""

import contextlib
import os
import subprocess
from collections.abc import Iterator


class SeparateHost:
    """A network namespace with an address of its own, and a switch between it and this computer.

    A cut is made at the switch's far port. Like a cable that is unplugged there, it is silent: this computer's
    packets are lost, and no connection is told.

    What is made is named after this process, so that each process can have one.
    """

    def __init__(self) -> None:
        own = os.getpid()
        self._switch, self._far, self._device = f"lossbench{own}-switch", f"lossbench{own}-far", f"lb{own}"
        self.address, self.far_address = f"10.199.{own % 256}.1", f"10.199.{own % 256}.2"
        self.within = ("ip", "netns", "exec", self._far)
        """What a command line is put behind to run on the far host."""

    def make(self) -> None:
        """Make both namespaces and their links."""
        for namespace in (self._switch, self._far):
            _ip("netns", "add", namespace)
        switch, far = ("-n", self._switch), ("-n", self._far)
        _ip("link", "add", self._device, "type", "veth", "peer", "name", "near", "netns", self._switch)
        _ip(*far, "link", "add", "wire", "type", "veth", "peer", "name", "far", "netns", self._switch)
        _ip(*switch, "link", "add", "bridge", "type", "bridge")
        for name in ("near", "far"):
            _ip(*switch, "link", "set", name, "master", "bridge")
        for name in ("bridge", "near", "far"):
            _ip(*switch, "link", "set", name, "up")
        _ip("address", "add", f"{self.address}/24", "dev", self._device)
        _ip("link", "set", self._device, "up")
        _ip(*far, "address", "add", f"{self.far_address}/24", "dev", "wire")
        _ip(*far, "link", "set", "wire", "up")
        _ip(*far, "link", "set", "lo", "up")

    def cut(self) -> None:
        """Unplug the far host."""
        _ip("-n", self._switch, "link", "set", "far", "down")

    def join(self) -> None:
        """Plug the far host in again."""
        _ip("-n", self._switch, "link", "set", "far", "up")

    def remove(self) -> None:
        """Remove what `make` made, as far as it got."""
        made = ("link", self._device), ("netns", self._far), ("netns", self._switch)
        for kind, name in made:
            subprocess.run(["ip", kind, "delete", name], check=False, capture_output=True)


@contextlib.contextmanager
def separate_host() -> Iterator[SeparateHost]:
    """Make a second host for a block."""
    host = SeparateHost()
    try:
        host.make()
        yield host
    finally:
        host.remove()


def why_not() -> str:
    """Return why this computer can't make a second host; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    try:
        with separate_host():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"needs network namespaces: {error}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
