"""What a run of labelled sequences was learned from, as a few digits."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ostinato.data.examples import Examples, Sentence, Tree
from ostinato.tasks.same_data import joined_bytes


def fingerprint(examples: Examples) -> dict[str, Any]:
    """How many examples there are, and a digest of inputs, labels and tags, whatever file they came from.

    Cost: one pass over the examples, about 1 µs for each and 1 ns for each byte.
    """
    digest = hashlib.blake2b(examples.kind.encode(), digest_size=16)
    for one in examples.inputs:
        digest.update(_as_bytes(one))
    for label in examples.labels or ():
        digest.update(joined_bytes([label]))
    for row in examples.tags or ():
        digest.update(joined_bytes(row))
    return {"examples": len(examples), "digest": digest.hexdigest()}


def _as_bytes(one: Any) -> bytes:
    if isinstance(one, str):
        return joined_bytes([one])
    if isinstance(one, Sentence):
        return joined_bytes(one.tokens) + b"".join(
            joined_bytes([name, *one.columns[name]]) for name in sorted(one.columns)
        )
    if isinstance(one, Tree):
        return joined_bytes([*one.tokens, repr(one.children), repr(one.labels)])
    array = np.ascontiguousarray(one)
    return repr((array.shape, array.dtype.str)).encode() + array.tobytes()
