import sys
import types

import pytest

from ostinato import tasks
from ostinato.errors import RunFolderError
from ostinato.training.run_folder import RunFolder


def make(path, kind):
    run = RunFolder.create(path)
    run.write_file("config.toml", b"x = 1\n")
    run.commit(kind)
    return path


def test_load_hands_the_verified_folder_to_the_class_of_its_kind(tmp_path, monkeypatch):
    class Estimator:
        @classmethod
        def from_run(cls, run, cells):
            return run.read_text("config.toml"), cells

    module = types.ModuleType("toy_estimators")
    module.Estimator = Estimator
    monkeypatch.setitem(sys.modules, "toy_estimators", module)
    monkeypatch.setitem(tasks.KINDS, "toy", "toy_estimators:Estimator")
    assert tasks.load(make(tmp_path / "run", "toy")) == ("x = 1\n", ())
    assert tasks.load(tmp_path / "run", cells=[int]) == ("x = 1\n", [int])


def test_a_kind_that_names_a_module_is_not_imported(tmp_path):
    make(tmp_path / "run", "antigravity:Fly")
    with pytest.raises(RunFolderError, match=r"antigravity:Fly.*known kinds: forecast"):
        tasks.load(tmp_path / "run")
    assert "antigravity" not in sys.modules
