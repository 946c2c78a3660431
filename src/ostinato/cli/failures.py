"""How a command ends: one clear message on standard error and an exit code, never a traceback for a user's
mistake."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from ostinato.errors import OstinatoError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
OUT_OF_MEMORY = "out of memory; take a smaller --batch-size or --hidden, or a shorter file"
# the place given on the command line is wrong, not the run
_WRONG_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOENT}
_WRONG_PLACE |= {errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command end as promised: 0 done, 1 the run failed, 2 the command line or the data is wrong, 130
    Ctrl-C.

    An error that is none of ours is a defect: it keeps its traceback and exits 1.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except OstinatoError as error:
            _end(str(error), error.exit_code)
        except KeyboardInterrupt:
            _end("interrupted; a run with checkpoints goes on with --resume", INTERRUPTED)
        except BrokenPipeError:
            # whoever read our output has left; Python would complain once more when it closes the stream
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except UnicodeEncodeError as error:
            if error.encoding.startswith("utf"):
                raise
            what = ascii(error.object[error.start])
            _end(
                f"standard output is {error.encoding}, which has no {what}; set PYTHONIOENCODING=utf-8, or "
                "have the result written to a file (--out)",
                WRONG_INPUT,
            )
        except MemoryError:
            _end(OUT_OF_MEMORY, FAILED)
        except RuntimeError as error:  # how PyTorch says it, on the CPU and on a GPU
            if "allocate memory" not in str(error) and type(error).__name__ != "OutOfMemoryError":
                raise
            _end(OUT_OF_MEMORY, FAILED)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(f"{where}{error.strerror or error}", WRONG_INPUT if error.errno in _WRONG_PLACE else FAILED)

    return guarded


def _end(message: str, code: int) -> None:
    typer.echo(f"ostinato: {message}", err=True)
    raise typer.Exit(code)
