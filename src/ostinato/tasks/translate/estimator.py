"""`Translator` and `Summarizer`: texts into other texts, by an encoder–decoder with attention."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ostinato.data.pair_encoding import EncodedPairs, PairPreparation
from ostinato.data.pair_files import Pairs
from ostinato.data.pair_units import PairUnits
from ostinato.data.pairs import read_pairs
from ostinato.errors import InputError
from ostinato.models.seq2seq_options import MONOTONIC
from ostinato.tasks import same_data
from ostinato.tasks.run_estimator import RunEstimator
from ostinato.tasks.translate import storage
from ostinato.tasks.translate.answers import LOOKAHEAD, Answer, Search, answer, joined, notes_about
from ostinato.tasks.translate.checks import checked_parameters
from ostinato.tasks.translate.choosing import choose, choose_network
from ostinato.tasks.translate.fitting import Training, training_settings
from ostinato.tasks.translate.joining import join_pairs
from ostinato.tasks.translate.joint_ngrams import JOINT, JointNgrams
from ostinato.tasks.translate.preparing import build_network, complete, fingerprint, prepare, read_parts
from ostinato.tasks.translate.rescoring import MIDDLE_WEIGHT, Rescoring
from ostinato.tasks.translate.scores import by_source, need_scores, text_scores
from ostinato.tasks.translate.splitting import hold_out, some_sources
from ostinato.training.history import History
from ostinato.training.randomness import kept_randomness
from ostinato.training.run_folder import RunFolder

MOST_CHECKED, TRIED, TRIED_BY_BOTH = 3000, 32, 256  # a few answers by two models take as long as many
_READ_WITH = ("source", "target", "encoding")


@dataclass(kw_only=True, eq=False, repr=False)
class Translator(RunEstimator):
    """Learns from pairs of texts to turn one into the other: translation, pronunciation, normal forms.

    An encoder–decoder (`ostinato.models.seq2seq`) over words, characters, byte pairs or symbols of each side.
    A parameter that is None is chosen from the data; what was chosen is in `settings_` after `fit`.

    Attributes (after `fit`):
        network_: the `EncoderDecoder`; settings_: the parameters with every choice made.
        preparation_: the `PairPreparation`: texts to numbers and back.
        baselines_: what the network is compared with.
        history_: of training.
        metrics_: scores of the network and the baselines, of the test part if there is one, else of the part
            held out for validation; `part` says which.
        rescoring_: the second model that answers are chosen by, and its weight; None where there is none.
        notes_: what reading and fitting had to say, as text.
        reading_: how the data were read; `evaluate` and `predict` read theirs in the same way.
    """

    kind: ClassVar[str] = "translator"
    cuts: ClassVar[bool] = False
    """Whether of a long source the beginning alone is read."""
    defaults: ClassVar[Mapping[str, Any]] = {"copying": False, "no_repeat_ngram": 0}
    """Parameters whose choice does not depend on the data."""

    unit: str | None = None
    """word, char, bpe or symbol (whatever stands between blanks); two with a comma for the two sides, where
    auto leaves the choice."""
    vocabulary_size: int | None = None
    """Most words to know, or how many byte pairs to learn."""
    shared: bool | None = None
    """One vocabulary, and one embedding, for both sides."""
    cell: Any = None
    """rnn, lstm, gru, mingru, minlstm, rglru, or a `Cell` class built by (input_size, hidden_size)."""
    hidden_size: int | None = None
    """H of the decoder; each direction of the encoder has half of it, with monotonic attention all."""
    embedding_size: int | None = None
    """Width of embeddings, and of what the output layer reads."""
    num_layers: int | None = None
    """Recurrent layers of the encoder, and of the decoder."""
    attention: str = "auto"
    """additive, dot, general, local or none; or monotonic: each unit of the source stands for none, one or
    two of the target, in their order (characters and symbols alone). auto: monotonic if targets go along
    with their sources, else general."""
    feeding: str = "none"
    """What the decoder sees beside its last unit: none, output or context (slower; see `Seq2SeqOptions`)."""
    copying: bool | None = None
    """Whether units of the source may be copied (arXiv:1704.04368)."""
    coverage: bool = False
    """Whether additive attention sees what was read before."""
    dropout: float | None = None
    """Share of the numbers between the parts of the network that is set to 0 in training."""
    word_dropout: float = 0.0
    """Share of units that the network takes for unknown in training."""
    label_smoothing: float | None = None
    """Share of each right unit that is spread over the vocabulary."""
    epochs: int | None = None
    """Passes over the training part; fewer where `max_time_s` is short."""
    max_time_s: float | None = None
    """Seconds for the whole call of `fit`: reading, baselines, training and scores."""
    patience: int | None = None
    """Validations without improvement after which training stops."""
    batch_size: int | None = None
    """Pairs of one optimizer step."""
    learning_rate: float | None = None
    """The highest rate of the schedule."""
    weight_decay: float | None = None
    """On matrices only."""
    held_out: float | None = None
    """Share of the different sources to validate on where no `valid` is given."""
    max_source_length: int | None = None
    """Units of a source; longer ones are left out of training (`Summarizer`: cut) and answered in pieces."""
    max_target_length: int | None = None
    """Units of a target; pairs with longer ones are left out of training."""
    joint: bool | None = None
    """Whether answers are chosen by n-grams of units of a source joined with those of the target, too
    (`Rescoring`). Where it is not said: of characters and symbols, if targets go along with their sources."""
    init: str | None = None
    """Folder of a translator's or summarizer's run whose units and weights are gone on with."""
    beam: int = 5
    """Hypotheses of the search for an answer."""
    length_penalty: float = 1.0
    """Answers are ranked by their log-probability over their length to this power: 0 prefers short ones, and
    more than 1 long ones."""
    no_repeat_ngram: int | None = None
    """No so many units in a row are said twice; 0: they may be."""
    seed: int = 0
    """Of initial weights, batches, dropout and the choice of what is held out."""
    device: str = "cpu"
    """cpu, cuda, … or auto; of training, and of what the fitted estimator does."""
    progress: str = "auto"
    """auto, bar, lines or quiet."""

    # ------------------------------------------------------------------------------------------- fit

    def fit(
        self,
        data: Any,
        targets: Any = None,
        *,
        source: str | None = None,
        target: str | None = None,
        encoding: str | None = None,
        valid: Any = None,
        test: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        started_s: float | None = None,
    ) -> Self:
        """Learn from pairs.

        Args:
            data, targets, source, target, encoding: as of `ostinato.data.pairs.read_pairs`: two aligned
                files, a file of pairs, a table with two columns, lists.
            valid: to choose the best weights by, in a form of `data`, two files as a tuple; None: a part of
                the sources is held out, with all their targets.
            test: never learned from; `metrics_` then is about it.
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.
            started_s: `time.monotonic()` from which `max_time_s` counts; None: now.

        Raises:
            InputError: parameters, columns or pairs that cannot be used; the message names them.
            DataError: a file that cannot be used, with its line; files of unequal length.
            MissingExtraError: a library of the extra `text` is not installed.
            DivergenceError: training went wrong at too many steps in a row.
        """
        started_s = clock.monotonic() if started_s is None else started_s
        settings = checked_parameters(self)
        need_scores(f"{type(self).__name__}.fit")

        def read() -> tuple[dict[str, Pairs], same_data.Fingerprints]:
            reading: dict[str, Any] = {"source": source, "target": target, "encoding": encoding}
            parts = read_parts(data, targets, valid, test, reading)
            return parts, {name: fingerprint(part) for name, part in parts.items()}

        def learn(parts: dict[str, Pairs], folder: Path | None) -> None:
            self.reading_ = {**parts["data"].reading}
            self._learn(settings, parts, folder, resume, started_s)

        return self._fit_run(out, resume, read, learn)

    def _learn(
        self,
        settings: Self,
        parts: Mapping[str, Pairs],
        folder: Path | None,
        resume: bool,
        started_s: float,
    ) -> None:
        data, valid = parts["data"], parts.get("valid")
        self.notes_: list[str] = []
        for part in parts.values():
            self.notes_ += [note for note in part.notes if note not in self.notes_]
        self.settings_ = settings
        first = None if settings.init is None else storage.read_init(settings.init, settings)
        self.notes_ += choose(settings, data, first)
        if valid is None:
            assert self.settings_.held_out is not None
            learned_rows, checked_rows = hold_out(data.sources, self.settings_.held_out, settings.seed)
            learned, checked = data.select(learned_rows), data.select(checked_rows)
        else:
            learned, checked = data, valid
        prepared = prepare(settings, learned, first)
        self.preparation_, self.limits_ = prepared.preparation, prepared.limits
        self.baselines_, inputs = prepared.baselines, prepared.inputs
        self.notes_ += prepared.notes
        rows = np.sort(np.random.default_rng([settings.seed, 4]).permutation(len(checked))[:MOST_CHECKED])
        checks = self._encode(checked.select(rows))
        joined = join_pairs(settings, inputs, checks)
        choose_network(settings, data)
        ngrams = JointNgrams.fit(joined) if joined is not None and settings.joint else None
        if joined is not None:
            self.notes_ += joined.notes
        if joined is not None and settings.attention == MONOTONIC:
            self.preparation_, inputs, checks, said = joined.align(prepared.preparation, inputs, checks)
            self.notes_ += said
        with kept_randomness(torch.device("cpu")):
            torch.manual_seed(settings.seed)
            self.network_ = build_network(settings, self.preparation_)
        if first is not None:
            self.network_.load_state_dict(first.network_.state_dict())
        judged, note = (parts["test"], "") if "test" in parts else some_sources(checked, settings.seed)
        self.notes_ += [note] if note else []
        # While training looks at how long answers take, whatever the weight will be.
        self.rescoring_ = None if ngrams is None else Rescoring(ngrams, MIDDLE_WEIGHT)
        weighed, _ = some_sources(checked, settings.seed)
        self.history_ = self._train(inputs, checks, judged, weighed, folder, resume, started_s)
        self.notes_ += self.history_.notes
        if ngrams is not None:
            self.rescoring_, why = Rescoring.fit(
                ngrams, self.network_.eval(), self.preparation_, self._references(weighed), self._search(),
                self.limits_,
            )  # fmt: skip
            self.notes_.append(why)
            settings.joint = self.rescoring_ is not None
        name = "test" if "test" in parts else "validation"
        self.metrics_ = {"part": name, **self._scores(judged, f"{name} part: ")}

    def _encode(self, pairs: Pairs) -> EncodedPairs:
        most = self.settings_.max_source_length if self.cuts else None
        preparation: PairPreparation = self.preparation_
        return preparation.encode(pairs.sources, pairs.targets, most_source=most)

    def _train(
        self,
        inputs: EncodedPairs,
        checks: EncodedPairs,
        judged: Pairs,
        weighed: Pairs,
        folder: Path | None,
        resume: bool,
        started_s: float,
    ) -> History:
        s = self.settings_
        assert s.batch_size is not None
        settings = training_settings(s, -(-len(inputs) // s.batch_size))
        training = Training(self.network_, inputs, checks, settings, s.batch_size, s.device, s.progress)

        def after_s() -> float:
            n, usual = min(len(judged), TRIED_BY_BOTH if self.rescoring_ else TRIED), self.limits_
            self.limits_ = replace(usual, target=int(inputs.target_lengths.mean()) + 3 + LOOKAHEAD)
            tried_s = clock.monotonic()
            self._answers(judged.sources[:n])
            tried_s = clock.monotonic() - tried_s
            self.limits_ = usual
            # The weight is chosen by answers too, as many for each source as there are weights.
            answers = len(set(judged.sources)) + (2 * len(set(weighed.sources)) if self.rescoring_ else 0)
            return 1.5 * tried_s * answers / n

        ends_s = None if s.max_time_s is None else started_s + s.max_time_s
        return training.run(ends_s, after_s, folder=folder, resume=resume)

    # ------------------------------------------------------------------------------------------ after

    def predict(self, data: Any, *, beam: int | None = None) -> list[str]:
        """The answer to each source; an empty one to an empty source.

        Args:
            data: texts; or a file of sources, one a line, or in the form that `fit` took.
            beam: in place of the parameter.
        """
        return [one.text for one in self.translate(data, beam=beam)]

    def translate(self, data: Any, *, beam: int | None = None, attention: bool = False) -> list[Answer]:
        """As `predict`, with the units, scores and, if wanted, the attention of each answer.

        A source longer than `settings_.max_source_length` units is answered in pieces that end with sentences
        where they can (`Summarizer`: the beginning is read). `notes_` then is about these data.

        Raises:
            InputError: a beam below 1, attention of a network that has none.
        """
        self._require_fitted("network_")
        pairs = read_pairs(data, None, needs_targets=False, **self._reading())
        self.notes_ = list(pairs.notes)
        empty = sum(not source.strip() for source in pairs.sources)
        if empty:
            self.notes_.append(f"{empty:,} empty sources, answered with nothing")
        if attention and self.settings_.attention == "none":
            raise InputError("attention: this network has none (attention='none'); leave it out")
        answers = self._answers(pairs.sources, beam=beam, attends=attention)
        self.notes_ += notes_about(answers, self.limits_)
        return answers

    def read_with(self, **options: Any) -> Self:
        """Have `evaluate` and `predict` read files otherwise than the training file was read.

        Args:
            options: `encoding`, `source` or `target`, as for `fit`. With `source` every single file is taken
                for a table.

        Raises:
            InputError: an unknown option.
        """
        self._require_fitted("network_")
        for name in options:
            if name not in _READ_WITH:
                raise InputError(f"there is no option {name!r}; the options are: {', '.join(_READ_WITH)}")
        self.reading_ = {**self.reading_, **options}
        if "source" in options:
            self.reading_["table"] = options["source"] is not None
        return self

    def _reading(self) -> dict[str, Any]:
        return {
            name: self.reading_[name] for name in (*_READ_WITH, "lines", "table") if name in self.reading_
        }

    def _answers(
        self, sources: Sequence[str], *, beam: int | None = None, attends: bool = False
    ) -> list[Answer]:
        return answer(
            self.network_.eval(), self.preparation_, sources, self._search(beam), self.limits_,
            cuts=self.cuts, attends=attends, rescoring=self.rescoring_,
        )  # fmt: skip

    def _search(self, beam: int | None = None) -> Search:
        search = Search(
            self.beam if beam is None else beam, self.length_penalty, self.settings_.no_repeat_ngram or 0
        )
        if isinstance(search.beam, bool) or not isinstance(search.beam, int) or search.beam < 1:
            raise InputError(f"beam is {search.beam!r}, expected a whole number of at least 1")
        return search

    def _references(self, pairs: Pairs) -> dict[str, list[str]]:
        """The right answers to each different source."""
        assert pairs.targets is not None
        units: PairUnits = self.preparation_.target_units
        return by_source(pairs.sources, [units.clean(target) for target in pairs.targets])

    def evaluate(self, data: Any, targets: Any = None) -> dict[str, Any]:
        """Scores of the network and of the baselines on pairs in the form that `fit` took.

        Each different source is answered once; all targets that it has in the data are right answers.

        Returns:
            {"model": {NAME: scores}, "baselines": {NAME: scores}}, the scores of `text_scores`; `notes_` then
            is about these data.

        Raises:
            InputError: sources alone.
        """
        self._require_fitted("network_")
        is_table = targets is None and not isinstance(data, tuple)
        names = _READ_WITH if is_table else ("encoding",)
        reading = {name: value for name, value in self._reading().items() if name in names}
        pairs = complete(read_pairs(data, targets, **reading), "data")
        self.notes_ = list(pairs.notes)
        return self._scores(pairs)

    def _scores(self, pairs: Pairs, where: str = "") -> dict[str, Any]:
        right = self._references(pairs)
        if len(right) < len(pairs):
            self.notes_.append(
                f"{len(pairs):,} pairs have {len(right):,} different sources; each counts once, and any of "
                "its targets is right"
            )
        answers = self._answers([*right])
        self.notes_ += [where + note for note in notes_about(answers, self.limits_)]
        said = [one.text for one in answers]
        others = self.baselines_.say([*right])
        if self.rescoring_ is not None:
            if self.beam == 1:
                others[JOINT] = self.rescoring_.ngrams.say(self.preparation_, [*right])
            else:  # it was asked already
                seconds = [[piece.second or [] for piece in one.pieces] for one in answers]
                others[JOINT] = [joined(self.preparation_.target_units, parts) for parts in seconds]
        references, tokens = [*right.values()], self.preparation_.target_units.tokens
        return {
            "model": {self.name_: text_scores(said, references, tokens)},
            "baselines": {name: text_scores(one, references, tokens) for name, one in others.items()},
        }

    def _write_parts(self, run: RunFolder) -> dict[str, Any]:
        return storage.write_parts(self, run)

    def _read_parts(self, run: RunFolder, stored: Mapping[str, Any]) -> None:
        storage.read_parts(self, run, stored)
