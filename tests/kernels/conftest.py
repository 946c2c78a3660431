"""Triton's interpreter as the interpreted tests need it; other tests never load it."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch):
    """What the interpreter gets wrong, where it runs: the files `triton_interpreted_*.py` alone."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import numpy as np
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def as_index(tensor, scope):
        # It makes Python numbers of arrays with one element, which numpy 2.4 refuses.
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    splat = interpreter.InterpreterBuilder.create_splat

    def as_truth(self, ret_ty, arg):
        # Since Triton 3.9 the result of comparing two numbers becomes a block of integers.
        if arg.data.dtype != np.bool_:
            return splat(self, ret_ty, arg)
        return interpreter.TensorHandle(np.full(ret_ty.shape, arg.data[0]), arg.dtype.scalar)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", as_index)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_splat", as_truth)
