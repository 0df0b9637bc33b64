"""Start the command line: ``lossbench``, or ``python -m bench``.

``python -m`` puts the current folder first on ``sys.path``, where a user's file called ``tasks.py`` would be imported
in place of this project's package of that name. This module takes the folder off the path, and until then it must not
import anything of this project.
"""

import importlib.util
import sys
from pathlib import Path

NEEDED = (
    "pandas",
    "numpy",
    "pyarrow",
    "scipy",
    "matplotlib",
    "seaborn",
    "joblib",
    "filelock",
    "jinja2",
    "rich",
    "typer",
)
"""Import names of the packages in the extra ``bench`` that every command needs.

Pillow comes with matplotlib. Without pebble and psutil, a suite's runs are done in the command's own process.
"""


def main() -> None:
    """Run ``lossbench``; without the packages of the extra ``bench``, say so and exit with 2."""
    ours = Path(__file__).resolve().parents[1]
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != ours:
        del sys.path[0]
    missing = next((name for name in NEEDED if importlib.util.find_spec(name) is None), None)
    if missing:
        print(f'lossbench needs {missing}: pip install "lossbench[bench]"', file=sys.stderr)
        sys.exit(2)
    from bench.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
