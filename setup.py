"""Make the package index's description from README.md; all else about the package is in pyproject.toml.

A relative link leads nowhere on a package index. It becomes a link into the repository that pyproject.toml names as
``Repository`` in ``[project.urls]``, at the tag of this version. While none is named, a link becomes its text and a
picture is left out.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^()\s]+)\)")
"""A link or a picture that leads to a file: the mark of a picture, the text and the path."""


def description(readme: str, repository: str | None, tag: str) -> str:
    """Return the Markdown of ``readme`` for a page outside the repository."""

    def outside(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if not repository:
            return "" if picture else text
        return f"{picture}[{text}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return re.sub(r"\n{3,}", "\n\n", RELATIVE.sub(outside, readme))


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    library = (ROOT / "balancers" / "version.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.*)"$', library, re.MULTILINE)[1]
    setup(
        long_description=description(
            (ROOT / "README.md").read_text(encoding="utf-8"),
            project.get("urls", {}).get("Repository"),
            f"v{version}",
        ),
        long_description_content_type="text/markdown",
    )
