"""`Tagger`: from sentences with a tag for each token to a tagger of new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ostinato.data.examples import Examples
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError
from ostinato.layers.options import check_choice
from ostinato.models.tagger import OUTPUTS, JointTagger, TaggerNetwork
from ostinato.tasks.labels.calibration import Calibration
from ostinato.tasks.labels.estimator import LabelEstimator
from ostinato.tasks.labels.scores import need_sklearn
from ostinato.tasks.labels.spans import TagSpelling
from ostinato.tasks.labels.splitting import Encoded, Rows
from ostinato.tasks.labels.tagger_baselines import MostFrequentTag
from ostinato.tasks.labels.tagger_decoding import Said, say
from ostinato.tasks.labels.tagger_inputs import Sentences, TaggedTokens, choose_columns, cut
from ostinato.tasks.labels.tagger_scores import exact_match, label_scores, tag_scores, unknown_note

BLOCK = 4096  # sentences whose numbers and answers are in memory at once
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
            "separator": separator, "encoding": encoding, "header": header or None,
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
                "token: name their column, or pass y"
            )
        for number, (tokens, row) in enumerate(zip(Sentences(examples), examples.tags, strict=True)):
            if len(tokens) != len(row):
                raise InputError(
                    f"{name}: sentence {examples.places[number]} has {len(tokens)} tokens and {len(row)} "
                    "tags; give one tag for each token"
                )
        return examples

    def _learn_answers(self, data: Examples, valid: Examples | None) -> None:
        assert data.tags is not None
        counts = Counter(chain.from_iterable(data.tags))
        if len(counts) < 2:
            raise InputError(
                f"label: {data.source or 'the data'} has {len(counts)} different tag"
                f"{'' if len(counts) == 1 else 's'}{''.join(map(repr, counts))}; a tagger needs two or more"
            )
        self.known_ = sorted(counts)
        self.spelling_ = TagSpelling.infer(data.tags, learn_ends=self.learn_ends)
        # A span that is cut between two stretches of a long sentence has other ends there.
        stretches = (row[one.first : one.stop] for row in data.tags for one in cut(0, len(row)))
        self._set_tags(sorted({tag for row in stretches for tag in self.spelling_.to_learned(row)}))
        self.labels_ = self._learn_labels(data)
        if valid is not None:
            self.notes_ += [f"validation part: {note}" for note in self._unknown(valid)]

    def _set_tags(self, learned: Sequence[str]) -> None:
        self.learned_ = list(learned)
        self.classes_, self._merged = self.spelling_.merged(self.learned_)
        self._numbers = {tag: number for number, tag in enumerate(self.learned_)}

    def _learn_labels(self, data: Examples) -> list[str]:
        found = sorted(set(data.labels or ()))
        if self.joint and len(found) < 2:
            raise InputError(
                f"joint=True: {data.source or 'the data'} has {len(found)} different labels of sentences, "
                "expected two or more; name their column, or leave joint out"
            )
        if self.joint is None and len(found) == 1:
            self.notes_.append(f"every sentence has the label {found[0]!r}, which is not learned")
        return found if self.joint is not False and len(found) > 1 else []

    def _choose(self, data: Examples) -> dict[str, Any]:
        return {
            "cell": "lstm", "hidden_size": 200, "num_layers": 1, "dropout": 0.4, "epochs": 20,
            "max_time_s": 480.0, "patience": 8, "batch_size": 32, "learning_rate": 3e-3, "weight_decay": 0.01,
            "joint": bool(self.labels_), "decoder": "crf" if self.spelling_.has_spans else "softmax",
            "word_size": 100,
        }  # fmt: skip

    def _strata(self, data: Examples) -> Sequence[str] | None:
        return None

    def _fit_preparation(self, learned: Examples) -> None:
        sentences = Sentences(learned)
        first = next((one for one in sentences if len(one)), None)
        if first is None:
            raise InputError(f"{learned.source or 'the data'}: every sentence is empty; give some with words")
        self.columns_ = choose_columns(
            self.features, list(first.columns), {**learned.reading, **self.reading_}
        )
        vectors = None
        if self.vectors is not None:
            from ostinato.data.word_vectors import WordVectors

            vectors = WordVectors(self.vectors)
        self.preparation_ = TokenPreparation.fit(sentences, columns=self.columns_, vectors=vectors)

    def _encode(self, examples: Examples, folds: Rows | None = None) -> TaggedTokens:
        encoded = TaggedTokens(examples, self.preparation_)
        if examples.tags is not None:
            encoded.set_tags(examples.tags, self._tag_numbers)
        if self.labels_ and examples.labels is not None:
            numbers = {label: number for number, label in enumerate(self.labels_)}
            encoded.set_labels([numbers.get(label, 0) for label in examples.labels])
        return encoded

    def _tag_numbers(self, tags: Sequence[str]) -> list[int]:
        """Learned tags by number; 0 for those that training did not have, which nothing is learned from."""
        return [self._numbers.get(tag, 0) for tag in self.spelling_.to_learned(tags)]

    def _build(self) -> nn.Module:
        s = self.settings_
        options: dict[str, Any] = {
            "scheme": self.spelling_.learned if s.decoder == "crf" else "none",
            "output": s.decoder,
            "tokens": {"word_size": s.word_size},
            "cell": s.cell,
            "hidden_size": s.hidden_size,
            "num_layers": s.num_layers,
            "dropout": s.dropout,
        }
        sizes = self.preparation_.sizes
        network = (
            JointTagger(sizes, self.learned_, len(self.labels_), **options)
            if self.labels_
            else TaggerNetwork(sizes, self.learned_, **options)
        )
        network.tokens.set_word_counts(self.preparation_.word_counts)
        if self.preparation_.vectors is not None:
            network.tokens.set_vectors(self.preparation_.vectors)
        return network

    def _validate(self, checks: Encoded) -> dict[str, float]:
        checks = _tagged(checks)
        said = self._say(checks)
        scores = self._scores_of(checks.examples, self._tags(said), self._labels(said))
        scores["selection"] = scores["span_f1" if self.spelling_.has_spans else "accuracy"]
        if self.labels_ and checks.examples.labels is not None:
            scores["selection"] = (scores["selection"] + scores["label_accuracy"]) / 2
        return scores

    def _fit_baselines(self, learned: Examples, folds: Rows | None, left_s: float | None) -> None:
        assert learned.tags is not None
        self.most_frequent_ = MostFrequentTag.fit((one.tokens for one in Sentences(learned)), learned.tags)
        counts = Counter(learned.labels or ())
        self.majority_ = counts.most_common(1)[0][0] if self.labels_ else ""

    def _finish(self, checks: Encoded) -> None:
        checks = _tagged(checks)
        self.calibration_, self.label_calibration_ = Calibration(), Calibration()
        said = self._say(checks, with_probabilities=True)
        examples = checks.examples
        assert examples.tags is not None
        number = {tag: i for i, tag in enumerate(self.classes_)}
        y = np.array([number.get(tag, -1) for row in examples.tags for tag in row])
        shares = np.concatenate([self._merge(row) for row in said.probabilities])
        chosen = np.flatnonzero(y >= 0)[:CALIBRATED]
        self.calibration_ = Calibration.fit(shares[chosen], y[chosen])
        if said.label_probabilities is not None and examples.labels is not None:
            number = {label: i for i, label in enumerate(self.labels_)}
            y = np.array([number.get(label, -1) for label in examples.labels])
            self.label_calibration_ = Calibration.fit(said.label_probabilities[y >= 0], y[y >= 0])

    def _scores(self, examples: Examples, encoded: Encoded, notes: list[str] | None = None) -> dict[str, Any]:
        if notes is not None:
            notes += self._unknown(examples)
        said = self._say(_tagged(encoded))
        baseline = self.most_frequent_.predict(one.tokens for one in Sentences(examples))
        baselines = {
            "most_frequent_tag": tag_scores(examples.tags or [], baseline, has_spans=self.spelling_.has_spans)
        }
        if self.labels_ and examples.labels is not None:
            baselines["majority"] = label_scores(examples.labels, [self.majority_] * len(examples))
        return {
            "model": {self.name_: self._scores_of(examples, self._tags(said), self._labels(said))},
            "baselines": baselines,
        }

    def _scores_of(
        self, examples: Examples, tags: list[list[str]], labels: list[str] | None
    ) -> dict[str, float]:
        actual = examples.tags or []
        scores = tag_scores(actual, tags, has_spans=self.spelling_.has_spans)
        if labels is not None and examples.labels is not None:
            scores |= label_scores(examples.labels, labels)
            scores["exact_match"] = exact_match(actual, tags, examples.labels, labels)
        return scores

    def _unknown(self, examples: Examples) -> list[str]:
        """Notes on answers that training did not have."""
        notes = [unknown_note("tags", chain.from_iterable(examples.tags or ()), self.known_)]
        if self.labels_ and examples.labels is not None:
            notes.append(unknown_note("labels", examples.labels, self.labels_))
        return [note for note in notes if note]

    def _tags(self, said: Said) -> list[list[str]]:
        names = self.learned_
        return [self.spelling_.from_learned([names[i] for i in row.tolist()]) for row in said.tags]

    def _labels(self, said: Said) -> list[str] | None:
        if said.label_probabilities is None:
            return None
        return [self.labels_[i] for i in said.label_probabilities.argmax(axis=1).tolist()]

    def _merge(self, shares: NDArray[np.float32]) -> NDArray[np.float64]:
        """(T, learned tags) to (T, K): the probabilities of tags that are one in the data, added."""
        merged = np.zeros((len(shares), len(self.classes_)))
        np.add.at(merged.T, self._merged, shares.T)
        return merged

    def _to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.preparation_.to_json(),
            "tags": {
                "spelling": asdict(self.spelling_), "learned": self.learned_, "known": self.known_,
                "labels": self.labels_, "columns": self.columns_, "calibration": self.calibration_.to_json(),
                "label_calibration": self.label_calibration_.to_json(),
            },
            "baselines": {"most_frequent_tag": self.most_frequent_.to_json(), "majority": self.majority_},
        }  # fmt: skip

    def _from_json(self, stored: Mapping[str, Any]) -> None:
        tags, baselines = stored["tags"], stored["baselines"]
        self.preparation_ = TokenPreparation.from_json(stored["tokens"])
        self.spelling_ = TagSpelling(**tags["spelling"])
        self._set_tags(tags["learned"])
        self.known_, self.labels_, self.columns_ = tags["known"], tags["labels"], tags["columns"]
        self.calibration_ = Calibration.from_json(tags["calibration"])
        self.label_calibration_ = Calibration.from_json(tags["label_calibration"])
        self.most_frequent_ = MostFrequentTag.from_json(baselines["most_frequent_tag"])
        self.majority_ = baselines["majority"]

    # ---------------------------------------------------------------------------------------- predict

    def predict(self, data: Any) -> list[list[str]]:
        """The tags of each sentence, in the form that the training data had them.

        Args:
            data: sentences: lists of words, `Sentence` where there are further columns, or texts, which are
                split into words; or a file in the form that `fit` took, with or without tags.

        Returns:
            N lists of T_i tags.
        """
        return [row for said in self._said(data) for row in self._tags(said)]

    def predict_proba(self, data: Any) -> list[NDArray[np.float64]]:
        """Calibrated probability of each tag of `classes_` at each token: N arrays (T_i, K).

        Takes data as `predict` does.
        """
        said = self._said(data, with_probabilities=True)
        return [self.calibration_.apply(self._merge(row)) for one in said for row in one.probabilities]

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
        every = np.concatenate([np.empty((0, len(self.labels_)), np.float32), *shares])
        return self.label_calibration_.apply(every)

    def _said(self, data: Any, *, with_probabilities: bool = False) -> Iterator[Said]:
        examples = self._given(data)
        for first in range(0, len(examples), BLOCK):
            block = examples.select(np.arange(first, min(first + BLOCK, len(examples))))
            encoded = TaggedTokens(block, self.preparation_)
            yield self._say(encoded, with_probabilities=with_probabilities)

    def _say(self, encoded: TaggedTokens, *, with_probabilities: bool = False) -> Said:
        assert isinstance(self.network_, TaggerNetwork)
        return say(self.network_, encoded, with_probabilities=with_probabilities)


def _tagged(encoded: Encoded) -> TaggedTokens:
    assert isinstance(encoded, TaggedTokens)
    return encoded
