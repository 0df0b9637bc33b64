"""Test the documentation's extensions without building its pages."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

EXTENSIONS = Path(__file__).resolve().parents[1] / "docs" / "_ext"


@pytest.fixture(autouse=True)
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(EXTENSIONS))


@pytest.mark.parametrize("failed", [set(), {"famo"}, {"famo", "mgda, features"}])
def test_a_methods_page_marks_rows_that_fail_a_gate(failed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import evidence_section

    rows = [("famo", "famo", "method"), ("mgda, features", "mgda", "method"), ("mgda, parameters", "mgda", "method")]
    tables = {
        "rows": pd.DataFrame(rows, columns=["balancer", "name", "kind"]),
        "problems": pd.DataFrame({"problem": ["rain"], "name": ["rainfall"]}),
        "pays": pd.DataFrame(columns=["problem", "balancer"]),
        "comparisons": pd.DataFrame(
            {"balancer": [label for label, *_ in rows], "table": "A", "problem": "rain", "scale": "ratio"}
        ).assign(relative=0.5, low=0.4, high=0.6, verdict="better"),
    }
    results = SimpleNamespace(tables=tables, has_claims=True, failed_gates=failed)
    monkeypatch.setattr(evidence_section, "_results", lambda: results)
    for method in ("famo", "mgda"):
        text = "\n".join(evidence_section.evidence(method))
        marked = {label for label, name, _ in rows if name == method and f"* - {label} †\n" in text}
        assert marked == {label for label, name, _ in rows if name == method} & failed
        assert (evidence_section.FAILS in text) == bool(marked)
        assert "no gain comes from the length of steps" not in text


def test_a_problem_without_its_data_is_drawn_at_the_next_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import problem_pages

    drawn = [(b"", "", {}), (b"png", "a caption", {"train": 3})]
    monkeypatch.setattr(problem_pages, "_draw", lambda name: drawn.pop(0))
    monkeypatch.setattr(problem_pages, "_code", lambda: "0")
    assert problem_pages._drawn(tmp_path, "rain") == (b"", "", {})
    for _ in range(2):
        assert problem_pages._drawn(tmp_path, "rain") == (b"png", "a caption", {"train": 3})


def test_the_overviews_are_read_again_in_every_build() -> None:
    import method_pages
    import problem_pages

    outdated = set()

    class App:
        def connect(self, event, callback):
            if event == "env-get-outdated":
                outdated.update(callback(self, None, set(), set(), set()))

    for extension in (method_pages, problem_pages):
        extension.setup(App())
    assert outdated == {"methods", "problems"}


def test_pages_outside_of_a_folder_are_refused_and_nothing_is_deleted(tmp_path: Path) -> None:
    import repository_pages
    from sphinx.errors import ConfigError

    docs = tmp_path / "docs"
    docs.mkdir()
    for path in (tmp_path / "NEWS.md", docs / "index.md"):
        path.write_text("text", encoding="utf-8")
    app = SimpleNamespace(srcdir=docs, config=SimpleNamespace(repository_documents={"NEWS.md": "news"}))
    with pytest.raises(ConfigError, match="'news' has no folder"):
        repository_pages._write_pages(app)
    assert (docs / "index.md").is_file()
