"""`LanguageModel`: files of running text in, a network that knows what comes next out."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np

from ostinato.data.corpus import (
    Corpus,
    TextPart,
    encode_corpus,
    fingerprint,
    hold_out,
    open_texts,
    read_blocks,
)
from ostinato.data.corpus_units import CorpusUnits, choose_unit, is_split
from ostinato.errors import InputError
from ostinato.tasks import same_data
from ostinato.tasks.language import generation, storage
from ostinato.tasks.language.checks import check_parameters
from ostinato.tasks.language.fitting import Fitting
from ostinato.tasks.language.ngrams import Baselines
from ostinato.tasks.language.scoring import score_table
from ostinato.tasks.run_estimator import RunEstimator
from ostinato.tasks.transfer import LanguageSource, decided
from ostinato.training.distributed import find_device, is_first_process
from ostinato.training.run_folder import RunFolder

_NAMES = {"char": "characters", "word": "words", "bpe": "byte pairs"}


@dataclass(kw_only=True, eq=False, repr=False)
class LanguageModel(RunEstimator):
    """The probability of every next character, word or byte pair of a text.

    A parameter that is None is chosen from the text and the time; what was chosen is in `settings_` after
    `fit`.

    Attributes (after `fit`):
        network_: the network; settings_: the parameters with every choice made.
        units_: what turns text into ids and back.
        history_: of training.
        metrics_: scores of the network, of its mixture with the n-grams, and of the baselines, about the test
            part if there is one, else about the part held out for validation; `part` says which.
        share_: of the network in the mixture, as the part held out for validation speaks for it.
        notes_: what reading and fitting had to say, as text.
    """

    kind: ClassVar[str] = "language"

    unit: str | None = None
    """char, word or bpe; by default words of a text that blanks split into words already, else characters of
    up to 20 million, else byte pairs."""
    splitting: str | None = None
    """Of words: blanks (split already) or words (running text); found otherwise."""
    vocabulary_size: int | None = None
    """The most units; of byte pairs how many are learned (8,000)."""
    minimum_count: int | None = None
    """Rarer units are unknown: 1, but 2 for words of a text without <unk>."""
    documents: str = "file"
    """file: each file is a document, at whose beginning nothing is known of what came before; line: each
    line."""
    cell: Any = None
    """rnn, lstm, gru, mingru, minlstm, rglru, or a `Cell` class built by (input_size, hidden_size)."""
    hidden_size: int | None = None
    """H, width of the recurrent state."""
    embedding_size: int | None = None
    """E, width of a unit's vector."""
    num_layers: int | None = None
    """Recurrent layers."""
    tied: bool | None = None
    """The softmax's weights are the embeddings; by default of more than 1,000 units."""
    adaptive: bool | None = None
    """Softmax in clusters of falling frequency; by default of 40,000 units or more."""
    dropout: float | None = None
    """Before the softmax; all dropouts but weight_drop and word_dropout use one mask for all times."""
    dropout_in: float | None = None
    """On the embeddings."""
    dropout_between: float | None = None
    """Between the layers."""
    word_dropout: float | None = None
    """Share of the units whose vector is 0 wherever they occur, in an optimizer step."""
    weight_drop: float | None = None
    """Share of the recurrent weights that are 0 in an optimizer step (of rnn, lstm and gru)."""
    activation: float = 0.0
    """Penalty on the mean square of the last outputs."""
    slowness: float = 0.0
    """Penalty on the mean square of their changes from unit to unit."""
    init: str | Path | None = None
    """Run folder of a language model to begin with: its sizes, its kind of units, and the vectors of those
    that both know."""
    epochs: int | None = None
    """Most passes over the training text."""
    max_time_s: float | None = None
    """Seconds for the whole call of `fit`; the network's size and the schedule are made to fit."""
    patience: int | None = None
    """Validations without improvement after which training stops."""
    batch_size: int | None = None
    """Streams that are read side by side."""
    chunk: int | None = None
    """Units of each stream in an optimizer step, through which the gradient goes back."""
    learning_rate: float | None = None
    """The highest rate of the schedule."""
    weight_decay: float | None = None
    """On matrices only."""
    averaging: str = "none"
    """none, ema (moving average of the weights) or swa (their mean: averaged SGD)."""
    held_out: float = 0.1
    """Share of the training text, its end, to validate on where no `valid` is given."""
    seed: int = 0
    """Of initial weights, of where epochs begin, and of dropout."""
    device: str = "cpu"
    """cpu, cuda, … or auto; of training, and of what the fitted estimator does."""
    progress: str = "auto"
    """auto, bar, lines or quiet."""

    # ------------------------------------------------------------------------------------------- fit

    def fit(
        self,
        data: Any,
        *,
        encoding: str | None = None,
        valid: Any = None,
        test: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        started_s: float | None = None,
    ) -> Self:
        """Learn from files of text, read as one long stream.

        Args:
            data: a file, a list of files, or open text files such as `io.StringIO(text)`.
            encoding: of the files; UTF-8 by default.
            valid: to choose the best weights by, in the form of `data`; None: the end of `data` is held out.
            test: never learned from; `metrics_` then is about it.
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.
            started_s: `time.monotonic()` from which `max_time_s` counts; None: now.

        Raises:
            InputError: parameters that cannot be used; the message names them.
            DataError: a file that cannot be used, with its line; too little text.
            MissingExtraError: byte pairs without the library `tokenizers`.
            DivergenceError: training went wrong at too many steps in a row.
        """
        started_s = clock.monotonic() if started_s is None else started_s
        settings = self._checked()

        def read() -> tuple[dict[str, list[TextPart]], same_data.Fingerprints]:
            texts = {
                name: open_texts(part, encoding=encoding, name=name)
                for name, part in (("data", data), ("valid", valid), ("test", test))
                if part is not None or name == "data"
            }
            return texts, {name: fingerprint(part) for name, part in texts.items()}

        def learn(texts: dict[str, list[TextPart]], folder: Path | None) -> None:
            self.reading_ = {} if encoding is None else {"encoding": encoding}
            self._learn(settings, texts, folder, resume, started_s)

        return self._fit_run(out, resume, read, learn)

    def _checked(self) -> Self:
        """A copy with plain Python numbers, the parameters checked as far as that needs no text."""
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in self.get_params().items()}
        settings = type(self)(**plain)
        check_parameters(settings)
        return settings

    def _learn(
        self,
        settings: Self,
        texts: Mapping[str, list[TextPart]],
        folder: Path | None,
        resume: bool,
        started_s: float,
    ) -> None:
        self.notes_: list[str] = []
        self.settings_ = replace(settings)
        source = None if settings.init is None else LanguageSource.read(settings.init)
        learned, held = texts["data"], texts.get("valid")
        if held is None:
            learned, held = hold_out(learned, settings.held_out)
        self._choose_units(learned, None if source is None else source.units)
        beside = None if folder is None else folder.absolute().parent
        corpus = self._encoded(learned, beside)
        checks = self._encoded(held, beside)
        test = self._encoded(texts["test"], beside) if "test" in texts else None
        self._note_blank(corpus, "the training part")
        self._note_parts(checks, "the validation part")
        self.baselines_ = Baselines.fit(
            corpus,
            self.units_.counts,
            is_character=self.units_.unit == "char",
            left_s=self._left_s(started_s),
        )
        fitting = Fitting(
            self.settings_, corpus, checks, len(test) if test is not None else 0, len(self.units_),
            lambda: self._left_s(started_s), self.units_, source,
        )  # fmt: skip
        kept = storage.kept_plan(folder, settings) if folder is not None and resume else None
        chosen, said = (kept, []) if kept is not None else fitting.choose()
        for name, value in chosen.items():
            setattr(self.settings_, name, value)
        self.notes_ += said
        if folder is not None and is_first_process():
            storage.keep_plan(folder, self.settings_)
        self.network_, self.history_ = fitting.train(folder, resume)
        self.notes_ += [*fitting.notes, *self.history_.notes]
        self._score_parts(checks, test)

    def _score_parts(self, checks: Corpus, test: Corpus | None) -> None:
        self.share_: float | None = None
        scores = {"part": "validation", **self._scores(checks)}
        self.metrics_: dict[str, Any] = scores
        if test is not None:
            self._note_parts(test, "the test part")
            self.metrics_ = {"part": "test", **self._scores(test), "validation": scores}

    def _choose_units(self, learned: Sequence[TextPart], known: CorpusUnits | None) -> None:
        """Set `units_`, from the training text only; of the same kind as those `known` to what it begins
        with."""
        s = self.settings_
        if known is not None:
            self._take_kind(known)
        head = next(read_blocks(learned))
        if s.unit is None:
            s.unit, why = choose_unit(head, sum(map(len, learned)))
            self.notes_.append(f"the units are {_NAMES[s.unit]}: {why} (--unit takes another)")
        if s.unit == "word" and s.splitting is None:
            s.splitting = "blanks" if is_split(head) else "words"
        self.units_ = CorpusUnits.fit(
            read_blocks(learned), s.unit, splitting=s.splitting or "", size=s.vocabulary_size,
            minimum_count=s.minimum_count, again=read_blocks(learned),
            pairs=None if known is None else known.pairs,
        )  # fmt: skip

    def _take_kind(self, known: CorpusUnits) -> None:
        s = self.settings_
        assert s.init is not None
        had = SimpleNamespace(unit=known.unit, splitting=known.splitting or None)
        for name, value in decided(s, type(s)(), had, ("unit", "splitting"), s.init).items():
            setattr(s, name, value)
        if known.pairs is not None and s.vocabulary_size is not None:
            raise InputError(
                f"vocabulary_size={s.vocabulary_size}: the byte pairs are those of the run that init names; "
                "leave it out"
            )

    def _encoded(self, parts: Sequence[TextPart], folder: Path | None = None) -> Corpus:
        return encode_corpus(parts, self.units_, documents=self.settings_.documents, folder=folder)

    def _note_blank(self, corpus: Corpus, where: str) -> None:
        if corpus.blank_lines:
            self.notes_.append(f"{corpus.blank_lines:,} blank lines of {where} are no documents, left out")

    def _note_parts(self, corpus: Corpus, where: str) -> None:
        self._note_blank(corpus, where)
        if corpus.unknown:
            self.notes_.append(
                f"{corpus.unknown:,} of {len(corpus):,} units of {where} are unknown "
                f"({corpus.unknown / len(corpus):.2%}); scores are about telling that one comes, not which"
            )

    # ---------------------------------------------------------------------------------------- scores

    def evaluate(self, data: Any) -> dict[str, Any]:
        """Scores of the network, its mixture with the n-grams, and the baselines, on text as `fit` took it.

        Every unit is told from all before it in its document. Perplexity and nats are per unit, line ends
        counted; bits are per character of the text, line feeds counted.

        Returns:
            {"model": {NAME: scores}, "baselines": {NAME: scores}}; `notes_` then is about this text.
        """
        self._require_fitted("network_")
        corpus = self._encoded(open_texts(data, **self.reading_))
        self.notes_ = []
        self._note_parts(corpus, "the text")
        return self._scores(corpus)

    def read_with(self, *, encoding: str) -> Self:
        """Have `evaluate` read files in another encoding than the training text had."""
        self._require_fitted("network_")
        self.reading_ = {**self.reading_, "encoding": encoding}
        return self

    def _scores(self, corpus: Corpus) -> dict[str, Any]:
        self.network_.to(find_device(self.device))
        table, self.share_ = score_table(self.name_, self.network_, self.baselines_, corpus, self.share_)
        return table

    def score(self, data: Any) -> float:
        """Minus the nats per unit: the more, the better."""
        scores: dict[str, float] = self.evaluate(data)["model"][self.name_]
        return -scores["nats"]

    # ------------------------------------------------------------------------------------------ text

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | None = None,
    ) -> str:
        """A text that goes on from the prompt, without it; arguments and text as of `stream`."""
        pieces = self.stream(
            prompt, length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop
        )
        return "".join(pieces)

    def stream(
        self,
        prompt: str = "",
        *,
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | None = None,
    ) -> Iterator[str]:
        """The same text piece by piece, each as soon as it is certain.

        Args:
            prompt: what stands before the text; "" is the beginning of a document. Characters or words that
                the training text did not have are read as the unknown unit, and counted in `notes_`.
            length: at most so many units.
            temperature: below 1 bolder, above 1 more even; 0: always the most probable unit.
            top_k: draw among the k most probable units.
            top_p: draw among the fewest units that together have this probability.
            seed: same seed, same text.
            stop: the text ends before the first occurrence of this.

        The unknown unit is never drawn.

        Raises:
            InputError: an argument out of its range.
        """
        self._require_fitted("network_")
        generation.check_request(prompt, length, stop)
        self.network_.to(find_device(self.device))
        prompt = prompt.replace("\r\n", "\n")
        is_char = self.units_.unit == "char"
        # Of words and byte pairs the blank belongs to the unit that comes.
        told = prompt if is_char else prompt.rstrip(" \t")
        ids = self.units_.encode(told).astype(np.int64).tolist()
        self.notes_ = []
        if unknown := sum(number == 0 for number in ids):
            self.notes_.append(
                f"{unknown} of {len(ids)} units of the prompt are unknown to the model, and read as such"
            )
        pieces = generation.generated(
            self.network_, self.units_, [self.units_.start, *ids], length=length, temperature=temperature,
            top_k=top_k, top_p=top_p, seed=seed, at_line_start=not told or told.endswith("\n"),
            after_blank=told != prompt,
        )  # fmt: skip
        return generation.until(pieces, stop)

    # --------------------------------------------------------------------------------------- storage

    def _write_parts(self, run: RunFolder) -> dict[str, Any]:
        return storage.write_parts(self, run)

    def _read_parts(self, run: RunFolder, stored: Mapping[str, Any]) -> None:
        storage.read_parts(self, run, stored)
