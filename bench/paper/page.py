"""``results/paper/report.html``: claims, findings and figures on one page that needs no other file."""

import json
from pathlib import Path

from bench.report.cells import flat
from bench.report.page import inline, template
from bench.report.words import join

from .claim import SETTINGS
from .everything import HEADER, Judged


def write(judged: list[Judged], folder: Path) -> Path:
    """Writes the page, and returns where it is. The figures must be there."""
    about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    html = template("paper.html.j2", Path(__file__).parent).render(
        header=HEADER,
        reading=reading(judged),
        judged=judged,
        settings=(*SETTINGS, ""),
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
    """How many claims hold, and for which it matters that learning rates are tuned."""
    sentences = []
    for place, setting in enumerate(SETTINGS):
        verdicts = [one.verdicts[place] for one in judged]
        words = {"holds": "hold", "does not hold": "do not hold", "not settled": "are not settled"}
        parts = [f"{verdicts.count(verdict)} {many}" for verdict, many in words.items() if verdict in verdicts]
        how = (
            "With one learning rate for all"
            if setting == SETTINGS[0]
            else "With each method's own, chosen on validation"
        )
        sentences.append(f"{how}, {join(parts)}.")
    return f"Of {len(judged)} claims of the GradNorm paper: {' '.join(sentences)}"
