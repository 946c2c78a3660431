"""What `ostinato predict` says of translations and summaries: lines, JSON lines, and the attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ostinato.cli import output
from ostinato.errors import InputError, MissingExtraError

TABLES = (".jsonl", ".csv", ".parquet")


def translations(
    estimator: Any, data: Path, out: Path | None, *, attends: bool
) -> output.Lines | output.Table:
    """An answer for each source of a file; with `attends` the attention is written beside `out`.

    Raises:
        InputError: attention without a file to put it beside; `out` is a folder, or the file that is read.
    """
    if attends and out is None:
        raise InputError("--attention is written beside the answers; say where those go: --out FILE")
    if out is not None:
        for path in (out, *(_beside(out) if attends else ())):
            _check_place(path, data)
    answers = estimator.translate(data, attention=attends)
    texts = [" ".join(answer.text.splitlines()) for answer in answers]
    joined = sum("\n" in answer.text for answer in answers)
    units = estimator.preparation_
    values = []
    for answer in answers:
        scores = [piece.score for piece in answer.pieces]
        score = sum(scores) / len(scores) if scores else None
        values.append({"source": answer.source, "target": answer.text, "score": score})
    if attends and out is not None:
        estimator.notes_ += _write_attention(answers, units, out)
    if out is not None and out.suffix in TABLES:
        columns = {name: [value[name] for value in values] for name in ("source", "target", "score")}
        return output.Table("translations", columns)
    if joined:
        estimator.notes_.append(
            f"{joined:,} answers have line ends inside, written as blanks; a name ending in .jsonl keeps them"
        )
    return output.Lines("translations", "".join(line + "\n" for line in texts), values)


def _beside(out: Path) -> tuple[Path, Path]:
    """Where the attention goes."""
    return out.with_suffix(".attention.json"), out.with_suffix(".attention.html")


def _check_place(path: Path, data: Path) -> None:
    """Refuse a place for a result before anything is computed."""
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; name a file in it")
    if path.exists() and data.exists() and path.samefile(data):
        raise InputError(f"--out {path}: is the file that is read, which would be lost; choose another name")


def _write_attention(answers: Any, preparation: Any, out: Path) -> list[str]:
    """The files beside `out`, and notes."""
    from ostinato.insight.alignment_view import Alignment, alignments_html
    from ostinato.training.atomic import write_bytes_atomically

    source, target = preparation.source_units, preparation.target_units
    alignments = [
        Alignment(
            [source.shown(unit) for unit in piece.source],
            [target.shown(unit) for unit in piece.target],
            piece.weights,
            f"Line {number}" + (f", piece {part}" if len(answer.pieces) > 1 else ""),
        )
        for number, answer in enumerate(answers, 1)
        for part, piece in enumerate(answer.pieces, 1)
    ]
    plain, drawn = _beside(out)
    text = json.dumps([one.to_json() for one in alignments], ensure_ascii=False, allow_nan=False)
    write_bytes_atomically(plain, text.encode())
    if not any(one.target for one in alignments):
        return [f"attention: {plain}"]
    try:
        page = alignments_html(alignments)
    except MissingExtraError as error:
        return [f"attention: {plain}; not drawn: {error}"]
    write_bytes_atomically(drawn, page.encode())
    return [f"attention: {plain}, drawn in {drawn}"]
