"""A stream equals the offline back-test (law 6), survives storage, and refuses what it cannot use."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.preparation import Preparation
from ostinato.errors import DataError, InputError
from ostinato.tasks.forecast import session as sessions

pytestmark = pytest.mark.usefixtures("without_ets")


def offline(model, table, known_until=None):
    """Distributions at every origin of every row, keyed by (series, steps known)."""
    whole = model.read(table)
    found = {}
    for i, series in enumerate(whole.series):
        for c, target in enumerate(whole.targets):
            prepared = model._prepare(whole, [(i, c)])
            known = np.flatnonzero(~np.isnan(series.values[:, c]))[0]
            at = np.arange(known, series.length - model.horizon)
            said = model.engine_.forecast(prepared, np.zeros(len(at), dtype=np.int64), at)
            for k, t in enumerate(at):
                found[series.id, target, t + 1] = (said.quantiles[k], said.mean[k], series)
    return found


def assert_close(found, expected, where):
    size = np.abs(expected).max()
    error = np.abs(found - expected).max() / size
    assert error < 2e-5, f"{where}: {error:.2e} of the largest value"


def stream(model, table, kit, session, every=1):
    """Feed row by row, series interleaved; compare with the back-test after every row."""
    expected = offline(model, table)
    rows = {}
    for row in kit.rows_of(table):
        rows.setdefault(row["id"], []).append(row)
    compared = 0
    for t in range(max(map(len, rows.values()))):
        for ident, mine in rows.items():
            if t >= len(mine):
                continue
            session.update(mine[t])
            if (ident, "y", t + 1) not in expected or t % every:
                continue
            for target in session._names:
                quantiles, mean, series = expected[ident, target, t + 1]
                known = series.known[t + 1 : t + 1 + model.horizon]
                said = session.distribution(ident, target, known)
                assert_close(said.quantiles[0], quantiles, (ident, target, t))
                assert_close(said.mean[0], mean, (ident, target, t))
                compared += 1
    return compared


def test_row_by_row_equals_the_back_test_at_every_origin(fitted, kit):
    model, table = fitted
    every = 1 if model.head == "quantile" else 5
    compared = stream(model, table, kit, model.session(), every)
    assert compared >= 40


def test_several_targets_stream_together(kit):
    table = kit.long_table((40, 30), targets=2, extras=False, missing=0.2)
    model = kit.quick(3, steps=5).fit(table, **{**kit.ROLES, "target": ["y", "y1"]})
    assert stream(model, table, kit, model.session(), 3) > 30


def test_history_then_rows_equals_predict(plain, kit):
    model, table = plain
    rows = kit.rows_of(table)
    kept = [row for row in rows if row["id"] != "s1" or row["month"] < "2003-06"]
    session = model.session({name: [row[name] for row in kept] for name in table})
    session.update(row for row in rows if row["id"] == "s1" and row["month"] >= "2003-06")
    streamed, predicted = session.forecast(), model.predict(table)
    assert sorted(zip(streamed["series"], streamed["time"], strict=True)) == sorted(
        zip(predicted["series"], predicted["time"], strict=True)
    )
    np.testing.assert_allclose(streamed["q0.5"], predicted["q0.5"], rtol=2e-5)


def test_missing_steps_between_updates_count_as_missing_values(plain, kit):
    model, table = plain
    rows = [row for row in kit.rows_of(table) if row["id"] == "s0"]
    gap = set(range(30, 37)) | {50}
    session = model.session()
    session.update(row for t, row in enumerate(rows) if t not in gap)
    holes = [{**row, "y": np.nan} if t in gap else row for t, row in enumerate(rows)]
    expected = model.predict({name: [row[name] for row in holes] for name in table})
    np.testing.assert_allclose(session.forecast()["mean"], expected["mean"], rtol=2e-5)


def test_bytes_go_on_in_another_process(fitted, kit, tmp_path):
    model, table = fitted
    rows = kit.rows_of(table)
    first, rest = [r for r in rows if r["month"] < "2003-01"], [r for r in rows if r["month"] >= "2003-01"]
    session = model.session()
    session.update(first)
    (tmp_path / "session").write_bytes(session.to_bytes())
    model.save(tmp_path / "run")
    program = (
        "import json, sys, pathlib, torch, ostinato as ot\n"
        "torch.set_num_threads(1)\n"
        "session = ot.load(sys.argv[1]).session().load_bytes(pathlib.Path(sys.argv[2]).read_bytes())\n"
        "session.update(json.loads(sys.argv[3]))\n"
        "pathlib.Path(sys.argv[2]).write_bytes(session.to_bytes())\n"
    )
    sent = json.dumps(
        [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rest]
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "run", tmp_path / "session", sent], check=True)
    session.update(rest)
    again = model.session().load_bytes((tmp_path / "session").read_bytes())
    for ident in ("s0", "s1", "s2"):
        known = np.zeros((6, 1))
        assert_close(
            again.distribution(ident, known=known).quantiles,
            session.distribution(ident, known=known).quantiles,
            ident,
        )


def test_a_restored_session_is_the_same_to_the_bit(plain):
    model, table = plain
    session = model.session(table)
    stored = session.to_bytes()
    assert model.session().load_bytes(stored).to_bytes() == stored
    assert model.session().load_bytes(stored).forecast() == session.forecast()


def test_bytes_that_are_no_session_are_refused(plain, kit):
    model, table = plain
    stored = model.session(table).to_bytes()
    rng = np.random.default_rng(0)
    length = int.from_bytes(stored[:8], "little")
    garbage = [
        b"",
        b"x",
        stored[:7],
        stored[:100],
        stored[:-1],
        bytes(rng.integers(0, 256, 500, dtype=np.uint8)),
    ]
    garbage += [stored[:8] + b"[" * length + stored[8 + length :]]
    for wrong in garbage:
        session = model.session(table)
        with pytest.raises(InputError, match="not a saved session"):
            session.load_bytes(wrong)
        assert session.to_bytes() == stored, "a refused load changed the session"
    other = kit.quick(steps=2, seed=3).fit(table, **kit.ROLES)
    with pytest.raises(InputError, match="another forecaster"):
        other.session().load_bytes(stored)
    newer = stored.replace(b'\\"version\\": 1', b'\\"version\\": 9')
    assert newer != stored
    with pytest.raises(InputError, match="format 9, this version reads 1"):
        model.session().load_bytes(newer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"month": "2003-11"}, "must be a later step"),
        ({"month": "2004-01"}, "must be a later step"),
        ({"month": "2004-02-15"}, "must be a later step"),
        ({"month": "yesterday"}, "row 0, time 'yesterday'"),
        ({"month": None}, "row 0, time None"),
        ({"month": "02/03/2004"}, "day/month or month/day"),
        ({"month": "99999-01"}, "row 0"),
        ({"month": "9999-01"}, "row 0"),
        ({"y": "much"}, "row 0, column 'y': expected a number, found 'much'"),
        ({"y": float("inf")}, "expected a finite number"),
        ({"y": ...}, "there is no column 'y'"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_and_change_nothing(plain, kit, change, message, monkeypatch):
    model, table = plain
    monkeypatch.setattr(sessions, "LONGEST_GAP", 50)
    session = model.session()
    rows = [row for row in kit.rows_of(table) if row["id"] == "s0" and row["month"] <= "2004-01"]
    session.update(rows)
    before = session.to_bytes()
    row = {**rows[-1], "month": "2004-02", **change}
    row = {k: v for k, v in row.items() if v is not ...}
    with pytest.raises(DataError, match=message):
        session.update(row)
    assert session.to_bytes() == before


def test_future_known_columns_are_required(fitted, kit):
    model, table = fitted
    session = model.session()
    session.update(row for row in kit.rows_of(table) if row["id"] == "s0")
    ahead = [
        {"id": "s0", "month": str(np.datetime64("2008-01") + k), "price": 1.0, "y": None} for k in range(6)
    ]
    assert len(session.forecast(ahead)["mean"]) == 6
    with pytest.raises(DataError, match=r"known columns have no value at 1 of the 6.*2008-06"):
        session.forecast(ahead[:5])
    ahead[2]["price"] = None
    with pytest.raises(DataError, match=r"2008-03"):
        session.forecast(ahead)


def test_a_series_without_values_is_not_forecast(plain):
    model, _ = plain
    session = model.session()
    session.update({"id": "empty", "month": "2000-01", "y": None})
    assert session.forecast()["series"] == []
    with pytest.raises(InputError, match="'empty' has no value yet"):
        session.distribution("empty")
    with pytest.raises(InputError, match="no series 'other' yet"):
        session.distribution("other")


def test_a_session_takes_a_history_once(plain):
    model, table = plain
    session = model.session(table)
    with pytest.raises(InputError, match="has series 's0' already"):
        session.feed(model.read(table))


def test_forecasting_leaves_the_session_as_it_was(fitted, kit):
    model, table = fitted
    session = model.session()
    session.update(row for row in kit.rows_of(table) if row["id"] == "s1")
    before = session.to_bytes()
    first = session.distribution("s1", known=np.zeros((6, 1))).quantiles
    np.testing.assert_array_equal(session.distribution("s1", known=np.zeros((6, 1))).quantiles, first)
    assert session.to_bytes() == before


def test_the_memory_and_the_work_of_an_update_do_not_grow_with_the_stream(plain, monkeypatch):
    model, _ = plain
    session = model.session()
    rng = np.random.default_rng(0)
    rows = [
        {"id": "a", "month": str(np.datetime64("2000-01") + t), "y": y}
        for t, y in enumerate(rng.normal(20, 1, 2100))
    ]
    session.update(rows[:50])
    size = len(session.to_bytes())

    session.update(rows[50:2000])
    work = []
    prepare, encode = Preparation.advance, type(model.engine_.model.encoder).step
    monkeypatch.setattr(Preparation, "advance", lambda *a: work.append("advance") or prepare(*a))
    encoder = type(model.engine_.model.encoder)
    monkeypatch.setattr(encoder, "step", lambda *a: work.append("encode") or encode(*a))
    session.update(rows[2000:])
    assert abs(len(session.to_bytes()) - size) < 100
    assert (work.count("advance"), work.count("encode")) == (100, 100)


def test_counted_steps_and_a_single_series_need_no_series_column(kit):
    y = np.random.default_rng(0).normal(size=40)
    table = {"t": list(range(40)), "y": y.tolist()}
    model = kit.quick(3, steps=3).fit(table, target="y", time="t", time_format="step")
    session = model.session()
    session.update({"t": t, "y": v} for t, v in enumerate(y))
    np.testing.assert_allclose(session.forecast()["mean"], model.predict(table)["mean"], rtol=2e-5, atol=1e-6)
    assert session.forecast()["time"] == ["40", "41", "42"]
    assert torch.is_inference_mode_enabled() is False
    assert isinstance(model, ot.Forecaster)


def test_times_may_be_text_dates_or_numpy_times(plain, kit):
    model, table = plain
    rows = [row for row in kit.rows_of(table) if row["id"] == "s0"][:40]
    forms = (str, np.datetime64, lambda m: np.datetime64(m, "h"), lambda m: np.datetime64(m, "s").item())
    stored = set()
    for form in forms:
        session = model.session()
        session.update({**row, "month": form(row["month"])} for row in rows)
        stored.add(session.to_bytes())
    assert len(stored) == 1
