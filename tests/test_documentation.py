"""Build the documentation and check its pages: no warning, no dead link, every public name, nothing from the network.

`make docs` builds it for readers. The slow tests build it anew, into a folder of their own, or check what is
built already: `pytest tests/test_documentation.py --site=build/docs/html`.
"""

import importlib
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import balancers
import tasks

INTEGRATIONS = {
    "balancers.integrations.deepxde": ["BalanceLosses"],
    "balancers.integrations.lightning": ["LogWeights"],
    "balancers.integrations.pina": ["BalancerWeighting", "ResidualLoss"],
}
PUBLIC = [f"{package.__name__}.{name}" for package in (balancers, tasks) for name in package.__all__]
PUBLIC += [f"{module}.{name}" for module, names in INTEGRATIONS.items() for name in names]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


class Page(HTMLParser):
    """The anchors of a page, and where its links, pictures, scripts and style sheets lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] or "" for key in ("id", "name") if key in given}
        target = given.get("src") or given.get("href")
        if target:
            (self.links if tag == "a" else self.loads).add(target)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "files" not in path.relative_to(site).parts}


def test_every_internal_link_leads_to_a_file_and_an_anchor_in_it(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 100
    assert not dead


def test_pages_load_nothing_from_the_network(pages: dict[Path, Page]) -> None:
    assert not {load for page in pages.values() for load in page.loads if urlsplit(load).scheme not in ("", "data")}


def test_every_page_can_be_found_by_its_words(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{document}"' in index for document in ("methods/gradnorm", "problems/scenes", "guides/your-loop"))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_described_once_with_its_source(name: str, site: Path) -> None:
    described = [
        text
        for folder in ("api", "methods", "problems")
        for path in (site / folder).glob("*.html")
        if f' id="{name}">' in (text := path.read_text(encoding="utf-8"))
    ]
    assert len(described) == 1
    entry = described[0].partition(f' id="{name}">')[2]
    module, _, last = name.rpartition(".")
    found = getattr(importlib.import_module(module), last)
    if (inspect.isclass(found) or inspect.isfunction(found)) and last == found.__name__:
        assert re.search(r'href="[./]*_modules/', entry.partition("</dt>")[0])
    else:
        assert re.search(r'href="[./]*files/\w+/', entry.partition("</dd></dl>")[0])


@pytest.mark.parametrize("name", [name for name in balancers.names() if "." not in name])
def test_a_method_has_a_page_to_which_the_overview_leads(name: str, site: Path, pages: dict[Path, Page]) -> None:
    cls = balancers.get(name)
    if not cls.__module__.startswith("balancers."):
        pytest.skip(f"{name} is a method of another test")
    text = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
    assert "When to use it" in text
    assert all(f">{option}<" in text for option in cls.tunable)
    assert f"methods/{name}.html" in pages[site / "methods.html"].links


@pytest.mark.parametrize("name", [name for name in tasks.names() if tasks.get(name).__module__.startswith("tasks.")])
def test_a_problem_has_a_page_and_a_picture_if_its_data_are_here(
    name: str, site: Path, pages: dict[Path, Page]
) -> None:
    problem = tasks.create(name)
    text = (site / "problems" / f"{name}.html").read_text(encoding="utf-8")
    assert all(task in text for task in problem.tasks)
    assert f"problems/{name}.html" in pages[site / "problems.html"].links
    try:
        problem.require()
    except tasks.MissingDataError:
        assert "_images/" not in text
    else:
        assert re.search(rf"_images/{name}\d*\.png", text)
