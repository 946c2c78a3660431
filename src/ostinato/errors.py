"""Errors that the package raises on purpose; free of torch, so that the command line can fail fast."""

from __future__ import annotations


class OstinatoError(Exception):
    """Base of every error that the package raises on purpose. The command line exits with `exit_code`."""

    exit_code = 1


class InputError(OstinatoError, ValueError):
    """An argument, a file or a command line is wrong; says what was expected, found, and the cure."""

    exit_code = 2


class SizeError(InputError):
    """A tensor's shape, dtype or device does not fit."""


class DataError(InputError):
    """A data file is wrong; the message names the file, and line and column where it can."""

    def __init__(
        self, message: str, *, path: object = None, line: int | None = None, column: str | None = None
    ):
        where = "" if path is None else str(path)
        if line is not None:
            where += f", line {line}"
        if column is not None:
            where += f", column {column!r}"
        super().__init__(f"{where.removeprefix(', ')}: {message}" if where else message)
        self.path, self.line, self.column = path, line, column


class RunFolderError(InputError):
    """A run folder is missing, truncated, altered or written by a newer version."""


class MissingExtraError(InputError, ImportError):
    """A feature needs an optional package; the message names the extra that installs it."""

    def __init__(self, feature: str, package: str, extra: str):
        super().__init__(
            f"{feature} needs the package {package!r}; install it with: pip install 'ostinato[{extra}]'"
        )


class DivergenceError(OstinatoError):
    """Training diverged; the message names the step and the layer that went first."""
