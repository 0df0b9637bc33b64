"""Mend in the built pages what Sphinx and Furo leave undone for readers who use a keyboard or a screen reader.

`_static/accessible.js` does the rest, which depends on the width of the window.
"""

import re
from typing import Any

from sphinx.application import Sphinx


def _signature(lines: re.Match[str]) -> str:
    inner = lines[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f'<div class="sig-lines">\n{inner}</div>'


MENDED = (
    # A heading has a level.
    (re.compile(r'role="heading"(?! aria-level)'), 'role="heading" aria-level="2"'),
    # A signature of several lines is no list of definitions.
    (re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>"), _signature),
    # The empty corner of a table is no header.
    (re.compile(r'<th class="head[^"]*"><p></p></th>'), "<td></td>"),
)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", _mend, priority=900)  # after Furo, which adds its navigation
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    for part in ("body", "furo_navigation_tree"):
        if part in context:
            for pattern, replacement in MENDED:
                context[part] = pattern.sub(replacement, context[part])
