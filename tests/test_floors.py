"""The floors of DESIGN.md: imports go down only; and no file outgrows what can be read in one sitting."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ostinato"
FLOORS = {
    "errors": 0, "types": 0, "config": 0,
    "kernels": 1, "data": 1,
    "layers": 2,
    "models": 3,
    "training": 4,
    "tasks": 5,
    "insight": 6, "ship": 6, "bench": 6,
    "cli": 7,
}  # fmt: skip
# Beyond "never upwards": rooms that a room may not look into although they lie below or beside it.
FORBIDDEN = {
    "errors": {"types", "config"},
    "types": {"config"},
    "config": {"types"},
    "kernels": {"data"},
    "data": {"kernels"},
    "layers": {"data", "config"},
    "models": {"data", "kernels", "config"},
    "training": {"data", "kernels", "layers", "models"},
}
MAX_LINES = 400
# file -> why it may be longer; an entry whose file has shrunk is an error, so the list stays short.
LONG_FILES: dict[str, str] = {}


def _imports(tree: ast.AST, package: tuple[str, ...]) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((node.lineno, module))
            # `from ostinato import data` names a room in the list of names.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names if module == "ostinato"]
    return found


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ostinato" and len(parts) > 1 and parts[1] in FLOORS else None


def _violations(path: Path, text: str) -> list[str]:
    inside = path.relative_to(SOURCE).with_suffix("").parts
    room = inside[0]
    if room not in FLOORS:
        return []
    problems = []
    for line, module in _imports(ast.parse(text), ("ostinato", *inside[:-1])):
        other = _room(module)
        if other is None or other == room:
            if room == "tasks" and other == "tasks":
                task = module.split(".")[2] if module.count(".") >= 2 else inside[1]
                if (
                    len(inside) > 2
                    and task not in (inside[1], "__init__")
                    and (SOURCE / "tasks" / task).is_dir()
                ):
                    problems.append(f"{path.name}:{line}: a task may not import another task: {module}")
            continue
        if FLOORS[other] > FLOORS[room] or other in FORBIDDEN.get(room, set()):
            where = path.relative_to(SOURCE)
            problems.append(
                f"{where}:{line}: {room} (floor {FLOORS[room]}) may not import "
                f"{module} (floor {FLOORS[other]})"
            )
    return problems


def _files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path):
    problems = _violations(path, path.read_text(encoding="utf-8"))
    assert not problems, "\n".join(problems)


def test_every_room_has_a_floor():
    rooms = {path.relative_to(SOURCE).with_suffix("").parts[0] for path in _files()}
    homeless = rooms - set(FLOORS) - {"__init__", "__main__"}
    assert not homeless, f"no floor in DESIGN.md and here for: {', '.join(sorted(homeless))}"


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("layers/crf.py", "from ostinato.models.encoder import Encoder"),
        ("layers/crf.py", "from ..models import encoder"),
        ("layers/crf.py", "from ostinato import models"),
        ("data/files.py", "import ostinato.kernels.ops"),
        ("training/loop.py", "from ostinato.layers.cells import Cell"),
        ("models/encoder.py", "def f():\n    from ostinato.data import series"),
        ("tasks/forecast/model.py", "import ostinato.cli"),
        ("errors.py", "from ostinato.types import State"),
    ],
)
def test_a_violation_is_found_and_named(where, text):
    problems = _violations(SOURCE / where, text)
    assert len(problems) >= 1
    assert where in problems[0]
    assert "floor" in problems[0]


def test_files_can_be_read_in_one_sitting():
    sizes = {
        str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines()) for path in _files()
    }
    long = {name: size for name, size in sizes.items() if size > MAX_LINES and name not in LONG_FILES}
    assert not long, f"over {MAX_LINES} lines: {long}; split it along an idea, or give a reason in LONG_FILES"
    stale = [name for name in LONG_FILES if sizes.get(name, 0) <= MAX_LINES]
    assert not stale, f"no longer over {MAX_LINES} lines, remove from LONG_FILES: {stale}"
