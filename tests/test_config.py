import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostinato import config
from ostinato.errors import InputError
from ostinato.training.settings import TrainingSettings


@dataclass(frozen=True)
class Model:
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Which cell."""
    hidden_size: int = 64
    dropout: float | None = 0.1


@dataclass(frozen=True)
class Run:
    target: tuple[str, ...]
    horizon: int = 24
    clip: float = 1.0
    name: str = ""
    column: int | str | None = None
    quantiles: list[float] = field(default_factory=list)
    size: tuple[int, int] = (1, 2)
    factors: Mapping[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    model: Model = Model()


# what TOML and this reader promise to bring back: any text but lone surrogates; "none" is None where None is
# allowed
text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.floats(allow_nan=False)
models = st.builds(Model, st.sampled_from(["rnn", "lstm", "gru"]), st.integers(), st.none() | numbers)
plain = st.recursive(
    st.booleans() | st.integers() | numbers | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
)
runs = st.builds(
    Run,
    target=st.lists(text).map(tuple),
    horizon=st.integers(),
    clip=numbers,
    name=text,
    column=st.none() | st.integers() | text.filter(lambda value: value != "none"),
    quantiles=st.lists(numbers),
    size=st.tuples(st.integers(), st.integers()),
    factors=st.dictionaries(text, numbers),
    extra=st.dictionaries(text, plain),
    resume=st.booleans(),
    model=models,
)


@given(runs)
def test_toml_and_mapping_round_trips(run):
    assert config.from_mapping(Run, config.to_mapping(run)) == run
    written = config.to_toml(run, heading="two\nlines")
    assert config.from_toml(Run, written) == run, written
    assert config.to_toml(config.from_toml(Run, written), heading="two\nlines") == written


def test_the_training_settings_of_the_package_round_trip():
    settings = TrainingSettings(
        epochs=3, clip_norm=None, optimizer_options={"momentum": 0.9, "nesterov": True}
    )
    assert config.from_toml(TrainingSettings, config.to_toml(settings)) == settings
    assert "plateau" in config.field_docs(TrainingSettings)["schedule"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"horizont": 3},
            r"a\.toml: unknown key 'horizont'; did you mean 'horizon'\? Known: target, horizon",
        ),
        ({"model": {"hiden": 3}}, r"a\.toml: unknown key 'model\.hiden'; did you mean 'model\.hidden_size'"),
        ({"zzz": 1}, r"unknown key 'zzz'; Known"),
        ({"horizon": "24"}, r"a\.toml: 'horizon' must be a whole number, found '24' \(text\)"),
        ({"horizon": True}, r"'horizon' must be a whole number, found True"),
        ({"horizon": 1.0}, r"must be a whole number, found 1\.0"),
        ({"clip": "none"}, r"'clip' must be a number, found 'none'"),
        ({"resume": 1}, r"'resume' must be a truth value, found 1 \(a whole number\)"),
        ({"model": {"cell": "grru"}}, r"'model\.cell' must be one of 'rnn', 'lstm', 'gru', found 'grru'"),
        ({"model": 3}, r"'model' must be a table"),
        ({"target": "load"}, r"'target' must be a list, each text, found 'load'"),
        ({"target": ["a", 1]}, r"'target' must be a list, each text"),
        ({"size": [1, 2, 3]}, r"'size' must be a list of exactly 2 values"),
        ({"column": 1.5}, r"'column' must be a whole number or text or \"none\", found 1\.5"),
        ({"factors": {"a": "x"}}, r"'factors' must be a table"),
    ],
)
def test_wrong_values_name_source_key_and_expectation(mapping, message):
    with pytest.raises(InputError, match=message):
        config.from_mapping(Run, {"target": [], **mapping}, "a.toml")


def test_a_missing_key_without_default_is_named():
    with pytest.raises(InputError, match=r"a\.toml: 'target' is missing"):
        config.from_mapping(Run, {}, "a.toml")


def test_layers_lie_over_one_another_and_errors_name_their_own(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        '\ufefftarget = ["load"]\nhorizon = 48\nname = "file"\n[model]\ncell = "lstm"\nhidden_size = 32\n',
        encoding="utf-8",
    )
    run = config.load_config(
        Run, path, ["model.hidden_size=16", "name = 24", "column=3", "clip=2"], {"model": {"dropout": None}}
    )
    assert run == Run(
        ("load",), 48, 2.0, name="24", column=3, model=Model("lstm", hidden_size=16, dropout=None)
    )
    with pytest.raises(InputError, match=r"--set horizn=3: unknown key 'horizn'; did you mean 'horizon'"):
        config.load_config(Run, path, ["horizn=3"])
    with pytest.raises(InputError, match=r"--set horizon=x: 'horizon' must be a whole number"):
        config.load_config(Run, path, ["horizon=x"])
    path.write_text("horizon = 1.5\n")
    with pytest.raises(InputError, match=r"run\.toml: 'horizon' must be a whole number, found 1\.5"):
        config.load_config(Run, path, ["horizon=3"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("horizon=7", {"horizon": 7}),
        ("model.dropout=none", {"model": {"dropout": None}}),
        ("model.dropout=1e-3", {"model": {"dropout": 1e-3}}),
        ("target=['a', \"b\"]", {"target": ("a", "b")}),
        ("name=", {"name": ""}),
        ("name=a=b", {"name": "a=b"}),
        ("name=2020-01-01", {"name": "2020-01-01"}),
        ("column=2020 x", {"column": "2020 x"}),
        ("column=-1", {"column": -1}),
        ("resume=true", {"resume": True}),
        ("model.cell=lstm", {"model": {"cell": "lstm"}}),
        ("factors={a = 0.5}", {"factors": {"a": 0.5}}),
        ("extra.deep.er=5", {"extra": {"deep": {"er": 5}}}),
    ],
)
def test_overrides_take_the_type_of_their_field(override, expected):
    layer = config.read_layer(Run, config.parse_override(override), "--set")
    assert layer == expected
    assert repr(layer) == repr(expected)


@pytest.mark.parametrize("text", ["horizon", "=3", ".a=3", "a..b=3"])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        config.parse_override(text)


def test_unreadable_files_say_why(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: the configuration cannot be read: No such file"):
        config.read_toml(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        config.read_toml(tmp_path)
    path = tmp_path / "a.toml"
    path.write_bytes(b"a = 1\nb = = 2\n")
    with pytest.raises(InputError, match=r"a\.toml: is not TOML: .*line 2"):
        config.read_toml(path)
    path.write_bytes("é = 1".encode("latin-1"))
    with pytest.raises(InputError, match="must be UTF-8"):
        config.read_toml(path)
    path.write_bytes(b"#" * (config.MAX_CONFIG_BYTES + 1))
    with pytest.raises(InputError, match="too many"):
        config.read_toml(path)


def test_what_cannot_be_written_is_refused():
    for value in ("\ud800", object()):
        with pytest.raises(InputError, match=r"cannot be written|not valid Unicode"):
            config.to_toml(Run((), extra={"value": value}))


def test_the_schema_says_types_defaults_and_documentation():
    schema = config.config_schema(Run)
    assert schema == json.loads(json.dumps(schema))
    assert schema["required"] == ["target"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {item.name for item in dataclasses.fields(Run)}
    assert schema["properties"]["horizon"] == {"type": "integer", "default": 24}
    assert schema["properties"]["model"]["properties"]["cell"] == {
        "enum": ["rnn", "lstm", "gru"],
        "description": "Which cell.",
        "default": "gru",
    }
    assert schema["properties"]["column"]["default"] == "none"
    assert schema["properties"]["size"]["prefixItems"] == [{"type": "integer"}] * 2
