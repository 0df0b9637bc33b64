"""Write the report ``results/<suite>/report.html``, one page that needs no network and no other file."""

import re
from collections import Counter
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from bench.style.figure_style import FAINT, GRID, INK, NUM_COLOURS, PAPER, PIXELS_PER_POINT, styles

from . import answer, evidence, evidence_answer, evidence_sections, front_report, gpu_tables, page_tables, step_ratios
from .report_figures import draw
from .results_folder import Results, load
from .verdict_wording import reading, title

SCHEME = {INK: "var(--ink)", FAINT: "var(--axis)", GRID: "var(--rule)", PAPER: "var(--paper)"}
"""Colours of figures that follow the page's light or dark scheme, and the CSS variables that replace them."""

FONT = "font-family: 'DejaVu Sans', sans-serif"
"""The font that Matplotlib names in each text."""
OFTEN = 20
"""Number of elements from which on their style is written once."""


def write(results: Path) -> Path:
    """Draw the figures of the results folder of a suite, write its page, and return the path of the page.

    Raises:
        FileNotFoundError: no suite wrote this folder.
    """
    loaded = load(results)
    drawn: dict[tuple[str, str | None], dict[str, str]] = {}
    for picture in draw(loaded):
        drawn[picture.kind, picture.problem] = {
            "svg": inline(loaded.path / "figures", picture.name, picture.caption),
            "caption": picture.caption,
        }
    html = template("report.html.j2").render(
        results=loaded,
        title=title(loaded),
        reading=reading(loaded),
        answers=[] if loaded.has_claims else answer.answer(loaded),
        headlines=evidence_answer.headlines(loaded) if loaded.has_claims else [],
        judged_answers=evidence_answer.answers(loaded) if loaded.has_claims else [],
        judged=evidence_sections.sections(loaded),
        failed_gates=loaded.failed_gates,
        caveat="" if loaded.has_claims else answer.caveat(loaded),
        far_apart=answer.far_apart(loaded),
        mixed=answer.mixed(loaded),
        busy=step_ratios.warning(loaded),
        edge_remedy=answer.edge_remedy(loaded.board, loaded),
        looks=styles(loaded.balancers),
        # No figure of the evidence tells methods apart by colour, so that all of them can be highlighted at once.
        num_colours=len(loaded.balancers) if loaded.has_claims else NUM_COLOURS,
        places={label: place for place, label in enumerate(loaded.balancers)},
        drawn=drawn,
        overviews=page_tables.overviews(loaded),
        claims=evidence.claims(loaded),
        alarm=evidence.alarm(loaded),
        controls=evidence.controls(loaded),
        change_of=evidence.change(loaded)[1],
        repeated={"finding": evidence.repeated(loaded), "grid": evidence.repeated_grid(loaded)},
        sheets=page_tables.sheets(loaded),
        fronts=[_front(loaded.only(problem)) for problem in loaded.problems],
        micro=page_tables.micro(loaded),
        gpu=gpu_tables.find(loaded.path),
        failures=page_tables.failures(loaded),
        environment=page_tables.flat(loaded.environment),
    )
    page = loaded.path / "report.html"
    page.write_text(with_shared_styles(html), encoding="utf-8")
    return page


def with_shared_styles(html: str) -> str:
    """Return a page in which styles that many elements of figures have are classes, so that each is written once.

    The classes are added to the page's first ``<style>``. An element that has a class keeps its style.
    """
    marked = re.compile(r'(<(?:path|use|text|g) (?![^>]*class=)[^>]*?)style="([^"]*)"')
    often = [style for style, times in Counter(style for _, style in marked.findall(html)).items() if times >= OFTEN]
    names = {style: f"s{place}" for place, style in enumerate(often)}
    html = marked.sub(
        lambda found: f'{found[1]}class="{names[found[2]]}"' if found[2] in names else found[0],
        html,
    )
    rules = "".join(f".{name} {{ {style} }}\n" for style, name in names.items())
    return html.replace("</style>", f"{rules}</style>", 1)


def template(name: str, *folders: Path) -> Template:
    """Load the template ``name`` from one of the ``folders`` or from this one; it can include files of both.

    All text that the template is given is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _front(results: Results) -> dict[str, object]:
    """Return the page's content on one problem's front of static weights and on the trials that a search chose."""
    grid, finding = front_report.grid(results), front_report.finding(results)
    return {"grid": grid, "finding": finding, "chosen": front_report.chosen(results)}


def inline(folder: Path, name: str, caption: str) -> Markup:
    """Return the SVG ``folder/name.svg`` as an element of the page.

    Its ids get the prefix ``name``, so that they are unique on the page; its width makes its text as large as the
    page's. The labels in it need no escaping: Matplotlib has done that.

    Raises:
        ValueError: the file has no ``viewBox``.
    """
    text = (folder / f"{name}.svg").read_text(encoding="utf-8")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    if box is None:
        raise ValueError(f"{name}.svg has no viewBox")
    width, height = (float(side) for side in box.groups())
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _on_a_page(tag.group(), name), body)
    return Markup(
        f'<svg role="img" aria-label="{escape(caption)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="width:{width * PIXELS_PER_POINT:.0f}px; stroke-linejoin:round; stroke-linecap:butt">{body}'
    )


def _on_a_page(tag: str, name: str) -> str:
    """Return a tag of an SVG with the prefix before its ids, and with the page's font and colours."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(rf'(<text [^>]*style="[^"]*?){re.escape(FONT)}; ', r"\1", tag)
    for colour, variable in SCHEME.items():
        tag = re.sub(rf"((?:fill|stroke): ){colour}", rf"\g<1>{variable}", tag)
    return tag
