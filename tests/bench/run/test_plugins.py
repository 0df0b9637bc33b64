"""A plugin that is sent finds the files beside it where its own file is, and works from a copy where it is not."""

import sys
from dataclasses import replace
from pathlib import Path

from bench.run import plugins

READS = "from pathlib import Path\n\nHERE = Path(__file__).parent\nSIZE = len((HERE / 'data.csv').read_text())\n"


def module(file: Path) -> object:
    return sys.modules[plugins.module_name(file)]


def test_on_this_computer_a_plugin_is_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "reads.py"
    file.write_text(READS)
    (tmp_path / "data.csv").write_text("1,2\n")
    plugins.load_sources(plugins.sources([file]))
    assert vars(module(file))["SIZE"] == 4
    assert vars(module(file))["HERE"] == tmp_path


def test_elsewhere_or_if_its_file_was_edited_it_is_a_copy(tmp_path: Path) -> None:
    edited, moved = tmp_path / "edited.py", tmp_path / "moved.py"
    for file in (edited, moved):
        file.write_text(f"NAME = {file.name!r}\n")
    sent = plugins.sources([edited, moved])
    edited.write_text("NAME = 'another'\n")
    plugins.load_sources([sent[0], replace(sent[1], path=str(tmp_path / "none.py"))])
    copies = [plugins._file(sent[0]), plugins._file(replace(sent[1], path=str(tmp_path / "none.py")))]
    for source, copy in zip(sent, copies, strict=True):
        assert copy.parent != tmp_path
        assert copy.read_bytes() == source.content
        assert vars(module(copy))["NAME"] == f"{source.stem}.py"
