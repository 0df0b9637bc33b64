"""Write the formulas of docstrings, which are LaTeX, as text for a terminal."""

import re
import unicodedata

OPENS, CLOSES, WIDE = "\x01", "\x02", "\x03"
"""Marks after and before which no space is kept, and one of a wide space."""
SYMBOLS = {
    **{
        "alpha": "α",
        "beta": "β",
        "gamma": "γ",
        "delta": "δ",
        "epsilon": "ε",
        "varepsilon": "ε",
        "zeta": "ζ",
        "eta": "η",
    },
    **{"theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ"},
    **{
        "tau": "τ",
        "phi": "φ",
        "chi": "χ",
        "psi": "ψ",
        "omega": "ω",
        "ell": "ℓ",
        "Delta": "Δ",
        "Lambda": "Λ",
        "Pi": "Π",
    },
    **{
        "Sigma": "Σ",
        "Phi": "Φ",
        "Omega": "Ω",
        "sum": "Σ",
        "prod": "∏",
        "int": "∫",
        "partial": "∂",
        "nabla": f"∇{OPENS}",
    },
    **{"le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "approx": "≈", "in": "∈", "to": "→", "sim": "~"},
    **{"propto": "∝", "leftarrow": "←", "rightarrow": "→", "forall": "∀", "cdot": "·", "times": "×", "infty": "∞"},
    **{"dots": "…", "ldots": "…", "top": "ᵀ", "langle": f"⟨{OPENS}", "rangle": f"{CLOSES}⟩"},
    **{"lVert": f"‖{OPENS}", "rVert": f"{CLOSES}‖", "|": "‖"},
    **dict.fromkeys(["left", "right", "big", "Big", "textstyle", "!"], ""),
    **{",": " ", ";": " ", " ": " ", "quad": WIDE, "qquad": WIDE, "\\": "; "},
}
"""By command; one that is missing stands for itself, such as ``\\min``."""
ACCENTS = {"hat": "\u0302", "tilde": "\u0303", "bar": "\u0304", "overline": "\u0305"}
"""By command, the character that puts an accent on the one before it."""
RAISED = dict(zip("0123456789-+ᵀ", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ", strict=True))
INDEX = r"(_\w+)?"
FRACTIONS = ("frac", "dfrac", "tfrac")
TAKE_TEXT = ("text", "operatorname", "mathrm", "mathbf", "mathbb", "mathcal")

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.")
_INLINE, _DISPLAYED = re.compile(r":math:`([^`]*)`"), re.compile(r"^( *)\.\. math::(.*?)(?=\n\s*\n|\Z)", re.M | re.S)
_REFERENCE = re.compile(r":\w+:`([^`]*)`")


def plain_text(docstring: str) -> str:
    """Return a docstring with its formulas as text, and without the marks of references and code."""
    text = _DISPLAYED.sub(lambda found: f"{found[1]}    {plain_formula(found[2])}", docstring)
    text = _INLINE.sub(lambda found: plain_formula(found[1]), text)
    return _REFERENCE.sub(r"\1", text).replace("``", "`")


def plain_formula(latex: str) -> str:
    r"""Return a formula as text: ``\frac{a + b}{c_i}`` as ``(a + b)/c_i``."""
    text = _Reader(latex).until_end()
    text = re.sub(rf"{OPENS} *| *{CLOSES}|(?<=\() +| +(?=[),;.])", "", text)
    text = re.sub(rf" *{WIDE} *", "   ", re.sub(r" +", " ", text)).strip()
    return unicodedata.normalize("NFC", text)


class _Reader:
    """Reads a formula token by token."""

    def __init__(self, latex: str) -> None:
        self._tokens = [" " if token.isspace() else token for token in _TOKEN.findall(latex)]
        self._place = 0
        self._in_cases = False

    def until_end(self) -> str:
        """Return what follows, up to the brace that closes the group."""
        parts = []
        while self._token() not in ("", "}"):
            parts.append(self._next())
        return "".join(parts)

    def _next(self) -> str:
        token = self._tokens[self._place]
        self._place += 1
        if token == "{":
            inside = self.until_end()
            self._place += 1
            return inside
        if token == "^":
            return _raised(self._argument())
        if token == "_":
            return f"_{_grouped(self._argument())}"
        if token == "&":
            return " if " if self._in_cases else ""
        return self._command(token[1:]) if token.startswith("\\") else token

    def _argument(self) -> str:
        while self._token() == " ":
            self._place += 1
        return self._next().strip() if self._token() else ""

    def _token(self) -> str:
        """Return the next token; an empty one at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _command(self, name: str) -> str:
        if name in FRACTIONS:
            return f"{_grouped(self._argument(), INDEX)}/{_grouped(self._argument(), INDEX)}"
        if name == "sqrt":
            return f"√{_grouped(self._argument(), INDEX)}"
        if name in ACCENTS:
            letters = self._argument()
            return letters[:1] + ACCENTS[name] + letters[1:]
        if name in TAKE_TEXT:
            return self._argument()
        if name in ("begin", "end"):
            environment = self._argument()
            self._in_cases = name == "begin" and environment == "cases"
            return ""
        if name in SYMBOLS:
            return SYMBOLS[name]
        return f"{name} " if self._token().startswith("\\") else name


def _grouped(text: str, index: str = "") -> str:
    """Return ``text`` in parentheses, unless it is one name or number, which may have an index of this pattern."""
    return text if re.fullmatch(rf"[^\W_]+[\u0300-\u036f]?{index}|.", text) else f"({text})"


def _raised(text: str) -> str:
    return "".join(RAISED[each] for each in text) if RAISED.keys() >= set(text) else f"^{_grouped(text)}"
