"""Settings of the documentation: `make docs` builds it with Sphinx, from `docs/*.md` and from the code itself.

Most of API, Methods and Problems is not written but generated, by the extensions in `docs/_ext`. Nothing is fetched
from the network, neither by the build nor by the pages.
"""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
os.environ.setdefault("DDE_BACKEND", "pytorch")  # otherwise DeepXDE chooses, and saves its choice in the user's home

project = "lossbench"
author = "The lossbench contributors"
copyright = author
release = version = installed_version("lossbench")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "repository_pages",
    "api_pages",
    "method_pages",
    "problem_pages",
    "accessible_pages",
    "python_excerpts",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# The README lists the pages on GitHub, where there is no sidebar. The gallery is one page.
exclude_patterns = ["README.md", "_build", "tutorial", "gallery/index.rst"]
default_role = "py:obj"
highlight_language = "default"  # Python, or plain text where it is not
smartquotes_action = "D"  # dashes, and quotes as they are

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]
# How `repository_pages` writes a link to a file that is no page: relative to the page that has the link.
myst_url_schemes = {"http": None, "https": None, "mailto": None, "file-of-site": {"url": "{{path}}"}}

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what a subclass merely implements is described once, in its base class
autodoc_typehints_format = "short"
napoleon_use_param = False  # arguments that are described together stay together
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
viewcode_line_numbers = True

nitpicky = True
nitpick_ignore_regex = [
    # Other people's classes: there is no network, so their documentation can't be asked where they are.
    (r"py:.*", r"(torch|dist|nn|numpy|matplotlib|collections|typing|contextlib|lightning|pina|deepxde)(\..*)?"),
    (r"py:class", r"Tensor|Figure"),
    # Names in annotations that are for type checkers: they have no page.
    (r"py:class", r"(balancers|tasks)\..*\.(Balancer|ProblemClass|Data|\w+Data|Number|Scalar|\w*Step|LossReader)"),
]

# The tutorial is a program whose output and pictures are on its page.
sphinx_gallery_conf = {
    "examples_dirs": "tutorial",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 3600,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
}

html_theme = "furo"
html_title = "lossbench"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["accessible.js", "filtered_table.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
mathjax_path = "mathjax/tex-svg.js"
# The menu would fetch parts that are not here.
mathjax3_config = {"options": {"enableMenu": False}}

# Documents outside of this folder that are pages of the site too. What is linked and in neither is copied to the site.
repository_documents = {
    "CONTRIBUTING.md": "repository/contributing",
    "CHANGELOG.md": "repository/changelog",
    "bench/PROTOCOL.md": "repository/protocol",
    "results/README.md": "repository/results",
    "examples/README.md": "repository/programs",
}
