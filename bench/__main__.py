"""``python -m bench``: the command line, with the caller's folder taken off the import path.

``python -m`` puts the folder it is called from first on ``sys.path``, where a file called ``tasks.py`` would be taken
for our package of that name. Until it is off, nothing of ours may be imported but this package, which is empty.
"""

import sys
from pathlib import Path


def main() -> None:
    """Runs ``lossbench``."""
    ours = Path(__file__).resolve().parents[1]
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != ours:
        del sys.path[0]
    from bench.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
