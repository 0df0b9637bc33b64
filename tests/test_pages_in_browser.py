"""Open every page of the documentation in Chromium: accessible, as wide as the window, and without a network.

The browser is this machine's Chromium or Google Chrome. The tests build the pages, or check what is built already:
`pytest tests/test_pages_in_browser.py --site=build/docs/html`.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `browser`")
axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe-playwright-python, of the extra `browser`")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),  # with test_documentation.py, so that the site is built once
    pytest.mark.skipif(CHROMIUM is None, reason="needs an installed Chromium or Google Chrome"),
]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOURS = ["color-contrast"]  # all that a theme changes
LAYOUT = ["scrollable-region-focusable", "target-size"]  # what the width changes
CHECKS = ((390, "light", LAYOUT), (800, "light", LAYOUT), (1400, "light", RULES), (1400, "dark", COLOURS))
"""Width of the window in pixels, theme, and the rules of axe or their groups."""
HEADER_CHECKS = ((390, "light", RULES), (390, "dark", COLOURS))
"""What narrow windows alone show is the header, which is the same on every page: one page is enough."""

READY = """async () => {
    await window.MathJax?.startup?.promise;
    for (const _ of [1, 2]) await new Promise(requestAnimationFrame);  // a new width has been laid out
}"""

# The class of a token sets its colour, so axe has to see one token of a class, of the thousands on a page of code.
THIN_OUT_CODE = """() => {
    const seen = new Set();
    for (const token of document.querySelectorAll('.highlight pre span[class]:not(:has(*))')) {
        if (seen.has(token.className)) token.replaceWith(token.textContent);
        seen.add(token.className);
    }
}"""

# Style sheets can't be fetched from files, and no rule that runs here wants them.
RUN_AXE = """async (runOnly) => {
    const found = await axe.run({runOnly, preload: false, resultTypes: ['violations']});
    return found.violations.flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.target} ${node.html}`));
}"""

# Furo lets the text scroll inside the page of a phone, which is as bad.
OVERFLOW = """Math.max(
    document.scrollingElement.scrollWidth - window.innerWidth,
    ...Array.from(document.querySelectorAll('.content'), (text) => text.scrollWidth - text.clientWidth)
)"""

Findings = dict[str, list[str]]


@contextmanager
def browser_page() -> Iterator["Page"]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM)
        yield browser.new_page(reduced_motion="reduce")
        browser.close()


@pytest.fixture(scope="module")
def findings(site: Path) -> Findings:
    """Open each page once, and return what is wrong: messages by "axe", "overflow", "console" and "request"."""
    found: Findings = defaultdict(list)
    paths = [path for path in site.rglob("*.html") if "files" not in path.relative_to(site).parts]
    assert len(paths) > 100
    with browser_page() as page:
        page.on("console", lambda said: said.type == "error" and found["console"].append(f"{page.url}: {said.text}"))
        page.on("pageerror", lambda error: found["console"].append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: found["request"].append(f"{page.url}: {request.url} failed"))
        page.on(
            "request",
            lambda request: (
                urlsplit(request.url).scheme in ("file", "data", "blob")
                or found["request"].append(f"{page.url}: {request.url}")
            ),
        )
        for path in sorted(paths):
            name = path.relative_to(site)
            page.set_viewport_size({"width": CHECKS[0][0], "height": 900})
            page.goto(path.as_uri())
            page.evaluate(axe.AXE_SCRIPT)
            page.evaluate(THIN_OUT_CODE)
            for width, theme, rules in (*(HEADER_CHECKS if name == Path("index.html") else ()), *CHECKS):
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=theme)
                page.evaluate(READY)
                view = f"{name} at {width}, {theme}"
                if (beyond := page.evaluate(OVERFLOW)) > 0:
                    found["overflow"].append(f"{view}: {beyond} pixels too wide")
                found["axe"] += [f"{view}: {text}" for text in page.evaluate(RUN_AXE, rules)]
    return found


def test_no_rule_of_accessibility_is_broken(findings: Findings) -> None:
    assert not findings["axe"], "\n".join(findings["axe"])


def test_no_page_is_wider_than_its_window(findings: Findings) -> None:
    assert not findings["overflow"], "\n".join(findings["overflow"])


def test_the_console_shows_no_error(findings: Findings) -> None:
    assert not findings["console"], "\n".join(findings["console"])


def test_a_page_requests_nothing_but_files(findings: Findings) -> None:
    assert not findings["request"], "\n".join(findings["request"])
