"""Write generated pages: reStructuredText headings, tables and links, and files that change only with their content."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def heading(text: str, underline: str = "=") -> str:
    """Return a heading, underlined with one character for each level."""
    return f"{text}\n{underline * len(text)}\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto") -> str:
    """Return a table. Cells are reStructuredText of one paragraph."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (header, *rows):
        for i, cell in enumerate(row):
            lines.append(f"   {'* -' if i == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines) + "\n"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values without a header; rows of an empty value are left out."""
    lines = [".. list-table::", "   :class: facts", "   :stub-columns: 1", "   :widths: auto", ""]
    for name, value in rows:
        if value:
            lines += [f"   * - {name}", f"     - {value}"]
    return "\n".join(lines) + "\n"


def hidden_toctree(documents: Iterable[str]) -> str:
    """Return a toctree that puts documents below the page in the sidebar, and shows nothing on the page."""
    return "\n".join([".. toctree::", "   :hidden:", "", *(f"   {document}" for document in documents)]) + "\n"


def escaped(text: str) -> str:
    """Return ``text`` so that reStructuredText shows it as it is, apart from code between backticks."""
    parts = text.split("`")
    plain = [part.replace("\\", "\\\\").replace("*", "\\*").replace("_", "\\_").replace("|", "\\|") for part in parts]
    return "".join(part if i % 2 == 0 else f"``{parts[i]}``" for i, part in enumerate(plain))


def write_folder(folder: Path, pages: dict[str, str]) -> None:
    """Make ``folder`` contain these pages, by file name, and no other; pages of the same content stay untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
