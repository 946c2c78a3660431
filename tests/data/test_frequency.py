"""`Frequency`: names, seasons, the grid and its inverse, calendar features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.frequency import Frequency
from ostinato.errors import InputError

SECONDS = ("s", "10s", "min", "5min", "15min", "30min", "h", "2h", "6h", "7h", "12h", "D", "2D", "W", "2W")
MONTHS = ("MS", "2MS", "5MS", "QS", "2QS", "YS", "10YS", "ME", "QE", "YE")
NAMES = (*SECONDS, *MONTHS, "B", "step", "5step")


def first_time(frequency: Frequency) -> np.datetime64:
    return np.datetime64("2015-12-31T00:00:00" if frequency.at_end else "2016-01-29T00:00:00", "s")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_parses_to_itself(name: str) -> None:
    frequency = Frequency.parse(name)
    assert frequency.name == name
    assert Frequency.from_json(frequency.to_json()) == frequency
    assert Frequency.parse(frequency) is frequency


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *(("1h", "h"), ("H", "h"), ("60min", "h"), ("15T", "15min"), ("24h", "D"), ("7D", "W"), ("M", "MS")),
        *(
            ("3MS", "QS"),
            ("Q", "QS"),
            ("12M", "YS"),
            ("Y", "YS"),
            ("A", "YS"),
            ("W-SUN", "W"),
            (" 2 h ", "2h"),
        ),
        *(("monthly", "MS"), ("Daily", "D"), ("90s", "90s"), ("120s", "2min")),
    ],
)
def test_other_spellings(written: str, name: str) -> None:
    assert Frequency.parse(written).name == name


@pytest.mark.parametrize("wrong", ["", "x", "0h", "2B", "h2", "-1D", "1.5h", "99999999999h", "m"])
def test_an_unknown_name_lists_the_known_ones(wrong: str) -> None:
    with pytest.raises(InputError, match="15min"):
        Frequency.parse(wrong)


@pytest.mark.parametrize(
    ("name", "season", "seasons"),
    [
        ("min", 1440, (60, 1440)),
        ("15min", 96, (96, 672)),
        ("30min", 48, (48, 336)),
        ("h", 24, (24, 168)),
        ("7h", 24, (24,)),
        ("D", 7, (7, 365)),
        ("B", 5, (5, 260)),
        ("W", 52, (52,)),
        ("MS", 12, (12,)),
        ("QS", 4, (4,)),
        ("YS", 1, ()),
        ("step", 1, ()),
    ],
)
def test_seasons(name: str, season: int, seasons: tuple[int, ...]) -> None:
    frequency = Frequency.parse(name)
    assert (frequency.season, frequency.seasons) == (season, seasons)


def test_a_season_of_the_user_leads() -> None:
    frequency = Frequency.parse("h").with_season(12)
    assert (frequency.season, frequency.seasons, frequency.name) == (12, (12, 24, 168), "h")
    assert Frequency.from_json(frequency.to_json()) == frequency
    with pytest.raises(InputError, match="at least 1"):
        frequency.with_season(0)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), offset=st.integers(-300, 300), n=st.integers(0, 50))
def test_index_inverts_times(name: str, offset: int, n: int) -> None:
    frequency = Frequency.parse(name)
    start = first_time(frequency)
    times = frequency.times(start, n, offset)
    assert times.dtype == np.dtype("datetime64[s]")
    assert frequency.index(start, times).tolist() == list(range(offset, offset + n))
    assert (frequency.phase(times) == frequency.phase(np.asarray(start))).all()
    assert (frequency.calendar(start, n, offset) == frequency.calendar(start, n + 3, offset)[:n]).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("s", "step")])
def test_a_time_beside_the_grid_is_refused(name: str) -> None:
    frequency = Frequency.parse(name)
    start = first_time(frequency)
    beside = frequency.times(start, 4)[2:3] + np.timedelta64(1, "s")
    with pytest.raises(InputError, match="not on the grid"):
        frequency.index(start, beside)


def test_months_keep_their_day_and_shorten_it() -> None:
    months = Frequency.parse("MS")
    found = months.format(months.times(np.datetime64("2020-01-31"), 4))
    assert found == ["2020-01-31", "2020-02-29", "2020-03-31", "2020-04-30"]
    ends = Frequency.parse("ME")
    assert ends.format(ends.times(np.datetime64("2020-02-29"), 3)) == [
        "2020-02-29",
        "2020-03-31",
        "2020-04-30",
    ]


def test_business_days_skip_the_weekend() -> None:
    days = Frequency.parse("B")
    friday = np.datetime64("2020-01-03")
    assert days.format(days.times(friday, 3, -1)) == ["2020-01-02", "2020-01-03", "2020-01-06"]
    with pytest.raises(InputError, match="not on the grid"):
        days.index(friday, np.array(["2020-01-04"], "M8[s]"))


def test_format_shows_the_clock_only_where_there_is_one() -> None:
    start = np.datetime64("2020-01-01")
    hours, steps = Frequency.parse("h"), Frequency.parse("5step")
    assert hours.format(hours.times(start, 2)) == ["2020-01-01 00:00:00", "2020-01-01 01:00:00"]
    assert steps.format(steps.times(np.datetime64(10, "s"), 3)) == ["10", "15", "20"]
    shifted = Frequency.parse("D").times(np.datetime64("2020-01-01T06:00"), 1)
    assert Frequency.parse("D").format(shifted) == ["2020-01-01 06:00:00"]


@pytest.mark.parametrize("name", NAMES)
def test_every_calendar_feature_varies_and_is_bounded(name: str) -> None:
    frequency = Frequency.parse(name)
    one_year = {"s": 100_000, "10s": 100_000, "min": 100_000}.get(name, 20_000)
    features = frequency.calendar(first_time(frequency), one_year)
    assert features.shape == (one_year, len(frequency.calendar_names))
    assert features.dtype == np.float32
    assert np.abs(features).max(initial=0) <= 1
    spread = features.std(axis=0)
    assert (spread > 1e-3).all(), dict(zip(frequency.calendar_names, spread.tolist(), strict=True))
    assert len(set(frequency.calendar_names)) == len(frequency.calendar_names)


@pytest.mark.parametrize(
    ("name", "period"), [("h", 24), ("D", 7), ("MS", 12), ("QS", 4), ("B", 5), ("30min", 48)]
)
def test_features_tell_all_points_of_a_season_apart_and_repeat(name: str, period: int) -> None:
    frequency = Frequency.parse(name)
    start = np.datetime64("2019-04-01T00:00:00")
    cycle = {"h": "hour_of_day", "30min": "hour_of_day", "D": "day_of_week", "B": "day_of_week"}
    wanted = [
        i for i, n in enumerate(frequency.calendar_names) if n.startswith(cycle.get(name, "month_of_year"))
    ]
    found = frequency.calendar(start, 2 * period)[:, wanted]
    np.testing.assert_allclose(found[:period], found[period:], atol=1e-6)
    distance = np.abs(found[:period, None] - found[None, :period]).max(axis=2) + np.eye(period)
    assert distance.min() > 0.05, f"two points of the season are {distance.min():.4f} apart"


def test_no_feature_where_nothing_repeats() -> None:
    assert Frequency.parse("YS").calendar_names == ()
    assert Frequency.parse("step").calendar(np.datetime64(0, "s"), 5).shape == (5, 0)
