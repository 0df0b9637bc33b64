"""What ``--sample`` leaves of a test function with many cases."""

import pytest

from .conftest import FEW, _mark_all_but_a_sample


@pytest.fixture
def make(request):
    """Return a function that makes the cases of a test function."""

    def cases(function: str, number: int) -> list[pytest.Function]:
        names = [f"{function}[{i}]" for i in range(number)]
        return [
            pytest.Function.from_parent(request.node.parent, name=name, originalname=function, callobj=_any_function)
            for name in names
        ]

    return cases


def _any_function() -> None: ...


def quick(items: list[pytest.Function]) -> list[str]:
    return [item.name for item in items if item.get_closest_marker("slow") is None]


@pytest.mark.parametrize(("number", "kept"), [(1, 1), (FEW, FEW), (FEW + 1, FEW), (40, 8), (41, 9)])
def test_a_fifth_of_many_cases_is_left(make, number, kept):
    items = make("test_one", number)
    _mark_all_but_a_sample(items)
    assert len(quick(items)) == kept


def test_the_sample_is_fixed_and_differs_between_functions(make):
    first, again, other = make("test_one", 60), make("test_one", 60)[::-1], make("test_two", 60)
    _mark_all_but_a_sample(first)
    _mark_all_but_a_sample(again + other)
    assert quick(first) == quick(again)[::-1]
    assert [name.partition("[")[2] for name in quick(first)] != [name.partition("[")[2] for name in quick(other)]


def test_cases_that_are_slow_already_count_for_nothing(make):
    items = make("test_one", 30)
    for item in items[:15]:
        item.add_marker("slow")
    _mark_all_but_a_sample(items)
    assert len(quick(items)) == FEW
