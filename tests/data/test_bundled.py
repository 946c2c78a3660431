"""The bundled sets load with the spec beside them, and each has its licence."""

from __future__ import annotations

import pytest

from ostinato.data.bundled import BUNDLED, bundled_file, bundled_set, licence, load_bundled
from ostinato.errors import InputError


@pytest.mark.parametrize(
    ("name", "length", "frequency"), [("airpassengers", 144, "MS"), ("seattle-weather", 1461, "D")]
)
def test_a_set_loads(name: str, length: int, frequency: str) -> None:
    table = load_bundled(name)
    assert (table.n_points, table.frequency.name) == (length, frequency)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_set_has_data_and_licence(name: str) -> None:
    table = load_bundled(name)
    assert table.series[0].length > 4 * bundled_set(name).horizon
    assert "Source: " in licence(name)
    assert "Licence: " in licence(name)
    with bundled_file(name) as path:
        assert path.stat().st_size < 100_000


def test_an_unknown_set_lists_the_known() -> None:
    with pytest.raises(InputError, match="airpassengers, seattle-weather"):
        load_bundled("titanic")
