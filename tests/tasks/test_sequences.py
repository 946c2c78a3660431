"""The estimators of sequences: forms of X and y, learning, options, storage, resuming, bad input."""

import json

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.errors import DataError, InputError, SizeError
from ostinato.layers.cells import Cell
from ostinato.tasks.sequences.targets import Classes, read_labels, read_targets
from ostinato.training.loop import _Run
from ostinato.types import State


class Leaky(Cell):
    """h' = 0.9 h + W x."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.weight = torch.nn.Linear(input_size, hidden_size)

    def step(self, x_t, state):
        h = 0.9 * state.h + self.weight(x_t)
        return h, State(h=h)


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


def regressor(**options):
    return ot.SequenceRegressor(**{"hidden_size": 6, "epochs": 2, "progress": "quiet"} | options)


def classifier(**options):
    return ot.SequenceClassifier(**{"hidden_size": 6, "epochs": 2, "progress": "quiet"} | options)


def ragged(rng, N=40, D=2, longest=7):
    return [rng.normal(size=(n, D)) for n in rng.integers(1, longest + 1, N)]


def padded(rows, fill=0.0):
    rows = [np.asarray(row) for row in rows]
    whole = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill)
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole


def flat(said):
    return np.concatenate([np.ravel(row) for row in said])


def same(a, b):
    """Bitwise equal, in form too."""
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


# ------------------------------------------------------------------------------------- what it learns


def test_the_program_of_every_tutorial(rng):
    X = rng.normal(size=(1000, 10, 1))
    y = X.sum(axis=(1, 2))
    model = ot.SequenceRegressor(cell="rnn", hidden_size=50, epochs=10, batch_size=32, progress="quiet")
    said = model.fit(X, y).predict(X)
    assert said.shape == (1000,)
    assert model.history_.steps == 320
    r2 = model.score(X, y)
    assert r2 > 0.95, f"R² {r2:.3f}"


def test_the_adding_problem_needs_memory(rng):
    """Hochreiter and Schmidhuber 1997: the sum of two marked values among others."""

    def adding(N, T=8):
        values, marks, rows = rng.random((N, T)), np.zeros((N, T)), np.arange(N)
        first, second = rng.integers(0, T // 2, N), rng.integers(T // 2, T, N)
        marks[rows, first] = marks[rows, second] = 1
        return np.stack([values, marks], axis=2), values[rows, first] + values[rows, second]

    X, y = adding(600)
    Xt, yt = adding(200)
    model = regressor(hidden_size=20, epochs=20, learning_rate=1e-2).fit(X, y)
    scores = model.evaluate(Xt, yt)
    rmse, mean = scores["model"]["lstm"]["rmse"], scores["baselines"]["mean"]["rmse"]
    assert rmse < 0.3 * mean, f"rmse {rmse:.3f}, of the mean {mean:.3f}"
    assert abs(scores["baselines"]["mean"]["r2"]) < 0.05


def test_recalling_the_first_step_needs_memory(rng):
    X = rng.normal(size=(500, 12, 1))
    y = np.where(X[:, 0, 0] > 0, "up", "down")
    model = classifier(cell="gru", hidden_size=16, epochs=15, learning_rate=2e-2).fit(X[:400], y[:400])
    scores = model.evaluate(X[400:], y[400:])
    right, majority = scores["model"]["gru"]["accuracy"], scores["baselines"]["majority"]["accuracy"]
    assert majority < 0.65, majority
    assert right > 0.9, f"accuracy {right}, of the majority {majority}"
    assert model.predict(X[:3]).dtype.kind == "U"


def test_running_parity_is_learned_at_each_step_of_ragged_sequences(rng):
    bits = [rng.integers(0, 2, n) for n in rng.integers(1, 9, 400)]
    parity = [b.cumsum() % 2 for b in bits]
    model = classifier(cell="gru", hidden_size=16, epochs=25, learning_rate=2e-2).fit(
        bits[:300], parity[:300]
    )
    right = model.score(bits[300:], parity[300:])
    assert model.output_ == "step"
    assert right > 0.95, f"accuracy {right}"
    said = model.predict(bits[300:])
    assert [len(row) for row in said] == [len(row) for row in bits[300:]]
    by_hand = np.mean(flat(said) == flat(parity[300:]))
    assert right == by_hand, (right, by_hand)


def test_bidirectional_answers_see_what_follows(rng):
    X = rng.normal(size=(300, 6))
    y = np.roll(X, -1, axis=1)
    y[:, -1] = 0
    scores = [
        regressor(hidden_size=16, epochs=20, learning_rate=1e-2, bidirectional=both).fit(X, y).score(X, y)
        for both in (False, True)
    ]
    assert scores[0] < 0.3, scores
    assert scores[1] > 0.8, scores


def test_targets_far_from_zero_are_learned_in_their_own_unit(rng):
    X = rng.normal(size=(200, 5, 1))
    y = np.stack([1e9 + X.sum(axis=(1, 2)), 1e-6 * X[:, -1, 0], np.full(200, 7.0)], axis=1)
    model = regressor(hidden_size=16, epochs=20, learning_rate=1e-2).fit(X, y)
    said = model.predict(X)
    assert said.dtype == np.float64
    for c, least in ((0, 0.9), (1, 0.9)):
        error = ((said[:, c] - y[:, c]) ** 2).mean() / y[:, c].var()
        assert 1 - error > least, f"column {c}: R² {1 - error:.3f}"
    back = model.targets_.inverse(model.targets_.forward(y))
    assert np.abs(back / y - 1).max() < 1e-14, np.abs(back / y - 1).max()
    assert np.abs(said[:, 2] - 7).max() < 0.5


def test_small_differences_between_large_inputs_are_seen(rng):
    """Such as times in seconds since 1970, of which float32 sees two minutes."""
    X = rng.normal(size=(200, 5, 1))
    y = X.sum(axis=(1, 2))
    model = regressor(hidden_size=16, epochs=20, learning_rate=1e-2).fit(1.7e9 + X, y)
    r2 = model.score(1.7e9 + X, y)
    assert r2 > 0.9, f"R² {r2:.3f}"


# -------------------------------------------------------------------------------------- forms of X and y

REGRESSION = {
    "(N,)": (lambda r: (r.normal(size=(12, 5, 2)), r.normal(size=12)), (12,), "sequence"),
    "(N, 1)": (lambda r: (r.normal(size=(12, 5)), r.normal(size=(12, 1))), (12, 1), "sequence"),
    "(N, C)": (lambda r: (r.normal(size=(12, 5, 2)), r.normal(size=(12, 3))), (12, 3), "sequence"),
    "(N, T)": (lambda r: (r.normal(size=(12, 5, 2)), r.normal(size=(12, 5))), (12, 5), "step"),
    "(N, T, C)": (lambda r: (r.normal(size=(12, 5)), r.normal(size=(12, 5, 2))), (12, 5, 2), "step"),
    "one-to-one": (lambda r: (r.normal(size=(12, 1, 4)), r.normal(size=12)), (12,), "sequence"),
    "one-to-one, per step": (
        lambda r: (r.normal(size=(12, 1, 4)), r.normal(size=(12, 1, 2))),
        (12, 1, 2),
        "step",
    ),
}


@pytest.mark.parametrize("form", REGRESSION)
def test_predictions_have_the_form_of_y(rng, form):
    make, shape, output = REGRESSION[form]
    X, y = make(rng)
    model = regressor(epochs=1).fit(X, y)
    assert model.output_ == output
    assert model.predict(X).shape == y.shape == shape
    assert np.isfinite(model.score(X, y))
    assert model.n_features_in_ == (X.shape[2] if X.ndim == 3 else 1)


def test_a_row_of_y_can_be_told_to_belong_to_the_sequence(rng):
    X, y = rng.normal(size=(12, 5, 2)), rng.normal(size=(12, 5))
    step, sequence = regressor().fit(X, y), regressor(output="sequence").fit(X, y)
    assert (step.output_, sequence.output_) == ("step", "sequence")
    assert "output='sequence'" in step.notes_[0]
    assert sequence.notes_ == []
    assert sequence.network_.model.head.out_features == 5
    later = X.copy()
    later[:, -1] += 1
    assert (step.predict(later)[:, 0] == step.predict(X)[:, 0]).all()
    assert (sequence.predict(later)[:, 0] != sequence.predict(X)[:, 0]).all()


@pytest.mark.parametrize("per_step", [False, True])
def test_lists_and_padded_arrays_are_the_same(rng, per_step):
    """To the last bit, whatever stands in the padding of X and y."""
    X = ragged(rng)
    lengths = np.array([len(x) for x in X])
    y = [x.sum(axis=1) for x in X] if per_step else np.array([x.sum() for x in X])
    listed = regressor().fit(X, y)
    arrayed = regressor().fit(padded(X, np.nan), padded(y, np.nan) if per_step else y, lengths)
    assert same(listed.predict(X), arrayed.predict(padded(X, 3.0), lengths))
    if per_step:
        assert [row.shape for row in listed.predict(X)] == [(len(x),) for x in X]
        assert listed.score(X, y) == arrayed.score(padded(X), padded(y, np.inf), lengths)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_a_ragged_batch_equals_its_sequences_one_by_one(rng, per_step, options):
    X = ragged(rng)
    y = [np.where(x[:, 0] > 0, 2, 5) for x in X]
    model = classifier(**options).fit(X, y if per_step else [row[-1] for row in y])
    together = model.predict_proba(X)
    for i, x in enumerate(X):
        alone = model.predict_proba([x])[0]
        gap = np.abs(alone - together[i]).max()
        assert gap < 1e-6, f"sequence {i} of length {len(x)}: {gap}"
        assert np.abs(alone.sum(axis=-1) - 1).max() < 1e-12


def test_an_empty_sequence_among_others_has_an_answer(rng):
    X = [np.zeros((0, 2)), *ragged(rng, N=9)]
    model = regressor().fit(X, np.arange(10.0))
    assert np.isfinite(model.predict(X)).all()
    tagger = regressor().fit(X, [x[:, 0] for x in X])
    assert tagger.predict(X)[0].shape == (0,)


LABELS = {
    "int": np.array([3, -1, 7]),
    "uint8": np.array([3, 1, 7], np.uint8),
    "text": np.array(["b", "a", "ünï"]),
    "objects": np.array(["b", "a", "cc"], object),
    "bool": np.array([True, False]),
    "whole floats": np.array([0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_keep_their_kind_also_when_stored(rng, tmp_path, kind):
    labels = LABELS[kind]
    X, y = rng.normal(size=(30, 4, 1)), labels[np.arange(30) % len(labels)]
    model = classifier(epochs=1).fit(X, y)
    said = model.predict(X)
    assert sorted(set(y.tolist())) == model.classes_.tolist()
    assert type(said.tolist()[0]) is type(labels.tolist()[0])
    loaded = ot.load(model.save(tmp_path / "run") and tmp_path / "run")
    assert same(loaded.classes_, model.classes_)
    assert same(loaded.predict(X), said)
    stored = json.loads((tmp_path / "run/preparation/sequences.json").read_text(encoding="utf-8"))
    assert stored["answers"]["classes"]["labels"] == model.classes_.tolist()


def test_a_column_of_labels_is_labels(rng):
    X, y = rng.normal(size=(20, 4, 1)), np.arange(20)[:, None] % 2
    assert classifier(epochs=1).fit(X, y).predict(X).shape == (20,)
    assert classifier(epochs=1).fit(X, y.tolist()).score(X, y[:, 0]) >= 0


# ------------------------------------------------------------------------------------------ conventions


def test_init_only_stores_and_a_second_fit_forgets_the_first(rng):
    X, y = ragged(rng), rng.normal(size=40)
    model = regressor(hidden_size="not checked yet")
    assert vars(model) == model.get_params()
    model.set_params(hidden_size=6)
    assert model.fit(X, [x[:, 0] for x in X]) is model
    X2 = rng.normal(size=(20, 3, 4))
    assert same(model.fit(X2, y[:20]).predict(X2), regressor().fit(X2, y[:20]).predict(X2))
    assert (model.output_, model.n_features_in_) == ("sequence", 4)
    assert vars(model).keys() - model.get_params().keys() == set(vars(regressor().fit(X2, y[:20]))) - set(
        model.get_params()
    )


def test_fitting_leaves_the_data_and_the_random_numbers_of_the_caller_alone(rng):
    X, y = rng.normal(size=(20, 4, 2)).astype(np.float32), rng.normal(size=20)
    before = X.copy()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    regressor(dropout_in=0.3).fit(X, y).predict(X)
    assert (torch.rand(3) == expected).all()
    assert same(X, before)


def test_the_baseline_is_that_of_the_training_part(rng):
    X, y = rng.normal(size=(40, 3, 1)), rng.normal(size=40)
    Xv, yv = rng.normal(size=(10, 3, 1)), 3 + rng.normal(size=10)
    model = regressor().fit(X, y, validation=(Xv, yv))
    expected = np.sqrt(((yv - y.mean()) ** 2).mean())
    assert abs(model.baseline_["rmse"] - expected) < 1e-12, (model.baseline_["rmse"], expected)
    assert model.metrics_["part"] == "validation"
    labels = np.where(np.arange(40) < 25, "a", "b")
    model = classifier().fit(X, labels)
    assert model.metrics_["part"] == "training"
    assert model.baseline_["accuracy"] == 25 / 40
    entropy = -(25 * np.log(25 / 40) + 15 * np.log(15 / 40)) / 40
    assert abs(model.baseline_["log_loss"] - entropy) < 1e-12, (model.baseline_["log_loss"], entropy)


def test_a_fraction_is_held_out_fairly_and_not_learned_from(rng):
    X, y = rng.normal(size=(100, 3, 1)), np.repeat(["common", "rare"], [90, 10])
    model = classifier(epochs=5, patience=3).fit(X, y, validation=0.2)
    assert abs(model.shares_[1] - 0.1) < 0.02, model.shares_
    assert model.history_.best == min(model.history_["loss"])
    assert model.history_.best_step is not None
    other = classifier(epochs=5, patience=3, seed=1).fit(X, y, validation=0.2)
    assert not same(model.predict_proba(X), other.predict_proba(X))


def test_scikit_learn_clones_and_searches(rng):
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    X = ragged(rng, N=24)
    y = np.array(["in", "out"] * 12)
    model = classifier(epochs=1, class_weight={"in": 2.0}, layer_options={"norm": "layer"})
    copy = base.clone(model.fit(X, y))
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "classes_")
    assert base.is_classifier(model)
    assert base.is_regressor(regressor())
    grid = {"hidden_size": np.array([4, 8]), "cell": ["rnn", "gru"]}
    search = selection.GridSearchCV(classifier(epochs=1), grid, cv=2).fit(X, y)
    assert search.best_estimator_.predict(X).shape == (24,)
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(
        pytest.importorskip("sklearn.preprocessing").StandardScaler(), regressor(epochs=1)
    )
    assert pipeline.fit(np.eye(24), np.arange(24.0)).predict(np.eye(24)).shape == (24,)
    scores = selection.cross_val_score(regressor(epochs=1), X, np.arange(24.0), cv=3)
    assert np.isfinite(scores).all()
    assert len(scores) == 3


def test_pandas_targets_are_taken(rng):
    pd = pytest.importorskip("pandas")
    X = rng.normal(size=(20, 4))
    y = pd.Series(["a", "b"] * 10, index=range(100, 120))
    model = classifier(epochs=1).fit(pd.DataFrame(X), y)
    assert model.classes_.tolist() == ["a", "b"]
    assert 0 <= model.score(X, y) <= 1


# ---------------------------------------------------------------------------------------------- options

OPTIONS = {
    "cell": "rnn",
    "hidden_size": 7,
    "num_layers": 2,
    "bidirectional": True,
    "pooling": "mean",
    "output": "step",
    "dropout_in": 0.3,
    "dropout_out": 0.3,
    "dropout_recurrent": 0.3,
    "layer_options": {"norm": "layer", "peephole": True},
    "scale_inputs": False,
    "epochs": 3,
    "batch_size": 7,
    "learning_rate": 2e-2,
    "optimizer": "sgd",
    "weight_decay": 0.5,
    "schedule": "cosine",
    "clip_norm": 1e-3,
    "averaging": "swa",
    "seed": 1,
    "loss": "huber",
}
ELSEWHERE = {"dropout_between", "init", "max_time_s", "patience", "device", "progress"}


def test_every_parameter_is_in_a_test_of_its_effect():
    assert set(regressor().get_params()) == set(OPTIONS) | ELSEWHERE
    assert set(classifier().get_params()) - set(regressor().get_params()) == {"class_weight"}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_acts(rng, name):
    X = 2 + 3 * rng.normal(size=(40, 4, 2))
    y = X.cumsum(axis=1)[..., 0] if name == "output" else 5 * X.sum(axis=(1, 2))
    plain = {"output": "sequence"} if name == "output" else {}
    plain |= {"optimizer": "adamw"} if name == "weight_decay" else {}
    one = regressor(**plain).fit(X, y).predict(X)
    other = regressor(**plain | {name: OPTIONS[name]}).fit(X, y).predict(X)
    assert one.shape == other.shape
    assert np.isfinite(other).all()
    assert np.abs(one - other).max() > 1e-4, f"{name}={OPTIONS[name]!r} changes nothing"


def test_dropout_between_layers_acts(rng):
    X, y = rng.normal(size=(40, 4, 2)), rng.normal(size=40)
    said = [regressor(num_layers=2, dropout_between=p).fit(X, y).predict(X) for p in (0.0, 0.4)]
    assert np.abs(said[0] - said[1]).max() > 1e-4


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
def test_the_objective_is_what_it_says(rng, loss):
    """With a constant input, the best constant answer is the mean, the median, or between them."""
    X, y = np.ones((300, 1, 1)), rng.exponential(size=300) ** 2
    model = regressor(cell="rnn", epochs=60, learning_rate=1e-2, batch_size=300, loss=loss).fit(X, y)
    said, mean, median = model.predict(X)[0], y.mean(), np.median(y)
    expected = {"squared": (mean, mean), "absolute": (median, median), "huber": (median, mean)}[loss]
    assert expected[0] - 0.15 < said < expected[1] + 0.15, (loss, said, median, mean)


def test_class_weight_moves_the_decision(rng):
    X, y = rng.normal(size=(200, 3, 1)), (rng.random(200) < 0.15).astype(int)
    shares = {
        name: classifier(epochs=15, learning_rate=1e-2, class_weight=weight).fit(X, y).predict_proba(X)[:, 1]
        for name, weight in {"none": None, "balanced": "balanced", "given": {1: 30.0}}.items()
    }
    means = {name: float(share.mean()) for name, share in shares.items()}
    assert means["none"] < 0.25, means
    assert 0.4 < means["balanced"] < 0.6, means
    assert means["given"] > 0.6, means


def test_the_time_budget_ends_training(rng):
    X, y = rng.normal(size=(200, 4, 1)), rng.normal(size=200)
    model = regressor(epochs=None, max_time_s=0.5).fit(X, y)
    assert model.history_.stopped == "time"
    assert model.history_.elapsed_s < 1.5, model.history_.elapsed_s


def test_patience_ends_training_and_the_best_weights_stay(rng):
    X, y = rng.normal(size=(30, 4, 1)), rng.normal(size=30)
    Xv, yv = rng.normal(size=(30, 4, 1)), rng.normal(size=30)
    model = regressor(hidden_size=32, epochs=None, patience=3, learning_rate=3e-2)
    model.fit(X, y, validation=(Xv, yv))
    assert model.history_.stopped == "patience"
    losses = model.history_["loss"]
    scale = model.targets_.scale[0]
    kept = model.metrics_["model"]["lstm"]["rmse"] ** 2 / scale**2
    assert abs(kept - min(losses)) < 1e-4 * min(losses), (kept, losses)


def test_progress_is_shown_or_quiet(rng, capsys):
    X, y = rng.normal(size=(10, 4, 1)), rng.normal(size=10)
    regressor(progress="lines").fit(X, y)
    shown = capsys.readouterr()
    assert "epoch" in shown.err
    regressor().fit(X, y)
    assert capsys.readouterr() == ("", "")


def test_a_cell_of_the_users_own(rng, tmp_path):
    X, y = ragged(rng), rng.normal(size=40)
    model = regressor(cell=Leaky, num_layers=2, bidirectional=True).fit(X, y)
    model.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"cells=\[Leaky\]"):
        ot.load(tmp_path / "run")
    assert same(ot.load(tmp_path / "run", cells=[Leaky]).predict(X), model.predict(X))
    assert "Leaky" in model.evaluate(X, y)["model"]
    with pytest.raises(InputError, match="dropout_recurrent"):
        regressor(cell=Leaky, dropout_recurrent=0.1).fit(X, y)


# ------------------------------------------------------------------------------------ storage, resuming


@pytest.mark.parametrize("per_step", [False, True])
def test_what_is_loaded_is_what_was_saved(rng, tmp_path, per_step):
    X = ragged(rng)
    y = [np.stack([x[:, 0], 1e6 * x[:, 1]], axis=1) for x in X]
    y = y if per_step else np.array([row[-1] for row in y])
    model = regressor(
        bidirectional=True, layer_options={"norm": None, "zoneout_h": 0.1}, num_layers=2, dropout_between=0.1
    )
    model.fit(X, y, validation=0.2, out=tmp_path / "fitted")
    model.save(tmp_path / "saved")
    for name in ("fitted", "saved"):
        loaded = ot.load(tmp_path / name)
        assert same(loaded.predict(X), model.predict(X)), name
        assert loaded.evaluate(X, y) == model.evaluate(X, y)
        assert (loaded.metrics_, loaded.baseline_) == (model.metrics_, model.baseline_)
        asked = model.get_params() | {"layer_options": {"zoneout_h": 0.1}}
        assert loaded.get_params() == asked
    assert loaded.fit(X, y).history_.steps > 0
    names = {str(p.relative_to(tmp_path / "saved")) for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert names == {
        "config.toml",
        "manifest.json",
        "metrics.json",
        "model.safetensors",
        "preparation/sequences.json",
    }
    assert ot.load(tmp_path / "fitted").history_["train_loss"] == model.history_["train_loss"]


def test_parameters_set_after_fit_do_not_leak_into_the_folder(rng, tmp_path):
    X, y = rng.normal(size=(20, 4, 1)), np.arange(20) % 2
    model = classifier(class_weight={0: 1.0, 1: 3.0}).fit(X, y)
    said = model.predict_proba(X)
    model.set_params(hidden_size=99, output="step").save(tmp_path / "run")
    loaded = ot.load(tmp_path / "run")
    assert same(loaded.predict_proba(X), said)
    assert (loaded.hidden_size, loaded.class_weight) == (6, {0: 1.0, 1: 3.0})


def test_a_damaged_folder_is_refused(rng, tmp_path):
    X, y = rng.normal(size=(20, 4, 1)), rng.normal(size=20)
    regressor().fit(X, y).save(tmp_path / "run")
    file = tmp_path / "run/preparation/sequences.json"
    file.write_text(file.read_text().replace('"input_size": 1', '"input_size": 2'))
    with pytest.raises(ot.OstinatoError, match="was altered"):
        ot.load(tmp_path / "run")


class PowerCutError(Exception):
    pass


def test_a_run_that_was_cut_goes_on_to_the_same_bits(rng, tmp_path, monkeypatch):
    X, y = ragged(rng), rng.normal(size=40)

    def model():
        return regressor(epochs=5, dropout_in=0.2, dropout_recurrent=0.2, batch_size=8)

    whole = model().fit(X, y, validation=0.2)
    ordinary, count = _Run._step, [0]

    def cut(run):
        count[0] += 1
        if count[0] == 12:
            run.store.write(run, "")
            raise PowerCutError
        return ordinary(run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", cut)
        with pytest.raises(PowerCutError):
            model().fit(X, y, validation=0.2, out=tmp_path / "run")
    with pytest.raises(InputError, match="resume=True"):
        model().fit(X, y, validation=0.2, out=tmp_path / "run")
    resumed = model().fit(X, y, validation=0.2, out=tmp_path / "run", resume=True)
    assert same(resumed.predict(X), whole.predict(X))
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    again = model().fit(X, y, validation=0.2, out=tmp_path / "run", resume=True)
    assert same(again.predict(X), whole.predict(X))
    assert files == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"epochs 5 → 9.*another folder"):
        model().set_params(epochs=9).fit(X, y, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="'sequence_regressor', not a 'sequence_classifier'"):
        classifier().fit(X, y > 0, out=tmp_path / "run", resume=True)
    fresh = model().fit(X, y, validation=0.2, out=tmp_path / "fresh", resume=True)
    assert same(fresh.predict(X), whole.predict(X))


def test_refused_data_leaves_no_folder_and_no_half_fitted_estimator(rng, tmp_path):
    X, y = rng.normal(size=(20, 4, 1)), rng.normal(size=20)
    model = regressor().fit(X, y)
    with pytest.raises(InputError, match="'gruu'"):
        model.set_params(cell="gruu").fit(X, y, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="call fit first"):
        model.predict(X)


# -------------------------------------------------------------------------------------------- bad input


def values(rng, **changes):
    given = {"X": rng.normal(size=(10, 4, 2)), "y": rng.normal(size=10), "lengths": None}
    return given | changes


def spoiled(rng, value):
    X = rng.normal(size=(10, 4, 2))
    X[6, 2, 1] = value
    return X


BAD = {
    "NaN in X": (lambda r: {"X": spoiled(r, np.nan)}, DataError, r"X\[6\].*step 2, column 1 is NaN"),
    "infinite X": (lambda r: {"X": spoiled(r, np.inf)}, DataError, r"X\[6\].*step 2, column 1"),
    "huge X": (lambda r: {"X": spoiled(r, 1e300)}, DataError, "too large to have a variance"),
    "text in X": (lambda r: {"X": np.array([["a", "b"]] * 10)}, DataError, "X: expected numbers"),
    "widths": (lambda r: {"X": [np.ones((3, 2)), np.ones((3, 1))] * 5}, SizeError, r"X\[1\].*width 1"),
    "four axes": (lambda r: {"X": np.ones((10, 2, 2, 2))}, SizeError, r"\(10, 2, 2, 2\)"),
    "no step": (lambda r: {"lengths": np.zeros(10, int)}, SizeError, "every sequence is empty"),
    "lengths too long": (lambda r: {"lengths": [4] * 9 + [5]}, SizeError, r"lengths\[9\] is 5.*T = 4"),
    "negative lengths": (lambda r: {"lengths": [-1] + [4] * 9}, SizeError, r"lengths\[0\] is -1"),
    "lengths of another N": (lambda r: {"lengths": [4] * 9}, SizeError, "expected 10 integers"),
    "y too short": (lambda r: {"y": r.normal(size=9)}, SizeError, "y has 9 rows, X has 10"),
    "y of four axes": (lambda r: {"y": np.ones((10, 4, 1, 1))}, SizeError, r"\(10, 4, 1, 1\)"),
    "steps too few": (lambda r: {"y": np.ones((10, 3, 1))}, SizeError, "T = 4 steps"),
    "ragged y": (
        lambda r: {"y": [np.ones(4)] * 7 + [np.ones(3)] + [np.ones(4)] * 2},
        SizeError,
        r"y\[7\] has 3 targets, its sequence has 4 steps",
    ),
    "text in y": (lambda r: {"y": ["a"] * 10}, DataError, "SequenceClassifier"),
    "NaN in y": (lambda r: {"y": np.where(np.arange(10) == 3, np.nan, 1.0)}, DataError, r"y\[3\]"),
    "NaN at a step": (
        lambda r: {"y": np.where(np.arange(40).reshape(10, 4) == 13, np.nan, 1.0)},
        DataError,
        r"y\[3\] at step 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_do_not_fit_are_refused(rng, case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=message):
        regressor().fit(**values(rng, **change(rng)))


BAD_PARAMETERS = [
    ({"cell": "foo"}, {}, r"'foo'.*'rnn', 'lstm', 'gru'"),
    ({"pooling": "first"}, {}, "'first'"),
    ({"pooling": "mean"}, {"y": np.zeros((10, 4))}, "one answer per step"),
    ({"output": "steps"}, {}, r"output='steps'.*'auto', 'sequence', 'step'"),
    ({"output": "sequence"}, {"y": np.zeros((10, 4, 2))}, "output='step'"),
    ({"output": "step"}, {}, r"y has shape \(10,\)"),
    ({"loss": "mse"}, {}, r"'mse'.*'squared'"),
    ({"optimizer": "adan"}, {}, r"'adan'.*adam"),
    ({"schedule": "cosin"}, {}, r"'cosin'.*cosine"),
    ({"averaging": "mean"}, {}, r"'mean'.*ema"),
    ({"epochs": 0}, {}, "epochs must be a whole number"),
    ({"epochs": None}, {}, "epochs"),
    ({"batch_size": 2.5}, {}, "batch_size=2.5"),
    ({"hidden_size": -1}, {}, "hidden_size=-1"),
    ({"dropout_in": 1.5}, {}, "dropout_in"),
    ({"layer_options": {"peephol": True}}, {}, r"'peephol'.*peephole"),
    ({"layer_options": {"dropout_in": 0.1}}, {}, "parameter of its own"),
    ({"dropout_between": 0.1}, {}, "num_layers"),
    ({"patience": 3}, {}, r"patience=3.*validation=0.1"),
    ({"schedule": "plateau"}, {}, r"plateau.*validation=0.1"),
    ({"device": "gpu9"}, {}, "gpu9"),
    ({"progress": "loud"}, {}, "loud"),
    ({}, {"validation": 1.5}, "fraction"),
    ({}, {"validation": True}, "fraction"),
    ({}, {"validation": 0.99}, "leaves none"),
    ({}, {"validation": (np.ones((3, 4, 2)),)}, "1 entries"),
    ({}, {"validation": (np.ones((3, 4, 1)), np.ones(3))}, "width 1, the training data had 2"),
    ({}, {"validation": (np.ones((3, 4, 2)), np.ones((3, 2)))}, "columns"),
    ({}, {"resume": True}, "pass out"),
]


@pytest.mark.parametrize(
    ("parameters", "given", "message"), BAD_PARAMETERS, ids=lambda value: str(value)[:30]
)
def test_parameters_that_do_not_fit_are_refused(rng, parameters, given, message):
    with pytest.raises(InputError, match=message):
        regressor(**parameters).fit(**values(rng, **given))


BAD_LABELS = [
    (["a"] * 10, {}, "only the class 'a'"),
    (np.linspace(0, 1, 10), {}, "SequenceRegressor"),
    (np.eye(10)[:, :2], {}, "argmax"),
    (["a"] * 5 + [1] * 5, {}, "several kinds, int, str"),
    (np.array(["a"] * 5 + [1] * 5, object), {}, "several kinds, int, str"),
    (np.array(["a"] * 9 + [None], object), {}, "several kinds, NoneType, str"),
    (np.array([0, 1] * 4 + [0, np.nan]), {}, r"y\[9\]"),
    ([0, 1] * 5, {"class_weight": "balance"}, "'balance'"),
    ([0, 1] * 5, {"class_weight": {2: 1.0}}, r"label 2.*\[0, 1\]"),
    ([0, 1] * 5, {"class_weight": {1: 0.0}}, r"class_weight\[1\] is 0.0"),
]


@pytest.mark.parametrize(("y", "parameters", "message"), BAD_LABELS, ids=lambda value: str(value)[:30])
def test_labels_that_do_not_fit_are_refused(rng, y, parameters, message):
    with pytest.raises(InputError, match=message):
        classifier(**parameters).fit(rng.normal(size=(10, 4, 2)), y)


def test_data_unlike_that_of_fit_are_refused(rng):
    X, y = rng.normal(size=(10, 4, 2)), np.array(["a", "b"] * 5)
    model = classifier().fit(X, y)
    with pytest.raises(
        InputError, match=r"y\[1\]: the label 'c' was not in the training data; known: 'a', 'b'"
    ):
        model.score(X, np.where(y == "b", "c", "a"))
    with pytest.raises(InputError, match="label 1 was not"):
        model.score(X, np.ones(10, int))
    with pytest.raises(SizeError, match="width 1, the training data had 2"):
        model.predict(X[:, :, :1])
    with pytest.raises(SizeError, match="9 rows"):
        model.score(X, y[:9])
    with pytest.raises(DataError, match=r"X\[6\]: the value 1e\+300 at step 2, column 1 is too large"):
        model.predict(spoiled(rng, 1e300))
    tagger = regressor().fit(X, X[..., 0])
    with pytest.raises(SizeError, match="columns"):
        tagger.score(X, X)
    with pytest.raises(InputError, match="call fit first"):
        regressor().predict(X)
    with pytest.raises(InputError, match="call fit first"):
        _ = regressor().baseline_
    with pytest.raises(InputError, match="call fit first"):
        regressor().save("nowhere")


def test_labels_are_numbered_in_their_order_at_every_real_step():
    targets = read_labels(read_targets([["b"], ["a", "c"]], np.array([1, 2]), 2))
    codes = Classes.fit(targets.flat).encode(targets)
    assert codes.values.tolist() == [[1, 0], [0, 2]]
    assert codes.flat.tolist() == [1, 0, 2]
    assert codes.place(2) == "y[1] at step 1"


@pytest.mark.parametrize("output", ["sequence", "step"])
def test_an_estimator_begins_with_another(tmp_path, output):
    rng = np.random.default_rng(3)
    x = rng.normal(3.0, 2.0, size=(40, 6, 2))
    y = x[:, :, 0] + 5 if output == "step" else x[:, :, 0].mean(axis=1)
    quick = {"hidden_size": 6, "epochs": 3, "progress": "quiet"}
    still = {"epochs": 1, "learning_rate": 1e-12, "progress": "quiet", "init": tmp_path / "run"}
    first = ot.SequenceRegressor(**quick).fit(x, y).save(tmp_path / "run")
    begun = ot.SequenceRegressor(**still).fit(x[:10] * 3, y[:10] * 3, out=tmp_path / "begun")
    assert begun.settings_.hidden_size == 6
    np.testing.assert_allclose(begun.predict(x), first.predict(x), rtol=1e-5)
    np.testing.assert_array_equal(ot.load(tmp_path / "begun").predict(x), begun.predict(x))
    again = ot.SequenceRegressor(**still).fit(x[:10] * 3, y[:10] * 3, out=tmp_path / "begun", resume=True)
    np.testing.assert_array_equal(again.predict(x), begun.predict(x))
    with pytest.raises(InputError, match=r"hidden_size=7: the run in init=.* has 6; leave it out"):
        ot.SequenceRegressor(**still, hidden_size=7).fit(x, y)
    with pytest.raises(InputError, match=r"X: columns: the run in init=.* has 2, found 1"):
        ot.SequenceRegressor(**still).fit(x[:, :, :1], y)
    with pytest.raises(InputError, match=r"y: one answer for each: the run in init=.*, found"):
        ot.SequenceRegressor(**still).fit(x, x[:, 0, 0] if output == "step" else x[:, :, 0])
    with pytest.raises(InputError, match="holds a 'sequence_regressor'; begin with a run of a SequenceClass"):
        ot.SequenceClassifier(**still).fit(x, y.reshape(40, -1)[:, 0] > 3)


def test_labels_that_a_run_knows_keep_their_outputs(tmp_path):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 6, 2))
    first = ot.SequenceClassifier(hidden_size=6, epochs=3, progress="quiet")
    first.fit(x, np.array(["a", "b", "c", "a"] * 10)).save(tmp_path / "run")
    still = {"epochs": 1, "learning_rate": 1e-12, "progress": "quiet", "init": tmp_path / "run"}
    begun = ot.SequenceClassifier(**still).fit(x[:8], np.array(["c", "a"] * 4))
    shares = first.predict_proba(x)[:, [0, 2]]
    np.testing.assert_allclose(begun.predict_proba(x), shares / shares.sum(1, keepdims=True), atol=1e-5)
