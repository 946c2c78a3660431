"""The compiled module `ostinato._native`, which may be missing: then every layer takes PyTorch's operators.

Whatever else goes wrong at its import, such as an unknown name in OSTINATO_ISA, is an error for users to see.
"""

from __future__ import annotations

from typing import Any

extension: Any
try:
    from ostinato import _native
except ModuleNotFoundError:
    extension = None
    MISSING = (
        "the native kernels are not built; install a C++17 compiler, then "
        "`pip install --force-reinstall --no-deps --no-cache-dir` the package (`-v` shows what goes wrong)"
    )
else:
    extension, MISSING = _native, ""
