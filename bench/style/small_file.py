"""Make drawings and pictures smaller with hardly a visible change, so that a page of dozens of them loads at once."""

import io
import re

from PIL import Image

WIDEST = 16_383
"""Maximum width and height of a WebP, in pixels."""


def small_svg(svg: str) -> str:
    """Return a drawing of Matplotlib's without its line ends, unused ids, idle rotations and needless digits.

    Coordinates of paths keep one digit after the point, others two: a tenth of a point is finer than a screen's pixel.
    """
    used = set(re.findall(r"""(?:url\(|href=")#([\w.-]+)""", svg))
    # Only tags are changed: a label may hold what looks like an attribute.
    svg = re.sub(r"<\w[^>]*>", lambda tag: _small_tag(tag[0], used), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    # Groups without attributes; those that hold groups follow once these are gone.
    while (fewer := re.sub(r"<g>\n((?:(?!</?g\b).)*)</g>\n", r"\1", svg, flags=re.DOTALL)) != svg:
        svg = fewer
    return svg


def small_picture(png: bytes) -> tuple[str, bytes]:
    """Return a picture as WebP with 256 colours, chosen for it, or as it is if WebP can't hold it; and its format."""
    with Image.open(io.BytesIO(png)) as picture:
        if max(picture.size) > WIDEST:
            return "png", png
        # Lossy compression would blur the colours of thin lines.
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).convert("RGB")
    content = io.BytesIO()
    few.save(content, "WEBP", lossless=True, method=6)
    return "webp", content.getvalue()


def _small_tag(tag: str, used: set[str]) -> str:
    tag = re.sub(r' d="([^"]*)"', lambda path: f' d="{_short_path(path[1])}"', tag)
    tag = re.sub(r'( (?:x|y|width|height)="-?\d+\.\d\d)\d+"', r'\1"', tag)
    tag = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", tag)
    return re.sub(r' id="([\w.-]+)"', lambda id_: id_[0] if id_[1] in used else "", tag)


def _short_path(path: str) -> str:
    path = " ".join(re.sub(r"(\.\d)\d+", r"\1", path).split())
    return re.sub(r" ?([MLQCz]) ?", r"\1", path)
