"""What a page holds of its figures and pictures is small and looks as before."""

import io
import re
from collections.abc import Iterator
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench.report.report_page import inline, with_shared_styles
from bench.style.figure_style import INK, log_axis, save, theme
from bench.style.small_file import small_picture, small_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figure() -> Iterator[Figure]:
    """Return a figure with bands, lines, markers, a clipped curve, a rotated label and a logarithmic axis."""
    with theme():
        figure = Figure(figsize=(5, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        x = np.arange(1, 61)
        for place in range(4):
            y = np.exp(np.sin(x / 7 + place) * 3)
            left.fill_between(x, y / 2, y * 2, alpha=0.2, linewidth=0)
            left.plot(x, y, marker="o", label=f'{place} < & > id="x" d="M 1.2345 2.3" #m1')
        left.set_ylim(1e-2, 10)
        log_axis(left, "y")
        right.barh([0, 1], [3, -1])
        right.set_xlabel("a label", rotation=30)
        figure.legend()
        yield figure


@pytest.fixture(scope="module")
def drawing(figure: Figure) -> str:
    """Return the figure as Matplotlib writes it."""
    content = io.StringIO()
    figure.savefig(content, format="svg")
    return content.getvalue()


def numbers(svg: str) -> list[float]:
    """Return the coordinates of the paths of a drawing, in their order."""
    paths = " ".join(path.get("d", "") for path in ElementTree.fromstring(svg).iter(f"{SVG}path"))
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", paths)]


class TestDrawing:
    def test_has_the_same_texts_at_the_same_places(self, drawing: str) -> None:
        def texts(svg: str) -> list[tuple[str, float, float]]:
            found = ElementTree.fromstring(svg).iter(f"{SVG}text")
            return [("".join(text.itertext()), *(float(text.get(side, "nan")) for side in "xy")) for text in found]

        before, after = texts(drawing), texts(small_svg(drawing))
        assert len(after) > 20
        assert [text for text, *_ in after] == [text for text, *_ in before]
        np.testing.assert_allclose([at for _, *at in after], [at for _, *at in before], atol=0.01)

    def test_has_the_same_paths_to_a_tenth_of_a_point(self, drawing: str) -> None:
        before, after = numbers(drawing), numbers(small_svg(drawing))
        assert len(after) > 500
        np.testing.assert_allclose(after, before, atol=0.1)

    def test_has_the_same_elements_but_for_groups(self, drawing: str) -> None:
        def elements(svg: str) -> list[tuple[str, str | None, str | None]]:
            found = ElementTree.fromstring(svg).iter()
            return [
                (element.tag, element.get("style"), element.get("clip-path"))
                for element in found
                if element.tag != f"{SVG}g"
            ]

        assert elements(small_svg(drawing)) == elements(drawing)

    def test_what_is_referred_to_has_its_id(self, drawing: str) -> None:
        small = small_svg(drawing)
        used = set(re.findall(r"""(?:url\(|href=")#([\w.-]+)""", small))
        assert used
        assert used == {each.get("id") for each in ElementTree.fromstring(small).iter()} - {None}

    def test_keeps_a_rotation_that_turns_something(self, drawing: str) -> None:
        turned = [text for text in re.findall(r"rotate\((-?[\d.]+)", small_svg(drawing)) if float(text)]
        assert turned == ["-30"]

    def test_is_a_quarter_smaller(self, drawing: str) -> None:
        assert len(small_svg(drawing)) < 0.75 * len(drawing)

    def test_methods_keep_their_class_on_the_page(self, tmp_path, figure: Figure) -> None:
        for line in figure.axes[0].lines:
            line.set_gid("method-3")
        save(figure, tmp_path, "one")
        element = inline(tmp_path, "one", "caption")
        assert element.count('class="method-3"') == len(figure.axes[0].lines) == 4
        assert "font-family" not in element  # the page's style sheet chooses it

    @pytest.mark.parametrize("label", ['a "id" and id="b"', f"fill: {INK}", "url(#one) href=#two"])
    def test_labels_that_look_like_attributes_stay_as_they_are(self, tmp_path, figure: Figure, label: str) -> None:
        figure.axes[0].set_title(label)
        save(figure, tmp_path, "one")
        figure.axes[0].set_title("")
        element = inline(tmp_path, "one", "caption")
        assert label in unescape(re.sub(r"<[^>]*>", "", element))


class TestSharedStyles:
    PAGE = "<style>\np { margin: 0 }\n</style><p style='color: red'></p><svg>" + "".join(
        [
            '<path d="M0 0" style="fill: none"/>' * 25,
            '<text x="1" style="fill: var(--ink)">a</text>' * 20,
            '<g class="method-3" style="fill: none"></g>',
            '<use x="1" style="fill: red"/>' * 3,
        ]
    )

    def test_every_element_looks_as_before(self) -> None:
        page = with_shared_styles(self.PAGE)
        rules = dict(re.findall(r"\.(s\d+) \{ (.*?) \}", page.split("</style>")[0]))
        restored = re.sub(r'class="(s\d+)"', lambda name: f'style="{rules[name[1]]}"', page)
        assert restored.split("</style>")[1] == self.PAGE.split("</style>")[1]
        assert sorted(rules.values()) == ["fill: none", "fill: var(--ink)"]
        assert "p { margin: 0 }" in page

    def test_those_of_few_and_of_elements_with_a_class_stay(self) -> None:
        page = with_shared_styles(self.PAGE)
        assert page.count('style="fill: red"') == 3
        assert '<g class="method-3" style="fill: none">' in page


class TestLogarithmicAxis:
    @pytest.mark.parametrize(("lowest", "minor"), [(0.1, True), (1e-3, False)])
    def test_has_small_ticks_over_few_decades_alone(self, lowest: float, minor: bool) -> None:
        panel = Figure().subplots()
        panel.set_ylim(lowest, 10)
        log_axis(panel, "y")
        assert bool(len(panel.yaxis.get_minorticklocs())) is minor


class TestPicture:
    def png(self, pixels: np.ndarray) -> bytes:
        content = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
        return content.getvalue()

    def pixels(self, content: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"), float)

    def test_a_diagram_is_kept_as_it_is(self) -> None:
        pixels = np.full((200, 300, 3), 255)
        pixels[50:150, 100:101] = (1, 115, 178)
        pixels[50:51, :] = (214, 39, 40)
        kind, content = small_picture(png := self.png(pixels))
        assert kind == "webp"
        np.testing.assert_array_equal(self.pixels(content), pixels)
        assert len(content) < len(png)

    def test_a_photograph_looks_the_same_and_is_smaller(self) -> None:
        ramps = np.linspace(0, 255, 300) + np.linspace(0, 60, 200)[:, None]
        pixels = np.clip(ramps[:, :, None] * [1, 0.8, 0.6] + 20 * np.sin(ramps / 9)[:, :, None] * [1, -1, 0], 0, 255)
        _, content = small_picture(png := self.png(pixels))
        assert len(content) < 0.6 * len(png)
        assert abs(self.pixels(content) - self.pixels(png)).mean() < 4

    def test_one_too_wide_for_webp_stays_png(self) -> None:
        png = self.png(np.zeros((2, 16_384, 3)))
        assert small_picture(png) == ("png", png)
