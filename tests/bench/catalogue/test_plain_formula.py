"""Formulas of docstrings as text for a terminal."""

import inspect
import re

import pytest

import balancers
from bench.catalogue.plain_formula import plain_formula, plain_text


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\lVert \nabla_W w_i L_i \rVert_2", "‖∇_W w_i L_i‖_2"),
        (r"\frac{a + b}{c_i}\, x", "(a + b)/c_i x"),
        (r"\frac1T \sum_{j \in P} n_j", "1/T Σ_(j ∈ P) n_j"),
        (r"e^{s_i} + e^{-s} + x^2 + 10^{-8} + v^\top", "e^(s_i) + e^(-s) + x² + 10⁻⁸ + vᵀ"),
        (r"\hat\phi_{ij} \ge \overline{\tilde L}", "φ\u0302_ij ≥ L\u0305\u0303"),
        (r"\sqrt{\sigma_k} \sqrt{1 - \phi^2}", "√σ_k √(1 - φ²)"),
        (r"w = \begin{cases} a & k \ge 1 \\ 0 & k < 1 \end{cases}", "w = a if k ≥ 1; 0 if k < 1"),
        (r"y &\leftarrow \operatorname{Adam}\big(\xi, y\big)", "y ← Adam(ξ, y)"),
        (r"\left( a \right) \le \mathbb{E} \| x \| \dots", "(a) ≤ E ‖ x ‖ …"),
        (r"\log\sigma_i^2 + \min_k \arg\min_x", "log σ_i² + min_k arg min_x"),
        (r"a \; b, \quad \begin{aligned} x &= 1 \end{aligned}", "a b,   x = 1"),
        (r"d = 1, \quad y' = \langle x , y \rangle", "d = 1,   y' = ⟨x, y⟩"),
    ],
)
def test_formula(latex: str, text: str) -> None:
    assert plain_formula(latex) == text


def test_a_displayed_formula_is_a_line_of_its_own() -> None:
    docstring = "With :math:`w_i`:\n\n.. math:: a =\n    \\frac12\n\nSee `other` and ``code``, :func:`f`."
    assert plain_text(docstring) == "With w_i:\n\n    a = 1/2\n\nSee `other` and `code`, f."


@pytest.mark.parametrize("latex", ["x^", r"\bar", r"\frac1", "{", "a}", "_", r"\sqrt{", "\\"])
def test_a_formula_that_ends_early_is_no_error(latex: str) -> None:
    assert "\x01" not in plain_formula(latex)


@pytest.mark.parametrize("name", balancers.names())
def test_nothing_of_latex_is_left_of_a_methods_documentation(name: str) -> None:
    text = plain_text(inspect.getdoc(balancers.get(name)) or "")
    assert len(text) > 100
    assert not [part for part in ("\\", ":math:", "math::", "\x01", "\x02") if part in text]
    assert not re.search(r"\b(?:lVert|rVert|frac|nabla|leftarrow|operatorname|quad)(?:[\d_{]|\b)", text)
