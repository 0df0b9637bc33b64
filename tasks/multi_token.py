"""The problem ``multi-token``: a causal transformer with a head for each of the next four characters of English text.

Gloeckle, Youbi Idrissi, Rozière, Lopez-Paz and Synnaeve train language models with one head per distance on shared
features, in "Better & Faster Large Language Models via Multi-token Prediction", ICML 2024, section 2. There a head is a
transformer layer, followed by an output layer that all heads share. Here each head is an output layer of its own, so
that all shared parameters lie before the fork.

The text is the language reference that Python's `help` shows: the topics of ``pydoc_data.topics``, sorted by name. It
differs between versions of Python, and so do the scores: see `MultiToken.fingerprint`. Topics quote each other at
length. In Python 3.11, 41 % of the passages of 64 characters in held-out blocks also occurred in the training text.
Every paragraph is therefore kept only at its first occurrence, which reduces this to 4 %.
"""

import hashlib
import importlib.util
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from balancers import Fork, LinearHeads

from .batch_order import batches
from .problem import Metric, MissingDataError, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OFFSETS = 4
"""Number of tasks: the distances at which characters are predicted."""
CONTEXT = 32
"""Number of input characters in a window. Four more characters follow as targets."""
VOCABULARY = 80
"""Number of codes: one for each of the 79 most frequent characters of the training text, and one for all others."""
WIDTH, LAYERS = 64, 2
"""Number of features, and of transformer layers."""
SLOPES = (4.0, 1.0, 1 / 4, 1 / 16)
"""Slope of each attention head: the amount by which its scores fall with each character of distance.

These slopes are steeper than in the paper, where the steepest of four is 1/4. With a few hundred training steps, they
give better scores than learned positions.
"""

BLOCK = 32 * CONTEXT + OFFSETS
"""Number of characters that are held out together: 32 windows, each starting where the previous one's inputs end."""
PERIOD, OF_VALIDATION, OF_TEST = 32, (8,), (16, 24)
"""Blocks of the validation set and of the test set, of every 32, counted from 0. All others are training text."""
CHUNK = 64
"""Number of windows that are evaluated at a time."""
PASSAGES = 3
"""Number of windows in a picture of a trained model."""
MARKS = {" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"}
"""Visible replacements for invisible characters in pictures."""


@dataclass(frozen=True)
class Text:
    """The text, and the positions at which its windows of 36 characters start.

    ``train`` has the start of every window that lies within training text. The windows of ``validation`` and ``test``
    do not overlap in their inputs. No window contains a character of another split.
    """

    alphabet: str
    """The characters that have a code of their own, in the order of their codes."""
    codes: Tensor
    """The code of each character of the text, shape ``(characters,)``, int64."""
    frequencies: Tensor
    """The share of each code in the training text, shape ``(80,)``."""
    train: Tensor
    """Starts of the training windows, shape ``(N,)``, int64."""
    validation: Tensor
    """Starts of the validation windows, shape ``(N,)``, int64."""
    test: Tensor
    """Starts of the test windows, shape ``(N,)``, int64."""

    def windows(self, starts: Tensor) -> Tensor:
        """Return the codes, shape ``(N, 36)``, of the windows that begin at ``starts``, shape ``(N,)``."""
        return self.codes[starts[:, None] + torch.arange(CONTEXT + OFFSETS, device=starts.device)]

    def to(self, device: torch.device | str) -> "Text":
        tensors = (self.codes, self.frequencies, self.train, self.validation, self.test)
        return Text(self.alphabet, *(tensor.to(device) for tensor in tensors))


class Block(nn.Module):
    """A transformer layer: self-attention and a perceptron, each added to its input of shape ``(N, L, 64)``.

    The attention scores are shifted by ``bias``, of shape ``(4, L, L)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.perceptron_norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        num_samples, length, _ = x.shape
        size = (num_samples, length, 3, len(SLOPES), WIDTH // len(SLOPES))
        queries, keys, values = self.queries_keys_values(self.attention_norm(x)).view(size).permute(2, 0, 3, 1, 4)
        # Not scaled_dot_product_attention: it is no faster at this size, and not deterministic on CUDA.
        attended = (queries @ keys.mT / math.sqrt(size[-1]) + bias).softmax(-1) @ values
        x = x + self.mix(attended.transpose(1, 2).reshape(x.shape))
        changed: Tensor = x + self.down(F.gelu(self.up(self.perceptron_norm(x))))
        return changed


class Transformer(nn.Module):
    """A causal transformer that predicts the four characters after each position.

    The inputs are codes of shape ``(N, L)``, with L at most 32. The outputs are logits of shape ``(N, L, 4, 80)``.

    Positions enter through attention only, whose scores fall linearly with the distance: Press, Smith and Lewis, "Train
    Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", ICLR 2022.
    """

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.heads = LinearHeads(OFFSETS, WIDTH, VOCABULARY)
        place = torch.arange(CONTEXT)
        distance = (place[:, None] - place).float()
        future = distance < 0
        bias = -torch.tensor(SLOPES)[:, None, None] * distance
        self.register_buffer("bias", bias.masked_fill(future, -math.inf), persistent=False)

    @property
    def fork(self) -> Fork:
        return self.heads.fork

    def forward(self, codes: Tensor) -> Tensor:
        length = codes.shape[1]
        bias = self.get_buffer("bias")[:, :length, :length]
        x = self.characters(codes)
        for block in self.blocks:
            x = block(x, bias)
        logits: Tensor = self.heads(self.norm(x))
        return logits


class Constant(nn.Module):
    """A model that predicts the same ``logits``, shape ``(80,)``, everywhere. Its outputs are ``(N, L, 4, 80)``."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, codes: Tensor) -> Tensor:
        return self.get_buffer("logits").expand(*codes.shape, OFFSETS, -1)


@register
class MultiToken(Problem[Text]):
    """The next four characters of English text, predicted at once.

    Data: the help texts of Python's standard library, divided into blocks of 1,028 characters. Of every 32 blocks, one
    is in the validation set and two are in the test set. A batch holds ``batch_size`` windows of 36 character codes: 32
    inputs and 4 targets.

    Tasks: "offset 1" to "offset 4". Task "offset i" is to predict the i-th of the next four characters, at every
    position of a window.

    Model: a causal transformer from ``batch_size x 32`` codes to ``batch_size x 32 x 4 x 80`` logits.

    Metrics: each offset's cross-entropy in bits per character, and their mean, which is the primary metric. Losses are
    the same in nats. All are means over all positions of a window, including the first ones, which have little context.

    Source: Gloeckle et al., "Better & Faster Large Language Models via Multi-token Prediction", ICML 2024, section 2.

    Example::

        problem = tasks.create("multi-token")
        logits = problem.model()(torch.zeros(2, 32, dtype=torch.long))  # (2, 32, 4, 80)
    """

    name = "multi-token"
    summary = "A small causal transformer with a head for each of the next four characters of Python's own help texts."
    tasks = tuple(f"offset {i}" for i in range(1, OFFSETS + 1))
    primary = "bits per character"
    metrics = (
        Metric(primary, "mean over the four offsets", "bits", False),
        *(
            Metric(
                f"bits per character of {task}",
                f"cross-entropy of the character {i} places after the last known one",
                "bits",
                False,
                task,
            )
            for i, task in enumerate(tasks, 1)
        ),
    )
    recipe = Recipe("adam", lr=3e-3, schedule="constant", batch_size=8, steps=360)
    full = replace(recipe, schedule="cosine", steps=5_000)
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (1.0,) * OFFSETS}
    """Equal weights: for all offsets, the best constant predictor is the same, the characters' frequencies."""

    def require(self) -> None:
        """Check that this installation of Python has the help texts.

        Raises:
            MissingDataError: If it hasn't.
        """
        if importlib.util.find_spec("pydoc_data") is None:
            raise MissingDataError(
                f"{self.name} needs the module pydoc_data.topics of Python's standard library, which this installation "
                f"of Python lacks; on Debian, it is in the package libpython3-stdlib"
            )

    def fingerprint(self) -> str:
        """Return the SHA-256 of all topics, in the order of their names."""
        self.require()
        return hashlib.sha256("\n\n".join(_topics()).encode()).hexdigest()

    def data(self, generator: Generator, device: torch.device | str) -> Text:
        """Return the text, which is the same for every seed: ``generator`` is not used."""
        self.require()
        return _text().to(device)

    def batches(self, data: Text, generator: Generator, batch_size: int) -> Iterator[Tensor]:
        """Return batches of training windows: codes of shape ``(batch_size, 36)``.

        In an epoch, one window starts at every character of the training text at which a whole window fits.
        """
        every = batches(len(data.train), batch_size, generator, data.codes.device)
        return (data.windows(data.train.index_select(0, chosen)) for chosen in every)

    def model(self) -> Transformer:
        return Transformer()

    def shared(self, model: nn.Module) -> Shared:
        """Return everything before the heads as the shared part.

        The last shared layer is the second linear layer of the last block. Only a norm without parameters follows it.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Transformer):
            raise TypeError(f"expected a model that MultiToken.model made, got {type(model).__name__}")
        own = set(model.heads.parameters())
        shared = tuple(parameter for parameter in model.parameters() if parameter not in own)
        last = model.blocks[-1]
        assert isinstance(last, Block)
        return Shared(model.fork, last.down, shared)

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Return each offset's cross-entropy in nats, a mean over windows and positions, shape ``(4,)``."""
        return _nats(model, batch).mean((0, 1))

    def evaluate(
        self, model: nn.Module, data: Text, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        starts = {"validation": data.validation, "test": data.test}[split]
        with evaluating(model):
            sums = sum(_nats(model, data.windows(chunk)).sum((0, 1)) for chunk in starts.split(CHUNK))
        assert isinstance(sums, Tensor)
        bits = (sums / (len(starts) * CONTEXT * math.log(2))).tolist()
        names = (metric.name for metric in self.metrics)
        return dict(zip(names, [sum(bits) / OFFSETS, *bits], strict=True))

    def constant(self, data: Text) -> Constant:
        """Return a model that predicts the characters' frequencies in the training text."""
        return Constant(data.frequencies.log())

    def sizes(self, data: Text) -> Mapping[str, int]:
        """Return the number of windows in each split. Training windows overlap; the inputs of the others don't."""
        return {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}

    def draw(self, figure: "Figure", data: Text, model: nn.Module | None = None) -> str:
        """Draw part of the test text and character frequencies, or the bits per character of a trained ``model``."""
        if model is None:
            return _draw_text(figure, data)
        scores = self.evaluate(model, data, "test")
        constant = self.evaluate(self.constant(data), data, "test")
        windows = data.windows(data.test[:: len(data.test) // PASSAGES][:PASSAGES])
        with evaluating(model):
            bits = _nats(model, windows) / math.log(2)

        rows = figure.subplots(1 + PASSAGES, 1, height_ratios=(3, *[1] * PASSAGES))
        _draw_scores(rows[0], self, scores, constant)
        for axes, window, of_window in zip(rows[1:], windows.tolist(), bits.cpu(), strict=True):
            _draw_strip(axes, [MARKS.get(character, character) for character in _written(data, window)], of_window)
        figure.colorbar(rows[-1].images[0], ax=rows[1:], label="bits", pad=0.01, aspect=12, extend="max")
        figure.set_size_inches(9, 6)
        return (
            "Bits per character of the test text, for each offset. Below, three passages: the colours show the bits "
            "of each character when it was predicted from 1, 2, 3 or 4 characters before."
        )


def _nats(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the cross-entropy, shape ``(N, 32, 4)``, at each position and offset of ``windows``, shape ``(N, 36)``."""
    logits = model(windows[:, :CONTEXT])
    targets = windows[:, 1:].unfold(1, OFFSETS, 1)  # (N, 32, 4)
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(targets.shape)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


@cache
def _text() -> Text:
    paragraphs: dict[str, str] = {}  # the key is the paragraph with normalised white space
    for topic in _topics():
        for paragraph in topic.split("\n\n"):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph.strip("\n"))
    paragraphs.pop("", None)
    return encode("\n\n".join(paragraphs.values()))


def encode(text: str) -> Text:
    """Encode ``text``, divide it into blocks and assign these to the splits. The tensors are on the CPU."""
    kinds = torch.arange(len(text)) // BLOCK % PERIOD
    held_out = torch.isin(kinds, torch.tensor(OF_VALIDATION + OF_TEST))
    counts = Counter(character for character, out in zip(text, held_out.tolist(), strict=True) if not out)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = "".join(ordered[: VOCABULARY - 1])
    code_of = {character: code for code, character in enumerate(alphabet)}
    codes = torch.tensor([code_of.get(character, VOCABULARY - 1) for character in text])
    frequencies = codes[~held_out].bincount(minlength=VOCABULARY) / (~held_out).sum()

    size = CONTEXT + OFFSETS
    train = (~held_out.unfold(0, size, 1).any(1)).nonzero().flatten()
    whole = len(text) // BLOCK
    within = torch.arange(0, BLOCK - size + 1, CONTEXT)
    held = []
    for positions in (OF_VALIDATION, OF_TEST):
        blocks = torch.isin(torch.arange(whole) % PERIOD, torch.tensor(positions)).nonzero()
        held.append((blocks * BLOCK + within).flatten())
    return Text(alphabet, codes, frequencies, train, *held)


def _draw_text(figure: "Figure", data: Text) -> str:
    """Draw the first lines of the test text, and the most frequent characters."""
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    start = int(data.test[0])
    lines = "".join(_written(data, data.codes[start : start + BLOCK].tolist())).split("\n")
    left.set_axis_off()
    left.set_title("The test text begins", fontsize=10)
    left.text(0, 1, "\n".join(lines[:20]), va="top", family="monospace", fontsize=8, parse_math=False)

    shown = data.alphabet[:24]
    right.barh(range(len(shown)), 100 * data.frequencies[: len(shown)].cpu().numpy(), color="#0173b2")
    right.set_yticks(
        range(len(shown)),
        [MARKS.get(character, character) for character in shown],
        family="monospace",
        fontsize=9,
        parse_math=False,
    )
    right.invert_yaxis()
    right.set_xlabel("share of the training text (%)")
    right.set_title("The most frequent characters", fontsize=10)
    entropy = -float(data.frequencies.xlogy(data.frequencies).sum()) / math.log(2)
    return (
        f"The beginning of the test text, and the frequencies of characters. A predictor that knows only these "
        f"frequencies needs {entropy:.2f} bits per character."
    )


def _draw_scores(axes: "Axes", problem: MultiToken, scores: Mapping[str, float], constant: Mapping[str, float]) -> None:
    """Draw one bar per offset, with a line across it for the score of the characters' frequencies."""
    names = [metric.name for metric in problem.metrics if metric.task is not None]
    places = range(len(names))
    bars = axes.bar(places, [scores[name] for name in names], width=0.6, color="#0173b2", label="this model")
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    of_constant = [constant[name] for name in names]
    left, right = ([place + side for place in places] for side in (-0.4, 0.4))
    axes.hlines(of_constant, left, right, colors="#de8f05", linewidth=3, label="characters' frequencies")
    axes.set_xticks(places, problem.tasks)
    axes.set_ylabel("bits per character")
    axes.set_ylim(0, 1.35 * max(of_constant))
    axes.legend(ncols=2, loc="upper left")
    axes.set_title("test text", fontsize=10)


def _draw_strip(axes: "Axes", written: Sequence[str], bits: Tensor) -> None:
    """Draw a window's 36 characters, ``written``, above the ``bits`` of each at each offset, shape ``(32, 4)``."""
    table = torch.full((OFFSETS, len(written)), math.nan)
    for offset in range(OFFSETS):
        table[offset, 1 + offset : 1 + offset + CONTEXT] = bits[:, offset]
    axes.imshow(table[:, OFFSETS : CONTEXT + 1].numpy(), cmap="cividis", vmin=0, vmax=8, aspect="auto")
    axes.xaxis.tick_top()
    shown = written[OFFSETS : CONTEXT + 1]
    axes.set_xticks(range(len(shown)), shown, family="monospace", fontsize=10, parse_math=False)
    axes.tick_params(top=False, left=False, pad=1)
    axes.set_yticks(range(OFFSETS), [f"offset {i}" for i in range(1, OFFSETS + 1)], fontsize=8)


def _written(data: Text, codes: Sequence[int]) -> list[str]:
    """Return the characters of ``codes``. The code for all other characters becomes a replacement character."""
    return [data.alphabet[code] if code < len(data.alphabet) else "\N{REPLACEMENT CHARACTER}" for code in codes]
