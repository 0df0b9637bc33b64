"""A user's own methods and problems: Python files outside the tree, loaded by path.

Such a file registers its classes by the decorators of `balancers` and `tasks`. It may be called anything, ``tasks.py``
too: it becomes a module under a name of its own, and its folder does not come onto the import path.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def module_name(path: Path) -> str:
    """The name of the module that the file at ``path`` becomes."""
    path = path.resolve()
    return f"lossbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def load(paths: Iterable[Path]) -> None:
    """Executes each file, once a process. What a file raises, it raises here."""
    for path in paths:
        name = module_name(path)
        if name in sys.modules:
            continue
        path = path.resolve()
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path.name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
