"""Make the repository's documents and programs outside of `docs` pages of the site, and let links lead there.

Documents link to each other as files of the repository, so that the links work on GitHub. On the site a link leads to

- the page that the file became, if it is in `docs` or in `repository_documents`,
- for a program that a page includes or that is a tutorial, that page,
- for a folder of results, the page about results,
- else a copy of the file, under ``files/`` on the site. A missing file is left as it is: MyST warns of it.

A picture is shown from where it lies.
"""

import os
import re
import shutil
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from page_text import write_folder
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError
from sphinx.util.docutils import SphinxRole

FILES = "files"
"""Folder of the site for copies of files that are no pages."""
INDEX = ("README.md", "docs/README.md")
"""The page that GitHub shows first, and the list of pages. The site has `index` in place of both."""
RESULTS = "results"
TUTORIAL = "docs/tutorial"
"""Folder of the programs that sphinx-gallery makes pages of."""
_INCLUDED = re.compile(r"^`{3,}\{literalinclude\} (\S+)$", re.MULTILINE)
"""A program that a page includes as it is."""
_LINK = re.compile(
    r"""^(?P<fence>`{3,}).*?^(?P=fence)$ | ^[ ]{4}[^\n]*$ |  # code, which is left as it is
    (?P<picture>!?)\[(?P<text>(?:`[^`\n]*`|[^\]`])*)\]\((?P<target>[^()\s]+)\) |
    `[^`\n]*`""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
"""A link or a picture; or code, in which nothing is a link."""


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("repository_documents", {}, "env")
    app.add_role("repository-file", RepositoryFile())
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _rewrite)
    app.connect("build-finished", _copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _root(app: Sphinx) -> Path:
    return Path(app.srcdir).parent


def _write_pages(app: Sphinx) -> None:
    """Write the pages; their links are rewritten when Sphinx reads them."""
    folders = dict[str, dict[str, str]]()
    for path, document in app.config.repository_documents.items():
        folder, _, name = document.rpartition("/")
        if not folder:
            raise ConfigError(f"repository_documents: {document!r} has no folder; all else in its folder is deleted")
        folders.setdefault(folder, {})[f"{name}.md"] = (_root(app) / path).read_text(encoding="utf-8")
    for folder, pages in folders.items():
        write_folder(Path(app.srcdir) / folder, pages)


@cache
def _programs(docs: Path) -> dict[str, str]:
    """Return which page includes each program, both as paths: a program as in the repository, a page as in `docs`."""
    found = {}
    for page in sorted(docs.rglob("*.md")):
        for included in _INCLUDED.findall(page.read_text(encoding="utf-8")):
            program = os.path.relpath(page.parent / included, docs.parent)
            found[program] = page.relative_to(docs).as_posix()
    return found


def _rewrite(app: Sphinx, document: str, content: list[str]) -> None:
    """Let the links of a Markdown document lead to places of the site."""
    if Path(app.env.doc2path(document)).suffix != ".md":
        return
    places = {document: path for path, document in app.config.repository_documents.items()}
    origin = places.get(document, f"docs/{document}.md")
    content[0] = _LINK.sub(lambda link: _site_link(app, document, origin, link), content[0])


def _site_link(app: Sphinx, document: str, origin: str, link: re.Match[str]) -> str:
    picture, text, target = link["picture"], link["text"], link["target"]
    if target is None:
        return link[0]
    path, _, anchor = unquote(target).partition("#")
    if not path or re.match(r"[a-z-]+:", path):
        return link[0]
    root = _root(app)
    file = os.path.normpath(os.path.join(os.path.dirname(origin), path))
    if picture:
        return f"![{text}](/../{file})"
    page = _page_of(app, file)
    if page and page != f"{document}.md":  # a page that includes the file offers a copy of it
        return f"[{text}](/{page}{'#' * bool(anchor)}{anchor})"
    if not (root / file).is_file():
        return link[0]
    return f"[{text}](file-of-site:{_address(app.env, document, file)})"


def _address(environment: BuildEnvironment, document: str, file: str) -> str:
    """Return where a page finds the copy of a file of the repository, and have the copy made."""
    linked = environment.metadata[document]
    linked["linked_files"] = f"{linked.get('linked_files', '')}{file}\n"
    return f"{'../' * document.count('/')}{FILES}/{file}"


class RepositoryFile(SphinxRole):
    """The role ``repository-file``, which links to a copy of a file: :repository-file:`balancers/cagrad.py`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        reference = nodes.reference("", "", refuri=_address(self.env, self.env.docname, self.text))
        reference += nodes.literal("", self.text)
        return [reference], []


def _page_of(app: Sphinx, file: str) -> str | None:
    """Return the path in `docs` of the page that a file or folder of the repository became; None if there is none."""
    documents = app.config.repository_documents
    if file in INDEX:
        return "index.md"
    if file.startswith("docs/") and file.endswith(".md"):
        return file.removeprefix("docs/")
    if os.path.dirname(file) == TUTORIAL:
        return f"gallery/{Path(file).stem}.rst"
    if file in documents:
        return f"{documents[file]}.md"
    if file in (programs := _programs(Path(app.srcdir))):
        return programs[file]
    if (_root(app) / file).is_dir() and file.split("/")[0] == RESULTS:
        return f"{documents[f'{RESULTS}/README.md']}.md"
    return None


def _copy_files(app: Sphinx, error: Exception | None) -> None:
    """Copy the files that pages link to."""
    if error is not None or app.builder.format != "html":
        return
    for metadata in app.env.metadata.values():
        for file in metadata.get("linked_files", "").split():
            copy = Path(app.outdir) / FILES / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_root(app) / file, copy)
