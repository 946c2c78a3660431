"""`Pairs`: texts and what they are to become, from two aligned files, a file of pairs, a table, or memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.data.pair_files import Pairs, read_aligned, read_lines, read_pairs_tsv, read_table
from ostinato.errors import InputError

TABLES = (".jsonl", ".ndjson", ".json", ".csv")
_PACKED = (".gz", ".xz", ".bz2", ".zip")


def read_pairs(
    data: Any,
    targets: Any = None,
    *,
    source: str | int | None = None,
    target: str | int | None = None,
    encoding: str | None = None,
    lines: bool = False,
    table: bool = False,
    needs_targets: bool = True,
) -> Pairs:
    """Pairs in any of their forms.

    Args:
        data: a file of pairs (source, a tab, target; lines end at a line feed only, nothing is quoted); a
            table (JSON lines, CSV) with `source` and `target` columns; a file of sources with `targets`, a
            file of as many lines, or both as a tuple; in memory a list of texts with `targets`, a list of
            (source, target), a table of pandas, polars or pyarrow or a dict with two columns; or `Pairs`.
        targets: the targets where `data` holds sources alone.
        source, target: columns of a table, by name or by number from 0.
        encoding: of the files; UTF-8 otherwise.
        lines: where targets are not needed, each line of a file is a source, tabs included.
        table: where targets are not needed, `source` is a column of the file whatever its name ends in; else
            a file that is not named as a table may have lines.
        needs_targets: whether sources alone are an error.

    Raises:
        InputError: forms that do not go together.
        DataError: a file that cannot be used: the line, and which file has how many.
    """
    if isinstance(data, Pairs):
        if targets is not None:
            raise InputError("targets: the pairs have their own; leave it out")
        return _checked(data, needs_targets)
    if targets is None and isinstance(data, tuple) and len(data) == 2 and all(map(_is_two_sided, data)):
        data, targets = data
    if _is_path(data):
        found = _from_files(
            Path(data), targets, source, target, encoding, lines=lines, table=table,
            needs_targets=needs_targets,
        )  # fmt: skip
        return _checked(found, needs_targets)
    return _checked(_in_memory(data, targets, source, target), needs_targets)


def _from_files(
    path: Path,
    targets: Any,
    source: str | int | None,
    target: str | int | None,
    encoding: str | None,
    *,
    lines: bool,
    table: bool,
    needs_targets: bool,
) -> Pairs:
    if targets is not None:
        if not _is_path(targets):
            raise InputError(
                f"targets: {path} is a file, so that the targets are one too; found {type(targets).__name__}"
            )
        if source is not None or target is not None:
            raise InputError(
                "source, target: name columns of one table; with two files, one of sources and one of "
                "targets, leave them out"
            )
        return read_aligned(path, Path(targets), encoding)
    if table or _is_table(path, source, target, needs_targets=needs_targets):
        if source is None or (target is None and needs_targets):
            raise InputError(
                f"{path}: name the columns of the table: source= and target= (--source COL --target COL)"
            )
        return read_table(path, source, target, encoding, needs_targets=needs_targets)
    if not needs_targets and lines:
        found = read_lines(path, encoding)
    else:
        found = read_pairs_tsv(path, encoding, needs_targets=needs_targets)
    if _is_named(path, TABLES):
        note = f"{path}: its name says that it is a table, and each line is read as a text; name the column"
        found = replace(found, notes=(*found.notes, f"{note}: --source COL, read_with(source=…)"))
    return found


def _is_table(path: Path, source: str | int | None, target: str | int | None, *, needs_targets: bool) -> bool:
    named = source is not None or target is not None
    if not needs_targets:
        # A plain file of lines is an input of every run.
        return named and _is_named(path, (*TABLES, ".tsv"))
    return named or _is_named(path, TABLES)


def names_pairs(name: str) -> bool:
    """Whether a file's name says that it holds pairs rather than one of their sides."""
    return _is_named(Path(name), (*TABLES, ".tsv"))


def _is_named(path: Path, endings: Sequence[str]) -> bool:
    """Whether the name has one of the endings, that of a packed file aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    return bool(suffixes) and suffixes[-1] in endings


def _in_memory(data: Any, targets: Any, source: str | int | None, target: str | int | None) -> Pairs:
    if isinstance(data, Mapping) or hasattr(data, "columns"):
        columns = _columns(data)
        names = list(columns)
        wanted = (source if source is not None else "source", target if target is not None else "target")
        chosen = [
            _column(names, name, option) for name, option in zip(wanted, ("source", "target"), strict=True)
        ]
        if chosen[0] is None:
            raise InputError(f"source: there is no column {wanted[0]!r}; the columns are: {', '.join(names)}")
        if chosen[1] is None and target is not None:
            raise InputError(f"target: there is no column {wanted[1]!r}; the columns are: {', '.join(names)}")
        sources = _texts(columns[chosen[0]], f"column {chosen[0]!r}")
        answers = None if chosen[1] is None else _texts(columns[chosen[1]], f"column {chosen[1]!r}")
        return Pairs(sources, answers, reading={"source": chosen[0], "target": chosen[1]})
    rows = _as_list(data, "data")
    if targets is not None:
        return Pairs(_texts(rows, "data"), _texts(_as_list(targets, "targets"), "targets"))
    if rows and not isinstance(rows[0], str):
        for i, row in enumerate(rows):
            if isinstance(row, str) or not hasattr(row, "__len__") or len(row) != 2:
                raise InputError(f"data[{i}] is {row!r}; expected a pair (source, target)")
        return Pairs(_texts([r[0] for r in rows], "sources"), _texts([r[1] for r in rows], "targets"))
    return Pairs(_texts(rows, "data"))


def _columns(data: Any) -> dict[str, list[Any]]:
    if isinstance(data, Mapping):
        return {str(name): list(values) for name, values in data.items()}
    import narwhals

    frame = narwhals.from_native(data, eager_only=True)
    return {name: frame[name].to_list() for name in frame.columns}


def _column(names: list[str], wanted: str | int, option: str) -> str | None:
    if isinstance(wanted, int):
        if not -len(names) <= wanted < len(names):
            raise InputError(f"{option}: there is no column {wanted}; there are {len(names)}")
        return names[wanted]
    return wanted if wanted in names else None


def _as_list(values: Any, name: str) -> list[Any]:
    for method in ("to_list", "to_pylist", "tolist"):
        if hasattr(values, method):
            return list(getattr(values, method)())
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise InputError(f"{name}: expected a list of texts or a file, found {type(values).__name__}")
    return list(values)


def _texts(values: Sequence[Any], name: str) -> list[str]:
    texts = []
    for i, value in enumerate(values):
        missing = value is None or (isinstance(value, float) and np.isnan(value))
        if not missing and not isinstance(value, str):
            raise InputError(f"{name}[{i}] is {value!r}; expected a text")
        texts.append("" if missing else str(value))
    return texts


def _checked(pairs: Pairs, needs_targets: bool) -> Pairs:
    if needs_targets and pairs.targets is None:
        raise InputError(
            f"{pairs.origin}: there are sources but no targets; give a target for each (targets=, a second "
            "file, or a file of pairs)"
        )
    return pairs


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path)


def _is_two_sided(value: Any) -> bool:
    """A file, or a list of texts: half of a tuple (sources, targets)."""
    return _is_path(value) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
