"""A forecaster on a stream: a new point a time, constant work, and the forecast of the offline run."""

import ostinato as ot
from ostinato.data.bundled import load_bundled


def main() -> None:
    passengers = load_bundled("airpassengers")
    history, whole = passengers.split_last(24)
    forecaster = ot.Forecaster(12, members=1, steps=30, progress="quiet").fit(history)
    session = forecaster.session(history)
    series = whole.series[0]
    times = passengers.frequency.format(whole.times(series))
    for t in range(len(times) - 24, len(times)):
        expected = session.forecast()["q0.5"][0]
        session.update({"Month": times[t], "#Passengers": series.values[t, 0]})
        print(f"{times[t]}  forecast {expected:6.1f}  came {series.values[t, 0]:6.1f}")
    stored = session.to_bytes()
    print(f"the whole memory is {len(stored):,} bytes")


if __name__ == "__main__":
    main()
