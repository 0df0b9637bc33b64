"""Write ``results/paper/report.html``: claims, findings and figures on one page that needs no other file."""

import json
from pathlib import Path

from bench.report.page_tables import flat
from bench.report.report_page import inline, template
from bench.style.numbers import join

from .all_claims import HEADER, Judged

WORDS = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "not settled": ("is not settled", "are not settled"),
}
"""Each verdict as the verb after the number of claims, for one claim and for several."""


def write(judged: list[Judged], folder: Path) -> Path:
    """Write the page and return its path. The figures must have been written before."""
    about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    html = template("paper.html.j2", Path(__file__).parent).render(
        header=HEADER,
        reading=reading(judged),
        judged=judged,
        drawn={
            one.claim.number: inline(folder / "figures", f"claim-{one.claim.number}", one.outcome.caption)
            for one in judged
        },
        environment=flat(about),
    )
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    return page


def reading(judged: list[Judged]) -> str:
    """Return a sentence that says how many claims hold with one learning rate, and how many with each method tuned."""
    parts = []
    for place, how in enumerate(("one learning rate for all methods", "each method's own, chosen on validation")):
        verdicts = [one.verdicts[place] for one in judged]
        counts = [_counted(verdicts.count(verdict), *words) for verdict, words in WORDS.items() if verdict in verdicts]
        parts.append(f"with {how}, {join(counts)}")
    return f"Of {len(judged)} claims of the GradNorm paper, {'; '.join(parts)}."


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
