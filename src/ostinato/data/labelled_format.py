"""Which format a file of labelled sequences has: by its name, else by how it begins."""

from __future__ import annotations

import re
from pathlib import Path

from ostinato.data.conll import looks_like_conllu
from ostinato.data.files import SEPARATORS, codec, open_binary
from ostinato.data.labelled_spec import FORMATS, LabelledSpec
from ostinato.errors import DataError

_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".tab": "csv",
    ".parquet": "parquet", ".pq": "parquet", ".conll": "conll", ".iob": "conll", ".iob2": "conll",
    ".bio": "conll", ".conllu": "conllu", ".conllup": "conllu", ".mrg": "trees", ".ptb": "trees",
    ".trees": "trees", ".fasta": "fasta", ".fa": "fasta", ".fna": "fasta", ".faa": "fasta", ".ts": "ts",
    ".npz": "npz",
}  # fmt: skip
_PACKED = (".gz", ".xz", ".bz2", ".zip")
_SAMPLE_BYTES = 1 << 16
_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)


def find_format(path: Path, spec: LabelledSpec) -> str:
    """One of `FORMATS`. Raises DataError where neither the name of the file nor its beginning tells."""
    if path.is_dir():
        return "slots"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    by_name = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if by_name not in (None, "conll", "csv"):
        return by_name
    with open_binary(path) as raw:
        head = raw.read(_SAMPLE_BYTES)
    text = head.decode(codec(spec.encoding or "utf-8"), "replace").removeprefix("\ufeff")
    lines = text.split("\n" if "\n" in text else "\r")
    if len(head) == _SAMPLE_BYTES:
        lines = lines[:-1] or lines  # the last is cut off
    lines = [line.removesuffix("\r") for line in lines]
    found = _binary(head) or _columns(lines, spec, by_name) or _by_first_line(lines, spec)
    is_table = spec.kind != "tokens" and not (spec.text is spec.label is spec.series is None)
    if found is None and is_table and (spec.needs_labels or _has_column(lines, spec)):
        found = "csv"
    if found is None and (not spec.needs_labels or not any(map(str.strip, lines))):
        found = "lines"
    if found is None and spec.kind == "tokens":
        found = "conll"
    if found is None:
        raise DataError(
            "the form of the file cannot be told from its name or its first lines; name the columns of a "
            f"table (--text, --label), or the format, one of {', '.join(FORMATS)}",
            path=path,
        )
    return found


def _binary(head: bytes) -> str | None:
    marks = {b"PAR1": "parquet", b"PK\x03\x04": "npz"}
    return marks.get(head[:4])


def _columns(lines: list[str], spec: LabelledSpec, by_name: str | None) -> str | None:
    """Whether the file has a row for each token."""
    if looks_like_conllu(lines):
        return "conllu"
    if by_name == "conll" or spec.kind not in (None, "tokens"):
        return by_name
    if spec.kind is None and spec.text is not None:
        return by_name
    width, has_blocks = _rows_of_tokens(lines)
    if has_blocks and width > (1 if spec.kind is None else 0):
        return "conll"
    return by_name


def _rows_of_tokens(lines: list[str]) -> tuple[int, bool]:
    """The columns of each row, 0 where rows differ; and whether blank lines lie between blocks of rows."""
    rows = [line for line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    separator = "\t" if rows and "\t" in rows[0] else None
    widths = {len(line.split(separator)) for line in rows}
    body = "\n".join(line.strip(" \t") for line in lines).strip("\n")
    n_blocks = len([block for block in body.split("\n\n") if block.strip()])
    has_blocks = n_blocks > 1 and len(rows) > n_blocks
    return (widths.pop() if len(widths) == 1 else 0), has_blocks


def _by_first_line(lines: list[str], spec: LabelledSpec) -> str | None:
    full = [line.strip() for line in lines if line.strip()]
    first = full[0] if full else ""
    if first.startswith(("{", "[{")):
        return "jsonl"
    is_bracketed = all(line.startswith(("(", ")")) for line in full[:20]) and first.startswith("(")
    if spec.text is None and (spec.kind == "trees" or (is_bracketed and spec.kind is None)):
        return "trees"
    if first.startswith(">"):
        return "fasta"
    if any(line.lower() == "@data" for line in full):
        return "ts"
    return None


def _has_column(lines: list[str], spec: LabelledSpec) -> bool:
    """Whether the lines are a table with the column of the input, rather than inputs alone."""
    wanted = spec.text if spec.text is not None else spec.series
    full = [line for line in lines if line.strip()]
    if wanted is None or not full:
        return True
    for separator in SEPARATORS if spec.separator is None else spec.separator:
        rows = [line.split(separator) for line in full]
        if spec.header and str(wanted) in [name.strip(' "') for name in rows[0]]:
            return True
        # One line with a comma may be a sentence; several with as many commas each are a table.
        is_even = len({len(row) for row in rows}) == 1 and (len(rows) > 1 or separator == "\t")
        if _NUMBER.fullmatch(str(wanted)) and is_even and len(rows[0]) > max(1, int(wanted)):
            return True
    return False
