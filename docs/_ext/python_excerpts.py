"""Colour the indented code of Markdown pages as Python where it is Python.

MyST leaves it without colours. Only fenced code is run by the tests, so the excerpts of guides are indented.
"""

import ast

from docutils import nodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", _colour)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _colour(app: Sphinx, doctree: nodes.document) -> None:
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "none" and _is_python(block.astext()):
            block["language"] = "python"


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True
