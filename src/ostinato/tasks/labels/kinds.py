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


def form_of(examples: Examples, settings: Any) -> str:
    """What examples are under a classifier's parameters `tree` and `hierarchy`: text, documents, ….

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
    return "documents" if settings.hierarchy else examples.kind


def form_of_kind(kind: str) -> str:
    """What the examples of a kind of input are."""
    return "text" if kind == "pretrained" else kind


def kind_of(examples: Examples, settings: Any, first: str | None) -> str:
    """The kind of input that examples are for a classifier that begins with `init`.

    Args:
        examples: to learn from.
        settings: of the classifier.
        first: the kind that the classifier in `init` reads; None where a language model is there.

    Raises:
        InputError: examples that what is in `init` does not read.
    """
    form, init = form_of(examples, settings), str(settings.init)
    if settings.init is None:
        return form
    if first is None:
        if form != "text":
            found = "hierarchy=True" if settings.hierarchy else examples.kind
            raise InputError(f"init: a language model reads texts, found {found}; leave it out")
        return "pretrained"
    had = form_of_kind(first)
    if had != form:
        cures = {
            ("documents", "text"): "pass hierarchy=True (--hierarchy)",
            ("text", "documents"): "leave hierarchy out",
        }
        cure = cures.get((had, form), f"give {had}")
        raise InputError(
            f"init={init!r}: the run there reads {had}, found {form}; {cure}, or train without that run"
        )
    return first


def optimizer_of(kind: str, members: int) -> dict[str, Any]:
    """Fields of `TrainingSettings` that suit an ensemble over this kind of input."""
    settings = dict(inputs_class(kind).optimizer)
    factors = settings.pop("learning_rate_factors", {})
    named = {f"members.{m}.{name}": factor for m in range(members) for name, factor in factors.items()}
    return settings | {"learning_rate_factors": named}
