"""The kinds of input of a classifier, each with the class that prepares it."""

from __future__ import annotations

import importlib
from typing import Any

from ostinato.data.examples import Examples
from ostinato.errors import InputError

# kind -> the class that prepares it, imported when it is needed
_CLASSES = {
    "text": "ostinato.tasks.labels.texts:TextInputs",
    "pretrained": "ostinato.tasks.labels.pretrained:PretrainedInputs",
    "letters": "ostinato.tasks.labels.letters:LetterInputs",
    "arrays": "ostinato.tasks.labels.arrays:ArrayInputs",
    "documents": "ostinato.tasks.labels.documents:DocumentInputs",
    "trees": "ostinato.tasks.labels.trees:TreeInputs",
}


def inputs_class(kind: str) -> Any:
    """The `Inputs` of a kind."""
    module, _, name = _CLASSES[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def kind_of(examples: Examples, settings: Any) -> str:
    """The kind of input that examples are under a classifier's parameters `tree`, `hierarchy` and `init`.

    Raises:
        InputError: parameters that do not fit the examples.
    """
    if settings.tree and settings.hierarchy:
        raise InputError("tree and hierarchy: a document is not a tree; choose one of them")
    if settings.tree != (examples.kind == "trees"):
        expected = "parse trees in brackets" if settings.tree else "no parse trees without tree=True (--tree)"
        raise InputError(f"tree={settings.tree}: expected {expected}, found {examples.kind}")
    if settings.hierarchy and examples.kind != "text":
        raise InputError(f"hierarchy=True reads documents, found {examples.kind}; leave it out")
    if settings.init is not None:
        if settings.hierarchy or examples.kind != "text":
            found = "hierarchy=True" if settings.hierarchy else examples.kind
            raise InputError(f"init: a language model reads texts, found {found}; leave it out")
        return "pretrained"
    return "documents" if settings.hierarchy else examples.kind


def optimizer_of(kind: str, members: int) -> dict[str, Any]:
    """Fields of `TrainingSettings` that suit an ensemble over this kind of input."""
    settings = dict(inputs_class(kind).optimizer)
    factors = settings.pop("learning_rate_factors", {})
    named = {f"members.{m}.{name}": factor for m in range(members) for name, factor in factors.items()}
    return settings | {"learning_rate_factors": named}
