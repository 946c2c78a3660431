"""Run folders of forecasters: they load bitwise without the data, resume, and nothing altered is believed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.series import read_series
from ostinato.errors import InputError, RunFolderError
from ostinato.tasks.forecast import fitting
from ostinato.tasks.forecast.windows import WindowSource
from ostinato.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("without_ets")


class LeakyCell(ot.Cell):
    """A user's cell: h' = a·h + (1 - a)·tanh(W x)."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size, self.state_shapes = input_size, hidden_size, {"h": (hidden_size,)}
        self.read = torch.nn.Linear(input_size, hidden_size)
        self.keep = torch.nn.Parameter(torch.zeros(hidden_size))

    def step(self, x_t, state):
        a = torch.sigmoid(self.keep)
        h = a * state["h"] + (1 - a) * torch.tanh(self.read(x_t))
        return h, ot.State({"h": h})


@pytest.fixture(scope="module")
def run(plain, tmp_path_factory):
    model, table = plain
    path = tmp_path_factory.mktemp("runs") / "run"
    model.save(path)
    return model, table, path


def copy(path, tmp_path):
    return shutil.copytree(path, tmp_path / "copy")


def test_a_loaded_run_predicts_the_same_bits_and_knows_what_it_was(run):
    model, table, path = run
    loaded = ot.load(path)
    assert loaded.predict(table) == model.predict(table)
    assert loaded.get_params() == model.get_params()
    assert loaded.metrics_["model"] == model.metrics_["model"]
    later = {name: cells[:96] for name, cells in table.items()}
    assert loaded.evaluate(later, in_sample=True) == model.evaluate(later, in_sample=True)


@pytest.mark.parametrize("head", ["gaussian", "student_t", "negative_binomial"])
def test_every_head_is_stored(kit, tmp_path, head):
    y = np.random.default_rng(0).poisson(4, 60).astype(float)
    table = {"t": list(range(60)), "y": y.tolist()}
    model = kit.quick(4, head=head, steps=3).fit(table, target="y", time="t", time_format="step")
    assert ot.load(model.save(tmp_path / "run") and tmp_path / "run").predict(table) == model.predict(table)


def test_the_folder_is_the_same_to_the_byte_each_time(run, tmp_path):
    model, _, path = run
    model.save(tmp_path / "again")
    for name in json.loads((path / "manifest.json").read_text())["files"]:
        assert (tmp_path / "again" / name).read_bytes() == (path / name).read_bytes(), name


def test_no_altered_or_shortened_file_is_believed(run, tmp_path):
    _, _, path = run
    for name in json.loads((path / "manifest.json").read_text())["files"]:
        data = (path / name).read_bytes()
        for wrong in (data[:-1], data + b" ", bytes([data[0] ^ 1]) + data[1:], b""):
            folder = copy(path, tmp_path)
            (folder / name).write_bytes(wrong)
            with pytest.raises(RunFolderError, match=name):
                ot.load(folder)
            shutil.rmtree(folder)


def test_a_newer_format_is_refused(run, tmp_path):
    _, _, path = run
    folder = copy(path, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(RunFolderError, match="99"):
        ot.load(folder)


def test_weights_that_do_not_fit_are_refused(run, tmp_path):
    _, _, path = run
    folder = RunFolder.open(copy(path, tmp_path))
    text = folder.read_text("config.toml").replace("hidden_size = 8", "hidden_size = 9")
    folder.write_file("config.toml", text.encode())
    folder.commit("forecast")
    with pytest.raises(RunFolderError, match=r"model\.safetensors does not fit config\.toml"):
        ot.load(folder.path)


def test_a_cell_of_ones_own_is_stored_by_name_and_supplied_at_loading(kit, tmp_path):
    table = kit.long_table((60,), extras=False)
    model = kit.quick(cell=LeakyCell, steps=5, num_layers=2)
    model.fit(table, **kit.ROLES, out=tmp_path / "run")
    assert set(model.metrics_["model"]) == {"LeakyCell"}
    with pytest.raises(InputError, match=r"cell 'LeakyCell'.*cells=\[LeakyCell\]"):
        ot.load(tmp_path / "run")
    loaded = ot.load(tmp_path / "run", cells=[LeakyCell])
    assert loaded.predict(table) == model.predict(table)
    resumed = kit.quick(cell=LeakyCell, steps=5, num_layers=2)
    resumed.fit(table, **kit.ROLES, out=tmp_path / "run", resume=True)
    assert resumed.predict(table) == model.predict(table)
    assert "forecast.test" not in (tmp_path / "run" / "config.toml").read_text()


def test_an_unusable_cell_is_refused_before_anything_is_written(kit, tmp_path):
    with pytest.raises(InputError, match="Cell class"):
        kit.quick(cell=torch.nn.LSTM).fit(kit.long_table(), **kit.ROLES, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_refused_without_resume(kit, run):
    _, table, path = run
    with pytest.raises(InputError, match="--resume"):
        kit.quick().fit(table, **kit.ROLES, out=path)


def files(path):
    return {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_resuming_a_finished_run_changes_nothing(kit, tmp_path):
    table = kit.long_table((60,), extras=False)
    first = kit.quick(steps=5).fit(table, **kit.ROLES, out=tmp_path / "run")
    before = files(tmp_path / "run")
    again = kit.quick(steps=5).fit(table, **kit.ROLES, out=tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == before
    assert again.predict(table) == first.predict(table)


def test_a_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one(kit, tmp_path, monkeypatch):
    """Stopped at a batch in the middle of training, after the first checkpoint."""
    table = kit.long_table((80,), extras=False)
    original = fitting._training_settings
    monkeypatch.setattr(
        fitting, "_training_settings", lambda *a: replace(original(*a), checkpoint_every_steps=7)
    )
    whole = kit.quick(steps=40).fit(table, **kit.ROLES, out=tmp_path / "whole")
    draw, count = WindowSource._draw, []

    def failing(self, number, index):
        count.append(index)
        if len(count) == 25:
            raise KeyboardInterrupt
        return draw(self, number, index)

    monkeypatch.setattr(WindowSource, "_draw", failing)
    with pytest.raises(KeyboardInterrupt):
        kit.quick(steps=40).fit(table, **kit.ROLES, out=tmp_path / "parts")
    monkeypatch.setattr(WindowSource, "_draw", draw)
    resumed = kit.quick(steps=40).fit(table, **kit.ROLES, out=tmp_path / "parts", resume=True)
    assert resumed.predict(table) == whole.predict(table)
    for name in (
        "model.safetensors",
        "config.toml",
        "preparation/series.json",
        "preparation/recurrence.json",
    ):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_tables_mapped_from_files_fit_to_the_same_bits(kit, tmp_path, monkeypatch):
    table = kit.long_table((60, 50), extras=False)
    file = tmp_path / "table.csv"
    rows = ["id,month,y", *(f"{r['id']},{r['month']},{r['y']:.6f}" for r in kit.rows_of(table))]
    file.write_text("\n".join(rows).replace("nan", "") + "\n")
    inside = kit.quick(steps=5).fit(file, **kit.ROLES)
    monkeypatch.setitem(read_series.__kwdefaults__, "budget_bytes", 256)
    outside = kit.quick(steps=5).fit(file, **kit.ROLES)
    assert isinstance(outside.read(file).series[0].values, np.memmap)
    assert outside.predict(file) == inside.predict(file)
