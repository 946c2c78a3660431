"""`Summarizer`: a translator with copying, of long texts into short ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ostinato.tasks.translate.estimator import Translator


@dataclass(kw_only=True, eq=False, repr=False)
class Summarizer(Translator):
    """Learns from texts and their summaries to sum up others: a `Translator` that may copy words.

    Units are words of both sides in one vocabulary; a word that is not in it can be copied from the source
    (pointer-generator, See et al. 2017, arXiv:1704.04368). Of a long source the first `max_source_length`
    units are read, 400 by default, in training as in prediction. No three words are said twice.

    Attributes (after `fit`): as of `Translator`.
    """

    kind: ClassVar[str] = "summarizer"
    cuts: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "copying": True, "no_repeat_ngram": 3, "shared": True, "unit": "word,word", "joint": False,
    }  # fmt: skip
