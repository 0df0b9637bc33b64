"""Multi-token prediction: one causal transformer, and a head for each of the next four characters of English text.

A head a distance, on features that all share, is how Gloeckle, Youbi Idrissi, Rozière, Lopez-Paz and Synnaeve train
language models in "Better & Faster Large Language Models via Multi-token Prediction", ICML 2024, section 2. There a
head is a transformer layer before an output layer that all heads have in common. Here it is an output layer of its own,
so that what tasks share lies before the fork.

The text is the language reference that Python's `help` reads: the topics of ``pydoc_data.topics``, sorted by name. It
differs between versions of Python, and so do the scores: see `MultiToken.fingerprint`. Topics quote one another at
length: in Python 3.11, 41 % of the passages of 64 characters in held-out blocks were in the training text too. With
every paragraph kept only where it first appears, 4 % are.
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
CONTEXT = 32
"""Characters that a window has as inputs; it has four more as targets."""
VOCABULARY = 80
"""The 79 most frequent characters of the training text; the last code stands for all others."""
WIDTH, LAYERS = 64, 2
SLOPES = (4.0, 1.0, 1 / 4, 1 / 16)
"""One an attention head: by how much a score falls with each character that lies between. Steeper than in the paper,
where the steepest of four is 1/4; at a few hundred steps that is worth more than positions that are learned.
"""

BLOCK = 32 * CONTEXT + OFFSETS
"""Characters that are held out together: 32 windows, each of which begins where the inputs of the one before end."""
PERIOD, OF_VALIDATION, OF_TEST = 32, (8,), (16, 24)
"""Which of every 32 blocks are held out; all others are training text."""
CHUNK = 64
"""Windows that are evaluated at a time."""
PASSAGES = 3
"""Windows that a picture of a trained model shows."""
MARKS = {" ": "\N{OPEN BOX}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"}
"""How a picture shows characters that are none to see."""


@dataclass(frozen=True)
class Text:
    """The text, and where its windows of 36 characters begin.

    ``train`` has every window that lies within training text, ``validation`` and ``test`` windows whose inputs don't
    overlap. No window has a character of another split.
    """

    alphabet: str
    """The characters with a code of their own, by code."""
    codes: Tensor
    """``(characters,)``, int64."""
    frequencies: Tensor
    """``(80,)``: the share of each code in the training text."""
    train: Tensor
    validation: Tensor
    test: Tensor

    def windows(self, starts: Tensor) -> Tensor:
        """The codes ``(N, 36)`` of the windows that begin at ``starts``, ``(N,)``."""
        return self.codes[starts[:, None] + torch.arange(CONTEXT + OFFSETS, device=starts.device)]

    def to(self, device: torch.device | str) -> "Text":
        tensors = (self.codes, self.frequencies, self.train, self.validation, self.test)
        return Text(self.alphabet, *(tensor.to(device) for tensor in tensors))


class Block(nn.Module):
    """Self-attention, its scores plus a bias ``(4, L, L)``, then a perceptron: ``(N, L, 64)``, to which each adds."""

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
        # Written out: scaled_dot_product_attention is no faster at this size, and not deterministic on CUDA.
        attended = (queries @ keys.mT / math.sqrt(size[-1]) + bias).softmax(-1) @ values
        x = x + self.mix(attended.transpose(1, 2).reshape(x.shape))
        changed: Tensor = x + self.down(F.gelu(self.up(self.perceptron_norm(x))))
        return changed


class Transformer(nn.Module):
    """Codes ``(N, L)``, at most 32 long, to logits ``(N, L, 4, 80)`` of the four characters after each position.

    Where a character stands comes in through attention, whose scores fall with the distance: Press, Smith and Lewis,
    "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", ICLR 2022.
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
    """Predicts ``logits``, of shape ``(80,)``, whatever came before: ``(N, L, 4, 80)``."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, codes: Tensor) -> Tensor:
        return self.get_buffer("logits").expand(*codes.shape, OFFSETS, -1)


@register
class MultiToken(Problem[Text]):
    """The next four characters of English text at once: task "offset i" is the i-th of them.

    Every 32nd block of 1,028 characters is the validation set, two of every 32 are the test set. A loss is in nats, a
    metric in bits; both are means over all positions of a window, those with a short past included.
    """

    name = "multi-token"
    summary = "A small causal transformer with a head for each of the next four characters of Python's own help texts."
    tasks = tuple(f"offset {i}" for i in range(1, OFFSETS + 1))
    primary = "bits per character"
    metrics = (
        Metric(primary, "mean of the four offsets", "bits", False),
        *(
            Metric(
                f"bits per character of {task}",
                f"cross-entropy of the character {i} after the last seen",
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
    """Equal: the best constant predictor is the same for all offsets, the characters' frequencies."""

    def require(self) -> None:
        if importlib.util.find_spec("pydoc_data") is None:
            raise MissingDataError(
                f"{self.name} needs the module pydoc_data.topics of Python's standard library, which this installation "
                f"of Python comes without; on Debian, the package libpython3-stdlib brings it"
            )

    def fingerprint(self) -> str:
        """The SHA-256 of all topics, in the order of their names."""
        self.require()
        return hashlib.sha256("\n\n".join(_topics()).encode()).hexdigest()

    def data(self, generator: Generator, device: torch.device | str) -> Text:
        """The same for every seed: ``generator`` is not used."""
        self.require()
        return _text().to(device)

    def batches(self, data: Text, generator: Generator, batch_size: int) -> Iterator[Tensor]:
        """Codes ``(batch_size, 36)`` of training windows; an epoch has one at every character of the training text."""
        every = batches(len(data.train), batch_size, generator, data.codes.device)
        return (data.windows(data.train.index_select(0, chosen)) for chosen in every)

    def model(self) -> Transformer:
        return Transformer()

    def shared(self, model: nn.Module) -> Shared:
        """The last shared layer is the last block's second linear one: only a norm without parameters follows it."""
        if not isinstance(model, Transformer):
            raise TypeError(f"expected a model that MultiToken.model made, got {type(model).__name__}")
        own = set(model.heads.parameters())
        shared = tuple(parameter for parameter in model.parameters() if parameter not in own)
        last = model.blocks[-1]
        assert isinstance(last, Block)
        return Shared(model.fork, last.down, shared)

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Each offset's cross-entropy in nats, its mean over windows and positions: ``(4,)``."""
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
        """The frequencies of the training text."""
        return Constant(data.frequencies.log())

    def sizes(self, data: Text) -> Mapping[str, int]:
        """Windows: in the training set they overlap, in the others their inputs don't."""
        return {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}

    def draw(self, figure: "Figure", data: Text, model: nn.Module | None = None) -> str:
        """A passage of the test text, with the bits that each of its characters took if there is a ``model``."""
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
            _draw_strip(axes, [MARKS.get(one, one) for one in _written(data, window)], of_window)
        figure.colorbar(rows[-1].images[0], ax=rows[1:], label="bits", pad=0.01, aspect=12, extend="max")
        figure.set_size_inches(9, 6)
        return (
            "Bits per character of the test text for each offset; below, three passages with the bits that each "
            "character took when it was foretold from 1 to 4 characters before."
        )


def _nats(model: nn.Module, windows: Tensor) -> Tensor:
    """The cross-entropy ``(N, 32, 4)`` at each position of ``windows``, of shape ``(N, 36)``, and each offset."""
    logits = model(windows[:, :CONTEXT])
    targets = windows[:, 1:].unfold(1, OFFSETS, 1)  # (N, 32, 4)
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(targets.shape)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


@cache
def _text() -> Text:
    paragraphs: dict[str, str] = {}  # by what is left of them without line breaks and indentation
    for topic in _topics():
        for paragraph in topic.split("\n\n"):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph.strip("\n"))
    paragraphs.pop("", None)
    return encode("\n\n".join(paragraphs.values()))


def encode(text: str) -> Text:
    """``text`` cut into blocks and split, on the CPU."""
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
    """The test text's first lines, and the most frequent characters."""
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    start = int(data.test[0])
    lines = "".join(_written(data, data.codes[start : start + BLOCK].tolist())).split("\n")
    left.set_axis_off()
    left.set_title("The test text begins", fontsize=10)
    left.text(0, 1, "\n".join(lines[:20]), va="top", family="monospace", fontsize=8, parse_math=False)

    shown = data.alphabet[:24]
    right.barh(range(len(shown)), 100 * data.frequencies[: len(shown)].cpu().numpy(), color="#0173b2")
    right.set_yticks(
        range(len(shown)), [MARKS.get(one, one) for one in shown], family="monospace", fontsize=9, parse_math=False
    )
    right.invert_yaxis()
    right.set_xlabel("share of the training text (%)")
    right.set_title("The most frequent characters", fontsize=10)
    entropy = -float(data.frequencies.xlogy(data.frequencies).sum()) / math.log(2)
    return (
        f"Text that models are tested on, and how frequent characters are: without knowing more than that, it takes "
        f"{entropy:.2f} bits to tell one."
    )


def _draw_scores(axes: "Axes", problem: MultiToken, scores: Mapping[str, float], constant: Mapping[str, float]) -> None:
    """A bar an offset, and a line across it for the characters' frequencies."""
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
    """The characters ``written`` of a window, 36, above the ``bits``, ``(32, 4)``, that each took at each offset."""
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
    """The characters of ``codes``, all those without a code of their own as a replacement character."""
    return [data.alphabet[code] if code < len(data.alphabet) else "\N{REPLACEMENT CHARACTER}" for code in codes]
