"""What is written as TOML is read back as it was."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.suite import suite_file
from bench.suite.write_toml import to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SINGLE = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), TEXT)
VALUES = st.recursive(
    SINGLE, lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXT, each, max_size=3), max_leaves=6
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_any_values(values: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_a_name_beyond_the_basic_plane_is_written_as_it_is() -> None:
    assert to_toml({"plugins": ["/home/🚀/my.py"]}) == 'plugins = ["/home/🚀/my.py"]\n'


@pytest.mark.parametrize("name", ["default", "core", "all"])
def test_the_suites_that_come_with_the_package(name: str) -> None:
    values = tomllib.loads(suite_file.find(name).read_text(encoding="utf-8"))
    assert tomllib.loads(to_toml(values)) == values
