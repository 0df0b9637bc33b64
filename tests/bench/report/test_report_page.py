"""Test the report in a real browser: it hides, sorts and highlights, shows hostile names as text, and logs no error."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from bench.report import report_page

from . import made_up_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"),
]

HELPERS = """
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const shade = (place) => Number(getComputedStyle(one(`figure .method-${place}`)).opacity);
const column = (table, index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent.trim());
const over = (element) => element.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
"""


def in_browser(folder: Path, script: str) -> dict[str, object]:
    """Run ``script`` in the page of ``folder``; return its result and, under ``errors``, what the browser logged."""
    source = (folder / "report.html").read_text(encoding="utf-8")
    probe = f"""<script>
    window.addEventListener("load", () => {{
      let found;
      try {{ found = (() => {{ {HELPERS} {script} }})(); }} catch (error) {{ found = {{ thrown: String(error) }}; }}
      const result = document.createElement("pre");
      result.id = "probe";
      result.textContent = JSON.stringify(found);
      document.body.append(result);
    }});
    </script></body>"""
    probed = folder / "probed.html"
    probed.write_text(source.replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"),
            *("--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}", "--dump-dom", probed.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    result = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result, done.stderr
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(html.unescape(result[1])), "errors": errors}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up_results.build(tmp_path_factory.mktemp("results") / "whole")
    report_page.write(folder)
    return folder


def test_a_method_is_followed_through_every_figure(whole: Path) -> None:
    found = in_browser(
        whole,
        """
        const before = [0, 1, 2, 3].map(shade);
        over(one('[data-follow="2"]'));
        const hovered = [0, 1, 2, 3].map(shade);
        over(document.body);
        one('tr[data-method="1"]').click();
        one('[data-follow="3"]').click();
        const clicked = [0, 1, 2, 3].map(shade);
        const figures = all("figure svg").filter((svg) => svg.querySelector(".method-1")).length;
        one('[data-follow="1"]').click();
        one('[data-follow="3"]').click();
        return {before, hovered, clicked, figures, after: [0, 1, 2, 3].map(shade)};
        """,
    )
    assert found["errors"] == []
    assert found["before"] == found["after"] == [1, 1, 1, 1]
    assert found["hovered"] == [0.25, 0.25, 1, 0.25]
    assert found["clicked"] == [0.25, 1, 0.25, 1]
    assert found["figures"] == 2 * 6  # all figures of two problems


def test_at_most_sixteen_of_many_methods_have_colour(tmp_path: Path) -> None:
    """There are sixteen colours."""
    many = {f"method {i}": ("other", 1 + i / 50, 1.0, 0.5) for i in range(19)}
    folder = made_up_results.build(
        tmp_path / "many", num_tasks=(2,), balancers={"equal": made_up_results.BALANCERS["equal"], **many}, failing=None
    )
    report_page.write(folder)
    found = in_browser(
        folder,
        """
        const places = [...Array(20).keys()];
        const faint = () => all("#problem-0 tr[data-method]").some((row) => getComputedStyle(row).opacity < 1);
        const before = places.map(shade).filter((opacity) => opacity === 1).length;
        const read = !faint();
        for (const place of places) one(`[data-follow="${place}"]`).click();
        over(document.body);
        return {before, read, after: places.map(shade).filter((opacity) => opacity === 1).length,
                faded: faint()};
        """,
    )
    assert found == {"before": 16, "read": True, "after": 16, "faded": True, "errors": []}


def test_any_column_is_sorted(whole: Path) -> None:
    found = in_browser(
        whole,
        """
        const table = one("#problem-0 table.sortable");
        const sorted = [];
        for (let index = 0; index < table.tHead.rows[0].cells.length; index++) {
          const head = table.tHead.rows[0].cells[index];
          head.click();
          sorted.push([head.getAttribute("aria-sort"), column(table, index)]);
          head.click();
          sorted.push([head.getAttribute("aria-sort"), column(table, index)]);
        }
        return {sorted};
        """,
    )
    assert found["errors"] == []
    for place, (direction, cells) in enumerate(found["sorted"]):
        assert direction == ("descending" if place % 2 else "ascending")
        numbers = [re.match(r"[+−-]?[\d.]+", cell) for cell in cells]
        values = [float(number[0].replace("−", "-")) for number in numbers if number]
        assert values == sorted(values, reverse=bool(place % 2))
        if not values:
            names = [cell for cell in cells if cell != "–"]
            assert [name.lower() for name in names] == sorted(map(str.lower, names), reverse=bool(place % 2))


def test_long_numbers_and_metric_prefixes_are_sorted_by_value(tmp_path: Path) -> None:
    folder = made_up_results.build(tmp_path / "sizes", num_tasks=(2,), failing=None)
    path = folder / "tables" / "costs.parquet"
    costs = pd.read_parquet(path)
    flops = {"equal": 41_200_000, "static 1/sigma²": 1_100_000_000, "uncertainty": 9_000, "GradNorm": 700_000_000}
    costs["flops"] = costs["balancer"].map(flops).where(costs["part"] == "step").astype("Int64")
    costs.to_parquet(path)
    report_page.write(folder)
    found = in_browser(
        folder,
        """
        const table = all("#problem-0 table").find((table) => table.textContent.includes("Operator calls"));
        table.tHead.rows[0].cells[6].querySelector("button").click();
        const target = all("#problem-0 table").find((table) => table.textContent.includes("Runs that reach it"));
        target.tBodies[0].rows[0].cells[2].textContent = "2,000";
        target.tBodies[0].rows[1].cells[2].textContent = "30";
        target.tHead.rows[0].cells[2].click();
        return {flops: column(table, 6), steps: column(target, 2).filter((text) => /^(30|2,000)$/.test(text))};
        """,
    )
    assert found["errors"] == []
    assert found["flops"] == ["9.00 kFLOP", "41.2 MFLOP", "700 MFLOP", "1.10 GFLOP"]
    assert found["steps"] == ["30", "2,000"]


def test_problems_are_hidden_and_shown_again(whole: Path) -> None:
    found = in_browser(
        whole,
        """
        const state = () => [one("#problem-0").hidden, one("#problem-1").hidden,
                             all('#overview [data-problem="0"]').filter((cell) => cell.hidden).length];
        const chip = one('[data-show="0"]');
        const before = state();
        chip.click();
        const hidden = state();
        chip.click();
        return {before, hidden, after: state(), cells: all('#overview [data-problem="0"]').length};
        """,
    )
    assert found["errors"] == []
    assert found["before"] == found["after"] == [False, False, 0]
    assert found["hidden"] == [True, False, found["cells"]]
    assert found["cells"] == 3 * (1 + 4)  # tables against equal and static weights, and of the time to equal's score


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = dict.fromkeys(made_up_results.HOSTILE, ("other", 0.9, 1.1, 1))
    balancers = {"equal": made_up_results.BALANCERS["equal"], **hostile}
    label = "</h2><script>document.title = 'broken'</script>\" onmouseover=\"{}" + "y" * 180
    made = {"balancers": balancers, "problem_label": label, "failing": None}
    folder = made_up_results.build(tmp_path / "hostile", num_tasks=(2,), **made)
    report_page.write(folder)
    found = in_browser(
        folder,
        """
        one("table.sortable th").click();
        one('[data-follow="1"]').click();
        return {scripts: all("script").length, title: document.title, bold: all("b, [onmouseover]").length,
                names: all("#controls [data-follow]").map((chip) => chip.textContent.trim())};
        """,
    )
    assert found["errors"] == []
    assert (found["scripts"], found["bold"]) == (2, 0)  # the page's own script and this test's
    assert found["title"] == "hostile · lossbench"
    assert found["names"] == ["equal", *made_up_results.HOSTILE]


def test_every_run_has_the_command_that_repeats_it(whole: Path) -> None:
    found = in_browser(
        whole,
        """
        const runs = one("#problem-1 details.runs");
        runs.open = true;
        return {commands: [...runs.querySelectorAll("tbody tr")].map((row) => row.lastElementChild.textContent.trim())};
        """,
    )
    assert len(set(found["commands"])) == 4 * (3 * 2 + 5)
    assert all(command.startswith("lossbench once whole ") for command in found["commands"])
