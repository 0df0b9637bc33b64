"""Build the source distribution and, from it, the wheel, without the network; check what they hold and that they work.

Neither is built in the repository itself, where setuptools would leave files.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email import message_from_string
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

import balancers

from .test_install import HIDE, needed_by

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".*", "*.egg-info", "__pycache__", "report.html", "dist", "lightning_logs")
"""What a copy of the repository does without; so does a source distribution."""
FOR_USERS = (
    *(
        "balancers/py.typed",
        "tasks/py.typed",
        "bench/PROTOCOL.md",
        "bench/suites/default.toml",
        "bench/diagnose/kept/regrets.csv",
    ),
    *("bench/report/report.html.j2", "bench/report/report.css", "bench/report/report.js", "bench/paper/paper.html.j2"),
)
FOR_CONTRIBUTORS = (
    *("MANIFEST.in", "Makefile", "constraints.txt", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "setup.py"),
    *(
        "tests/conftest.py",
        "tests/balancers/contract.py",
        "tests/bench/plugins/small.py",
        "tests/peers/requirements.txt",
    ),
    *("docs/conf.py", "docs/index.md", "docs/_ext/command_pages.py", "docs/_static/site.css", "examples/README.md"),
    *("results/README.md", "results/reference/core/tables/scores.parquet", "results/reference/core/suite.toml"),
    "results/reference/core/figures/summary.png",
)
MOST_BYTES = 8_000_000
"""Limit for the source distribution: a report of several MB that slips in must be noticed."""


def setup_module_of(folder: Path) -> Callable[[str, str | None, str], str]:
    """Return the function of setup.py that makes the description of README.md."""
    spec = importlib.util.spec_from_file_location("lossbench_setup", folder / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description: Callable[[str, str | None, str], str] = module.description
    return description


def build(kind: str, folder: Path) -> Path:
    """Build a distribution of the project in ``folder`` as pip does, with the setuptools that is installed here."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the source distribution."""
    copy = tmp_path_factory.mktemp("copy") / "lossbench"
    shutil.copytree(
        ROOT,
        copy,
        ignore=lambda folder, names: (
            {name for name in shutil.ignore_patterns(*LEFT_OUT)(folder, names) if name != ".pre-commit-config.yaml"}
            | {name for name in names if Path(folder) == ROOT and name in ("build", "shared")}
            | {name for name in names if Path(folder) == ROOT / "results" and name not in ("README.md", "reference")}
        ),
    )
    (copy / "docs" / "api").mkdir(exist_ok=True)
    (copy / "docs" / "api" / "generated.rst").write_text("A page that the build of the documentation wrote.\n")
    return build("sdist", copy)


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [found] = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder into which the wheel of the source distribution is unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", unpacked)) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def facts(installed: Path) -> Message:
    """Return the wheel's metadata."""
    [path] = installed.glob("*.dist-info/METADATA")
    return message_from_string(path.read_text(encoding="utf-8"))


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def test_the_source_distribution_has_all_that_a_contributor_needs_and_is_small(sdist: Path, unpacked: Path) -> None:
    assert not [name for name in (*FOR_USERS, *FOR_CONTRIBUTORS) if not (unpacked / name).is_file()]
    here = {str(path.relative_to(ROOT)) for top in ("tests", "examples") for path in (ROOT / top).rglob("*.py")}
    assert not [name for name in here if not (unpacked / name).is_file()]
    assert not list(unpacked.rglob("*.pyc"))
    assert not list(unpacked.rglob("report.html"))
    assert sdist.stat().st_size < MOST_BYTES


def test_the_source_distribution_has_no_generated_page(unpacked: Path) -> None:
    generated = re.findall(r"^(docs/\w+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    assert "docs/api" in generated
    assert not [name for name in generated if (unpacked / name).exists()]


def test_the_wheel_has_every_module_and_every_file_that_a_command_reads(installed: Path) -> None:
    packages = ("balancers", "tasks", "bench")
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == set(packages)
    files = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", "")
    }
    assert set(FOR_USERS) <= files
    assert not [name for name in files if not (installed / name).is_file()]


def test_the_wheels_library_needs_torch_alone(installed: Path) -> None:
    ours = {"balancers", "tasks", "bench"}
    hidden = set(metadata.packages_distributions()) - needed_by("torch") - ours
    code = "import balancers; print(balancers.__file__, len(balancers.names()))"
    script = HIDE.format(hidden=hidden, root=str(installed)) + code
    done = subprocess.run([sys.executable, "-c", script], cwd=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path, count = done.stdout.split()
    assert Path(path).is_relative_to(installed)
    assert int(count) > 50


def test_the_wheels_command_lists_its_suites(installed: Path) -> None:
    code = "import sys; sys.path.insert(0, '.'); sys.argv = ['lossbench', 'list', 'suites']; "
    code += "from bench.__main__ import main; main()"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "smoke" in done.stdout


def test_the_metadata_are_those_of_pyproject(facts: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (facts["Name"], facts["Version"]) == (project["name"], balancers.__version__)
    assert facts["License-Expression"] == "MIT"
    assert facts["Description-Content-Type"] == "text/markdown"
    [unconditional] = [one for one in facts.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert unconditional.startswith("torch")


def test_the_description_has_no_link_that_leads_nowhere(facts: Message) -> None:
    text = str(facts.get_payload())
    assert "# lossbench" in text
    assert "from balancers import Fork" in text
    assert not [link for link in re.findall(r"\]\(([^()\s]+)\)", text) if not re.match(r"https?:|#", link)]


def test_links_and_pictures_of_the_description_lead_to_the_repository_once_it_is_named() -> None:
    description = setup_module_of(ROOT)
    readme = "[the\nmethods](docs/methods.md#all) ![figure](a/b.png) [site](https://x.org) [below](#cite) `f(x)[0]`"
    site = "[site](https://x.org) [below](#cite)"
    named = description(readme, "https://host.org/me/lossbench/", "v1")
    assert named.startswith("[the\nmethods](https://host.org/me/lossbench/blob/v1/docs/methods.md#all)")
    assert f"![figure](https://host.org/me/lossbench/raw/v1/a/b.png) {site}" in named
    unnamed = description(readme, None, "v1")
    assert unnamed.startswith(f"the\nmethods  {site}")


def test_tests_of_the_source_distribution_run_in_it(unpacked: Path) -> None:
    """A fast few: they import all three packages from there, read files beside them, and share a conftest."""
    some = ["tests/test_rooms.py", "tests/balancers/test_registry.py", "tests/bench/analysis/test_loss_scales.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *some]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
