"""`Tagger`: from sentences with a tag for each token to a tagger of new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ostinato.data.examples import Examples
from ostinato.errors import InputError
from ostinato.layers.options import check_choice
from ostinato.models.tagger import OUTPUTS, TaggerNetwork
from ostinato.tasks.labels.beginning import GENTLE
from ostinato.tasks.labels.calibration import Calibration, fit_named
from ostinato.tasks.labels.estimator import LabelEstimator
from ostinato.tasks.labels.reading import read_examples
from ostinato.tasks.labels.scores import need_sklearn
from ostinato.tasks.labels.splitting import Encoded, Held, Rows
from ostinato.tasks.labels.tagger_answers import Answers
from ostinato.tasks.labels.tagger_baselines import Baselines
from ostinato.tasks.labels.tagger_decoding import Said, say
from ostinato.tasks.labels.tagger_inputs import (
    Sentences,
    TaggedTokens,
    choose_columns,
    cut_long,
    same_columns,
    tagged,
    with_known_columns,
)
from ostinato.tasks.labels.tagger_language import (
    RATES,
    LanguageTokens,
    fit_preparation,
    moved_tokens,
    token_preparation,
)
from ostinato.tasks.labels.tagger_network import build_network, take_tagger
from ostinato.tasks.labels.tagger_scores import exact_match, label_scores, tag_scores
from ostinato.tasks.labels.tagger_writing import Annotation, annotate, reading_for

BLOCK = 4096  # sentences whose numbers and answers are in memory at once
FEW = 50  # sentences; of fewer, long ones are cut before some are held out
STEPS = 2500  # of the optimizer, which small sets get by more passes
MOST_HELD_OUT = 500  # sentences, about, that are held out where nobody says how many
CALIBRATED = 20_000  # tokens that the temperature is fitted to, at most


@dataclass(kw_only=True, eq=False, repr=False)
class Tagger(LabelEstimator):
    """Recurrent network that gives each token of a sentence a tag, and where asked each sentence a label too.

    Tags that spell spans (B-NP, I-NP, O and their kin) are read by a linear chain that allows no broken span.
    The parameters are the fields of this class and of `LabelEstimator`, with their defaults.

    Attributes (after `fit`, besides those of `LabelEstimator`):
        classes_: the tags, sorted: the columns of `predict_proba`.
        labels_: the labels of sentences, sorted; empty where there are none.
        columns_: the further columns that the network sees.
        metrics_: accuracy of tags, and of spans span_f1, span_precision and span_recall; with labels also
            label_accuracy, label_macro_f1, and exact_match, the share of sentences without any mistake.
    """

    kind: ClassVar[str] = "tagger"
    _inputs: ClassVar[tuple[str, ...]] = ("tokens", "text")
    _others: ClassVar[str] = "; a class for each is learned by a Classifier (ostinato train classify)"

    joint: bool | None = None
    """Learn the label of each sentence beside its tags; None: where the examples have both."""
    features: Any = "auto"
    """Further columns to learn from: none, their names, or auto, the ones between token and tag of CoNLL."""
    decoder: str | None = None
    """crf or softmax: whether tags are read as a chain or each alone."""
    learn_ends: bool = True
    """Learn spans of BIO with tags of their own for their last tokens."""
    vectors: str | None = None
    """A file of word vectors: a word and its numbers on a line."""
    word_size: int | None = None
    """Width of the embedding of a word."""

    _decided: ClassVar[tuple[str, ...]] = ("cell", "hidden_size", "num_layers", "word_size")

    def fit(  # noqa: PLR0913 - how a file is written, one argument each
        self,
        data: Any,
        y: Any = None,
        *,
        token: str | int | None = None,
        label: str | int | None = None,
        tags: str | int | None = None,
        format: str | None = None,  # noqa: A002 - as the command calls it
        separator: str | None = None,
        encoding: str | None = None,
        header: bool = True,
        valid: Any = None,
        test: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        started_s: float | None = None,
    ) -> Self:
        """Learn from a file or from lists.

        Args:
            data: a file of CoNLL columns or CoNLL-U, a folder with seq.in, seq.out and label, JSON lines;
                `Examples`; or sentences (lists of words, or `Sentence`) with `y`.
            y: for each sentence a tag for each word.
            token: the column of the tokens; None: the first, or `form`.
            label: the column of the tags; None: the last, or `upos`. Where `tags` is given, that of the label
                of the sentence.
            tags: the column of the tags in files that also have labels of sentences.
            format: conll, conllu, slots or jsonl, where the name of the file does not say it.
            separator, encoding, header: how the file is written.
            valid: to choose the best epoch by, in the form of `data` or as a pair (sentences, tags); None: a
                part of `data` is held out.
            test: never learned from; `metrics_` then is about it.
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.
            started_s: `time.monotonic()` from which `max_time_s` counts; None: now.

        Raises:
            InputError: parameters, columns or examples that cannot be used; the message names them.
            DataError: a file that cannot be used, with its line.
            DivergenceError: training went wrong at too many steps in a row.
        """
        need_sklearn("scoring a tagger")
        given = {
            "kind": "tokens", "text": token, "label": label, "tags": tags, "format": format,
            "separator": separator, "encoding": encoding, "header": None if header else False,
        }  # fmt: skip
        reading = {name: value for name, value in given.items() if value is not None}
        return self._fit(
            data, y, reading, valid=valid, test=test, out=out, resume=resume, started_s=started_s
        )

    # ------------------------------------------------------------------------------------------ hooks

    def _checked(self) -> Self:
        if self.decoder is not None:
            check_choice("Tagger", "decoder", self.decoder, OUTPUTS)
        return super()._checked()

    def _check_examples(self, examples: Examples, name: str) -> Examples:
        if examples.tags is None:
            raise InputError(
                f"{name}: {examples.source or 'the data'} has no tags; a Tagger learns from a tag for each "
                "token: name their column, or pass y (where a row is one token, write columns without names, "
                "and a blank line after each sentence)"
            )
        for number, (tokens, row) in enumerate(zip(Sentences(examples), examples.tags, strict=True)):
            if len(tokens) != len(row):
                raise InputError(
                    f"{name}: sentence {examples.places[number]} has {len(tokens)} tokens and {len(row)} "
                    "tags; give one tag for each token"
                )
        if not any(map(len, examples.tags)):
            raise InputError(
                f"{name}: every sentence of {examples.source or 'the data'} is empty; give some with words"
            )
        return examples

    def _learn(
        self,
        settings: Self,
        parts: Mapping[str, Examples],
        folder: Path | None,
        resume: bool,
        started_s: float,
    ) -> None:
        if "valid" not in parts and len(parts["data"]) < FEW:
            parts = {**parts, "data": cut_long(parts["data"])}
        super()._learn(settings, parts, folder, resume, started_s)

    def _learn_answers(self, data: Examples, valid: Examples | None) -> None:
        self.answers_ = Answers.fit(data, joint=self.joint, learn_ends=self.learn_ends)
        found = set(data.labels or ())
        if len(found) == 1 and self.joint is None:
            self.notes_.append(f"every sentence has the label {found.pop()!r}, which is not learned")
        if valid is not None:
            self.notes_ += [f"validation part: {note}" for note in self.answers_.unknown(valid)]

    @property
    def classes_(self) -> list[str]:
        """The tags, sorted: the columns of `predict_proba`."""
        answers: Answers = self._require_fitted("answers_")
        return answers.tags

    @property
    def labels_(self) -> list[str]:
        """The labels of sentences, sorted: the columns of `predict_label_proba`; empty for tags alone."""
        answers: Answers = self._require_fitted("answers_")
        return list(answers.labels)

    def _choose(self, data: Examples) -> dict[str, Any]:
        n = len(data)
        batch_size = self.settings_.batch_size or (32 if n >= 4000 else 16 if n >= 800 else 8)
        begun = self._first
        is_known = begun is not None and self.answers_.are_among(begun.answers_)
        return {
            "cell": "lstm", "hidden_size": 200, "num_layers": 1, "dropout": 0.4, "word_size": 100,
            "batch_size": batch_size, "epochs": int(np.clip(STEPS * batch_size // n, 12, 60)),
            "max_time_s": 480.0, "learning_rate": 3e-3 * (GENTLE if is_known else 1.0), "weight_decay": 0.01,
            "held_out": 1 / max(10, round(n / MOST_HELD_OUT)), "joint": bool(self.answers_.labels),
            "decoder": "crf" if self.answers_.spelling.has_spans else "softmax",
        }  # fmt: skip

    def _hold_out(self, data: Examples) -> Held:
        # Sentences without a word have nothing to be right or wrong about.
        full = np.flatnonzero([len(one) > 0 for one in Sentences(data)])
        held = super()._hold_out(data.select(full))
        return Held(np.setdiff1d(np.arange(len(data)), full[held.checked]), full[held.checked])

    def _strata(self, data: Examples) -> Sequence[str] | None:
        return None

    def _fit_preparation(self, learned: Examples) -> None:
        sentences = Sentences(learned)
        first = next((one for one in sentences if len(one)), None)
        if first is None:
            raise InputError(f"{learned.source or 'the data'}: every sentence is empty; give some with words")
        reading, begun = {**learned.reading, **self.reading_}, self._first
        self.columns_ = choose_columns(self.features, list(first.columns), reading)
        if begun is not None:
            self.columns_ = same_columns(
                self.features, self.columns_, begun.columns_, first.columns, self.init
            )
        # Further files need to have no other columns.
        self.reading_["columns"] = [int(name) if name.isdigit() else name for name in self.columns_]
        old = begun and begun.preparation_
        self.preparation_ = fit_preparation(sentences, self.columns_, self.vectors, self.init, old)

    def _encode(self, examples: Examples, folds: Rows | None = None) -> TaggedTokens:
        encoded = TaggedTokens(examples, self.preparation_)
        if examples.tags is not None:
            encoded.set_tags(examples.tags, self.answers_.tag_numbers)
        if self.answers_.labels and examples.labels is not None:
            encoded.set_labels(self.answers_.label_numbers(examples.labels))
        return encoded

    def _build(self) -> nn.Module:
        return build_network(self.settings_, self.answers_, self.preparation_)

    def _take(self, first: Self) -> str:
        moved = moved_tokens(self.preparation_, first.preparation_)
        return take_tagger(self.network_, first.network_, moved, self.answers_, first.answers_)

    def _optimizer(self) -> dict[str, Any]:
        reads_language = isinstance(self.preparation_, LanguageTokens)
        return super()._optimizer() | ({"learning_rate_factors": RATES} if reads_language else {})

    def _validate(self, checks: Encoded) -> dict[str, float]:
        checks = tagged(checks)
        scores = self._scores_of(checks.examples, self._say(checks))
        scores["selection"] = scores["span_f1" if self.answers_.spelling.has_spans else "accuracy"]
        if self.answers_.labels and checks.examples.labels is not None:
            scores["selection"] = (scores["selection"] + scores["label_accuracy"]) / 2
        return scores

    def _fit_baselines(self, learned: Examples, folds: Rows | None, left_s: float | None) -> None:
        self.baselines_ = Baselines.fit(learned, has_labels=bool(self.answers_.labels))

    def _finish(self, checks: Encoded) -> None:
        examples = tagged(checks).examples
        lengths = np.array([len(row) for row in examples.tags or ()])
        rows = np.random.default_rng(self.settings_.seed).permutation(len(lengths))
        rows = rows[: max(1, int(np.searchsorted(np.cumsum(lengths[rows]), CALIBRATED)))]
        encoded = TaggedTokens(examples.select(rows), self.preparation_)
        said = self._say(encoded, with_probabilities=True)
        tags = chain.from_iterable(encoded.examples.tags or ())
        shares = np.concatenate([self.answers_.merge(row) for row in said.probabilities])
        self.calibration_ = fit_named(shares, tags, self.classes_)
        self.label_calibration_ = Calibration()
        if said.label_probabilities is not None and encoded.examples.labels is not None:
            labels = encoded.examples.labels
            self.label_calibration_ = fit_named(said.label_probabilities, labels, self.labels_)

    def _scores(self, examples: Examples, encoded: Encoded, notes: list[str] | None = None) -> dict[str, Any]:
        if notes is not None:
            notes += self.answers_.unknown(examples)
        return {
            "model": {self.name_: self._scores_of(examples, self._say(tagged(encoded)))},
            "baselines": self.baselines_.scores(examples, has_spans=self.answers_.spelling.has_spans),
        }

    def _scores_of(self, examples: Examples, said: Said) -> dict[str, float]:
        actual, tags, labels = examples.tags or (), self.answers_.tags_of(said), self.answers_.labels_of(said)
        scores = tag_scores(actual, tags, has_spans=self.answers_.spelling.has_spans)
        if labels is not None and examples.labels is not None:
            scores |= label_scores(examples.labels, labels)
            scores["exact_match"] = exact_match(actual, tags, examples.labels, labels)
        return scores

    def _to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.preparation_.to_json(),
            "answers": self.answers_.to_json(),
            "tagging": {
                "columns": self.columns_, "calibration": self.calibration_.to_json(),
                "label_calibration": self.label_calibration_.to_json(),
            },
            "baselines": self.baselines_.to_json(),
        }  # fmt: skip

    def _from_json(self, stored: Mapping[str, Any]) -> None:
        self.preparation_ = token_preparation(stored["tokens"])
        self.answers_ = Answers.from_json(stored["answers"])
        self.baselines_ = Baselines.from_json(stored["baselines"])
        tagging = stored["tagging"]
        self.columns_ = list(tagging["columns"])
        self.calibration_ = Calibration.from_json(tagging["calibration"])
        self.label_calibration_ = Calibration.from_json(tagging["label_calibration"])

    # ---------------------------------------------------------------------------------------- predict

    def predict(self, data: Any) -> list[list[str]]:
        """The tags of each sentence, in the form that the training data had them.

        Args:
            data: sentences: lists of words, `Sentence` where there are further columns, or texts, which are
                split into words; or a file in the form that `fit` took, with or without tags.

        Returns:
            N lists of T_i tags.
        """
        return [row for said in self._said(data) for row in self.answers_.tags_of(said)]

    def predict_proba(self, data: Any) -> list[NDArray[np.float64]]:
        """Calibrated probability of each tag of `classes_` at each token: N arrays (T_i, K).

        Takes data as `predict` does.
        """
        said = self._said(data, with_probabilities=True)
        return [
            self.calibration_.apply(self.answers_.merge(row)) for one in said for row in one.probabilities
        ]

    def predict_labels(self, data: Any) -> list[str]:
        """The label of each sentence; data as in `predict`.

        Raises:
            InputError: the tagger was not trained to say labels.
        """
        return [self.labels_[i] for i in self.predict_label_proba(data).argmax(axis=1).tolist()]

    def predict_label_proba(self, data: Any) -> NDArray[np.float64]:
        """Calibrated probability (N, C) of each label of `labels_`; else as `predict_labels`."""
        self._require_fitted("network_")
        if not self.labels_:
            raise InputError(
                "this Tagger says tags alone; fit it on sentences with labels for it to say labels"
            )
        shares = [one.label_probabilities for one in self._said(data) if one.label_probabilities is not None]
        every = np.concatenate([np.empty((0, len(self.answers_.labels)), np.float32), *shares])
        return self.label_calibration_.apply(every)

    def annotate(self, data: Any) -> Annotation:
        """Tags, and labels where the tagger says them, in the form of the file that they are about."""
        examples, reading = self._given(data), reading_for(data, self.reading_)
        tags: list[list[str]] = []
        shares: list[NDArray[np.float64]] = []
        for said in self._blocks(examples):
            tags += self.answers_.tags_of(said)
            if said.label_probabilities is not None:
                shares.append(self.label_calibration_.apply(said.label_probabilities))
        every = np.concatenate(shares) if shares else None
        labels = None if every is None else [self.labels_[i] for i in every.argmax(axis=1).tolist()]
        highest = None if every is None else every.max(axis=1).tolist()
        return annotate(data, reading, Sentences(examples), tags, labels, highest)

    def _said(self, data: Any, *, with_probabilities: bool = False) -> Iterator[Said]:
        return self._blocks(self._given(data), with_probabilities=with_probabilities)

    def _blocks(self, examples: Examples, *, with_probabilities: bool = False) -> Iterator[Said]:
        self.notes_ = list(examples.notes)
        for first in range(0, len(examples), BLOCK):
            block = examples.select(np.arange(first, min(first + BLOCK, len(examples))))
            encoded = TaggedTokens(block, self.preparation_)
            yield self._say(encoded, with_probabilities=with_probabilities)

    def _given(self, data: Any, y: Any = None, name: str | None = None) -> Examples:
        if name is not None:
            examples = super()._given(data, y, name)
        else:
            self._require_fitted("network_")
            examples = read_examples(data, y, reading_for(data, self.reading_), needs_answers=False)
        return with_known_columns(examples, self.preparation_, self.answers_.known)

    def _say(self, encoded: TaggedTokens, *, with_probabilities: bool = False) -> Said:
        assert isinstance(self.network_, TaggerNetwork)
        return say(self.network_, encoded, with_probabilities=with_probabilities)
