"""Keys survive wording: a comment, a docstring or a moved module changes no hash; a changed constant or call does."""

import hashlib
import importlib
import os
import textwrap
import time
from pathlib import Path

import pytest

from bench.cost import measure_step
from bench.run import code_hash, plugins
from bench.run.spec import PROTOCOL, Method, RunSpec, protocol_version, run_code
from tasks import Recipe

PROTOCOL_TEXT = {"2": "bdba0312af3ba87d5773c937b9faa0f8afb07bd0169ae4fb8803597bf065a07f"}
"""The SHA-256 of the protocol's text, by its version. Rewording changes the hash alone; a changed rule, both."""

SOURCE = '''
"""A module."""

import math
from collections.abc import Sequence

import numpy as np
from numpy import sqrt
from .engine.base import Range, LossBalancer as Base

LIMIT = 3
"""How far it goes."""


@register(name="a")
class Method(Base):
    """A method."""

    summary = "A method."
    use_when: str = "Always."
    reads = "losses"
    rate: float = 1e-3

    def weigh(self, losses: Sequence[float], *rest: int, key: str = "k", **options: object) -> object:
        """Weigh."""
        # why
        with open(f"{losses!r:>{LIMIT}} and {key}{{}}", 'r') as file:
            lines = [line.strip() for line in file if line and not line.startswith(("#", ";"))]
        match lines:
            case [first, *_] if first is not None:
                return {**options, first: lambda x, /, y=2: x ** y @ -x}
            case {"a": 1} | None:
                pass
        try:
            total = sum(x for x in losses) * 2 + LIMIT // 1_000
        except* ValueError as error:
            raise TypeError(f"{error=}" " of" f" {total:.3f}") from error
        async def later():
            async for x in y:
                yield (await x) if x > 1 else None
        return math.exp(total) if sqrt(total) <= np.float64(1.5e300) else b"\\0" + 2j
'''
HASH = "eb23a83967ca433f0b0a46458cbe9bc2"
"""The hash of `SOURCE`, which every Python has to compute."""


def hashed(source: str) -> str:
    return code_hash.source_hash(textwrap.dedent(source), code_hash.OURS)


def test_every_python_computes_the_same_hash() -> None:
    assert hashed(SOURCE) == HASH


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why", "# because"),
        ('"""A module."""', '"""Another description."""'),
        ('"""A module."""\n', ""),
        ('"""How far it goes."""', ""),
        ('"""Weigh."""', '"""Return the weights."""\n        # of all tasks'),
        ('summary = "A method."', 'summary = "The best method."'),
        ('use_when: str = "Always."', 'use_when = "Never."'),
        ('summary = "A method."', "reserved = True"),
        ("from .engine.base import", "from .base import"),
        ("from .engine.base import", "from balancers.engine.classes.base import"),
        (
            "from .engine.base import Range, LossBalancer as Base",
            "from .limits import Range\nfrom .engine.base import LossBalancer as Base",
        ),
        ("import math\n", ""),  # put back below, as isort might
        ("sum(x for x in losses) * 2", "(\n    sum(x for x in losses)\n    * 2)"),
        ("1_000", "1000"),
        ('"k"', "'k'"),
    ],
)
def test_wording_and_place_change_nothing(old: str, new: str) -> None:
    assert old in SOURCE
    changed = SOURCE.replace(old, new)
    if "import math" not in changed:
        changed = changed.replace("import numpy as np\n", "import numpy as np\nimport math\n")
    assert changed != SOURCE
    assert hashed(changed) == hashed(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("1e-3", "1e-4"),
        ("<=", "<"),
        ("x ** y", "y ** x"),
        (" * 2 +", " * 2 -"),
        ("math.exp(total)", "math.expm1(total)"),
        ("math.exp(total)", "math.exp(lines)"),
        ("import Range,", "import Spread,"),
        ("LossBalancer as Base", "GradientBalancer as Base"),
        ("from numpy import sqrt", "from torch import sqrt"),
        ("import numpy as np", "import torch as np"),
        ('key: str = "k"', 'key: str = "l"'),
        ('reads = "losses"', 'reads = "norms"'),
        ("not line.", "line."),
        ("/, y=2", "y=2"),
        ('@register(name="a")', '@register(name="b")'),
        (":.3f", ":.4f"),
        (" of", " for"),
        ('summary = "A method."', "summary: int = 1"),
        ('summary = "A method."', 'reserved = "A method."'),
        ('summary = "A method."', "summary = True"),
        ('summary = "A method."', 'limit = summary = "A method."'),
        ("LIMIT = 3\n", "from .limits import LIMIT\n\nLIMIT = 3\n"),
    ],
)
def test_what_the_code_does_changes_the_hash(old: str, new: str) -> None:
    assert old in SOURCE
    assert hashed(SOURCE.replace(old, new)) != hashed(SOURCE)


@pytest.mark.parametrize("decorator", ["register", "tasks.register", 'register(name="a")'])
@pytest.mark.parametrize("attribute", ['summary = "{}"', 'use_when: str = "{}"', "reserved = {}"])
def test_only_registered_classes_have_wording(decorator: str, attribute: str) -> None:
    """Elsewhere, such as in a plugin's class of options, an attribute of this name may change what the code does."""
    values = ("False", "True") if attribute.startswith("reserved") else ("mean", "sum")
    one, other = (f"class A:\n    {attribute.format(value)}\n" for value in values)
    assert hashed(one) != hashed(other)
    assert hashed(f"@dataclass\n{one}") != hashed(f"@dataclass\n{other}")
    assert hashed(f"@{decorator}\n{one}") == hashed(f"@{decorator}\n{other}")


def test_an_import_and_an_assignment_do_not_change_places() -> None:
    assert hashed("X = 5\nfrom .c import X\n") != hashed("from .c import X\nX = 5\n")


PACKAGE = {
    "__init__.py": 'from .method import Method\nfrom .unused import NOTHING\n__all__ = ["Method", "NOTHING"]\n',
    "method.py": "from typing import TYPE_CHECKING\n\nfrom . import helpers\nfrom .limits import LIMIT\n\n"
    "if TYPE_CHECKING:\n    from .types import Kind\n"
    "else:\n    from .real import Kind\n\n\nclass Method:\n    limit = LIMIT\n    add = helpers.add\n",
    "limits.py": "LIMIT = 3\n",
    "helpers.py": "import {name}\n\n\ndef add(x):\n    from .late import ONE\n\n    return x + ONE + {name}.NOTHING\n",
    "late.py": "ONE = 1\n",
    "types.py": "Kind = int\n",
    "real.py": "from . import layers\n\nKind = layers\n",
    "layers/__init__.py": "FACTOR = 2\n",
    "unused.py": "NOTHING = 0\n",
    "apart.py": "APART = 1\n",
}


def write_package(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a package of a new name and make it importable; return its name."""
    name = f"package_{folder.name}"
    (folder / name).mkdir(parents=True)
    for file, source in files.items():
        path = folder / name / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(source.replace("{name}", name))
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return name


def write_before_the_start(path: Path, text: str) -> None:
    """Write a file as one that is older than this process."""
    path.write_text(text)
    os.utime(path, (0, code_hash.STARTED - 60))


def hashes(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[str]]:
    """Return the names of the files that ``method.py`` depends on, and their hashes."""
    name = write_package(folder, files, monkeypatch)
    found = code_hash.files_of([f"{name}.method"], {name})
    normal = [path.read_text().replace(name, "package") for path in found]
    return {path.name for path in found}, sorted(code_hash.source_hash(text, {"package"}) for text in normal)


def test_imports_are_followed_also_of_constants_and_inside_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, _ = hashes(tmp_path / "whole", PACKAGE, monkeypatch)
    assert names == {"method.py", "limits.py", "helpers.py", "late.py", "unused.py", "real.py", "__init__.py"}
    assert "types.py" not in names  # for type checkers alone
    assert "apart.py" not in names  # nothing imports it


@pytest.mark.parametrize("init", [{}, {"__init__.py": ""}], ids=["without", "with"])
@pytest.mark.parametrize(
    "source",
    ["import {name}.late\n", "import {name}.late as late\n", "from {name} import late\n", "from .inner import late\n"],
)
def test_imports_are_followed_in_packages_without_an_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, init: dict[str, str]
) -> None:
    files = {"method.py": source, "late.py": "ONE = 1\n", "inner/late.py": "ONE = 1\n", **init}
    names, _ = hashes(tmp_path / f"package{len(init)}", files, monkeypatch)
    assert names == {"method.py", "late.py"}


def test_a_moved_module_changes_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {name: source for name, source in PACKAGE.items() if name not in ("limits.py", "late.py")}
    moved |= {"engine/__init__.py": "", "engine/bounds.py": PACKAGE["limits.py"], "engine/soon.py": PACKAGE["late.py"]}
    moved["method.py"] = moved["method.py"].replace("from .limits import", "from .engine.bounds import")
    moved["helpers.py"] = moved["helpers.py"].replace("from .late import", "from .engine.soon import")
    assert hashes(tmp_path / "moved", moved, monkeypatch)[1] == hashes(tmp_path / "whole", PACKAGE, monkeypatch)[1]


@pytest.mark.parametrize(
    ("begins", "encoding"), [("", "utf-8-sig"), ("# -*- coding: latin-1 -*-\n", "latin-1")], ids=["mark", "cookie"]
)
def test_a_file_is_read_in_the_encoding_that_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str, encoding: str
) -> None:
    files = {"__init__.py": "", "method.py": "from .names import NAME\n", "names.py": "NAME = 'café'\n"}
    name = write_package(tmp_path / encoding, files, monkeypatch)
    for file, source in files.items():
        (tmp_path / encoding / name / file).write_bytes((begins + source).encode(encoding))
        os.utime(tmp_path / encoding / name / file, (0, 0))
    found = code_hash.files_of([f"{name}.method"], {name})
    assert {path.name for path in found} == {"method.py", "names.py"}
    plain = [code_hash.source_hash(files[file], {name}) for file in ("method.py", "names.py")]
    assert code_hash.file_hashes(found, {name}) == sorted(plain)


def test_a_file_that_changed_since_the_start_is_refused_until_a_process_runs_it(tmp_path: Path) -> None:
    """The process may have imported the file before, so a hash of the new text would not be that of what runs."""
    file = tmp_path / "method.py"
    write_before_the_start(file, "LIMIT = 3\n")
    (before,) = code_hash.file_hashes([file], code_hash.OURS)
    changed = tmp_path / "changed.py"
    changed.write_text("LIMIT = 4\n")
    with pytest.raises(code_hash.ChangedCodeError, match=r"changed\.py has changed since this process started"):
        code_hash.file_hashes([file, changed], code_hash.OURS)
    os.utime(changed, (0, time.time() + 3600))  # the time of another clock
    assert code_hash.file_hashes([changed], code_hash.OURS) != [before]


def test_a_plugin_may_be_younger_than_the_process_that_loads_it(tmp_path: Path) -> None:
    file = tmp_path / "young.py"
    file.write_text("LIMIT = 5\n")
    plugins.load([file])
    assert len(code_hash.file_hashes([file], code_hash.OURS)) == 1
    code_hash._file_hash.cache_clear()
    file.write_text("LIMIT = 6\n")
    with pytest.raises(code_hash.ChangedCodeError):
        code_hash.file_hashes([file], code_hash.OURS)


@pytest.mark.parametrize("file", ["limits.py", "late.py", "unused.py", "method.py", "layers/__init__.py"])
def test_a_changed_constant_anywhere_changes_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    changed = {**PACKAGE, file: PACKAGE[file] + "MORE = 1\n"}
    before, after = (hashes(tmp_path / name, one, monkeypatch)[1] for name, one in (("a", PACKAGE), ("b", changed)))
    assert before != after


@pytest.mark.slow
def test_a_run_depends_on_its_method_and_not_on_others() -> None:
    """`pcgrad` stands on the engine and a solver of random orders; `equal` needs neither `gradnorm` nor the solvers."""
    files = {path.name for path in code_hash.files_of(["balancers.equal"], code_hash.OURS)}
    assert {"equal.py", "base.py", "loss_input.py"} <= files
    assert not files & {"gradnorm.py", "minimum_norm.py", "pcgrad.py", "regression.py", "__init__.py"}
    audited = {path.name for path in code_hash.files_of(["balancers.engine.forks.fork_audit"], code_hash.OURS)}
    assert "torch_internals.py" in audited  # for constants alone
    assert len({run_code("regression", name) for name in ("equal", "gradnorm", "pcgrad")}) == 3


def test_the_protocols_version_is_tied_to_its_text() -> None:
    """If this fails after a rewording: update the hash. After a changed rule: raise the version too."""
    assert {protocol_version(): hashlib.sha256(PROTOCOL.read_bytes()).hexdigest()} == PROTOCOL_TEXT


def test_a_measurements_key_covers_all_code_that_measures() -> None:
    """`timed_methods` is what is measured elsewhere; a suite's steps are of its own methods."""
    imported = {
        path.stem for path in code_hash.files_of(["bench.cost.measure_step"], {"bench"}) if path.parent.name == "cost"
    }
    assert imported - {"timed_methods"} == set(measure_step.MEASURED_BY)


def test_a_measurements_key_survives_wording_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = Recipe(optimizer="adam", lr=0.1, schedule="constant", batch_size=1, steps=1)
    spec = RunSpec("regression", {}, recipe, Method("equal", None, {}), 1, "cost", "cpu", 1)
    here = Path(measure_step.__file__).parent
    for name in measure_step.MEASURED_BY:
        write_before_the_start(tmp_path / f"{name}.py", (here / f"{name}.py").read_text())
    before = measure_step.key(spec, 3, "a processor", None)
    monkeypatch.setattr(measure_step, "__file__", str(tmp_path / "measure_step.py"))
    clock = tmp_path / "step_clock.py"
    write_before_the_start(clock, '"""Reworded."""  # and commented\n' + clock.read_text())
    assert measure_step.key(spec, 3, "a processor", None) == before
    other = tmp_path / "subject.py"
    write_before_the_start(other, other.read_text() + "\nMORE = 1\n")
    code_hash._file_hash.cache_clear()
    assert measure_step.key(spec, 3, "a processor", None) != before
