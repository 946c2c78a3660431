"""Linear-chain conditional random field: scores of neighbouring tags, and the best sequence as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_input, check_sizes, make_stretch
from ostinato.layers.crf_constraints import Constraints
from ostinato.layers.crf_paths import Edges, best_path, best_paths
from ostinato.layers.crf_sums import Allowed, log_partition, marginals, working_dtype

Lengths = Tensor | Sequence[int] | None


class LinearChainCRF(nn.Module):
    """Linear-chain conditional random field (Lafferty et al. 2001) over the emissions of a network.

        score(y) = start[y_0] + Σ_t emissions[t, y_t] + Σ_t transitions[y_t, y_t+1] + end[y_last]
        P(y | x) = exp(score(y)) / Σ exp(score(y')) over all allowed y'

    The one index convention: **transitions[from, to]**. A row of length 0 has one path, the empty one, which
    scores 0. Sums and best paths are computed in float64 whatever the dtype, and returned in that of the
    emissions; emissions of any finite size give a finite likelihood.

    Likelihoods can be differentiated any number of times. The first derivative is the marginals, from one
    backward recursion without a graph over the steps; higher ones cost K exponentials more.

    Cost of a likelihood with its gradient: 6·B·T·K² flops, 40·B·T·K bytes.

    Args:
        num_tags: K.
        constraints: which starts, transitions and ends a path may have (`constraints_for` makes those of BIO,
            IOB1, BIOES and BILOU); they hold for likelihoods, marginals and best paths alike. None: all.

    Attributes:
        transitions: (K, K) parameter, [from, to].
        start, end: (K,) parameters.

    Raises:
        InputError: a size below 1, or constraints of another number of tags.
    """

    _may_transitions: Tensor
    _may_start: Tensor
    _may_end: Tensor

    def __init__(self, num_tags: int, *, constraints: Constraints | None = None):
        super().__init__()
        check_sizes("LinearChainCRF", num_tags=num_tags)
        if constraints is not None and constraints.num_tags != num_tags:
            raise InputError(
                f"LinearChainCRF: constraints are of {constraints.num_tags} tags, expected "
                f"num_tags={num_tags}"
            )
        self.num_tags, self.constraints = num_tags, constraints
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.start = nn.Parameter(torch.zeros(num_tags))
        self.end = nn.Parameter(torch.zeros(num_tags))
        self._mixing_steps = None if constraints is None else constraints.mixing_steps()
        # Not stored: whoever builds the module again has the constraints.
        for name in ("transitions", "start", "end"):
            may = None if constraints is None else torch.tensor(getattr(constraints, name))
            self.register_buffer(f"_may_{name}", may, persistent=False)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"num_tags={self.num_tags}, constrained={self.constraints is not None}"

    def forward(
        self, emissions: Tensor, tags: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None
    ) -> Tensor:
        """log P(tags | emissions) of each row, (B,); the same as `log_likelihood`."""
        return self.log_likelihood(emissions, tags, lengths=lengths, mask=mask)

    def log_likelihood(
        self, emissions: Tensor, tags: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None
    ) -> Tensor:
        """log P(tags | emissions) of each row, (B,); the negative sum is a loss.

        Args:
            emissions: (B, T, K).
            tags: (B, T) integers, 0 … K - 1 at real steps, anything beyond.
            lengths: (B,) integers, 0 … T: how many steps of each row are real, from the first on.
            mask: (B, T) bool, True at real steps; these must come first. Not together with `lengths`.

        Raises:
            InputError: tags that the constraints do not allow, a mask with gaps, `lengths` and `mask` both.
            SizeError: a shape, dtype or device that does not fit; a tag outside 0 … K - 1.
        """
        emissions, steps = self._check("log_likelihood", emissions, lengths, mask)
        total = self._partition(emissions, steps)
        score = self._score("log_likelihood", emissions, tags, steps)
        return (score - total).to(emissions.dtype)

    def score(
        self, emissions: Tensor, tags: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None
    ) -> Tensor:
        """The score of a path, (B,); arguments and errors as for `log_likelihood`."""
        emissions, steps = self._check("score", emissions, lengths, mask)
        return self._score("score", emissions, tags, steps).to(emissions.dtype)

    def log_partition(
        self, emissions: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None
    ) -> Tensor:
        """log Σ exp(score) over all allowed paths, (B,); -inf for a row that has none."""
        emissions, steps = self._check("log_partition", emissions, lengths, mask)
        return self._partition(emissions, steps).to(emissions.dtype)

    @torch.no_grad()
    def decode(
        self, emissions: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best path of each row: tags (B, T) int64, 0 beyond its length, and scores (B,). No gradient.

        A row without an allowed path (one token, say, where every span has two) gets the path that breaks the
        fewest constraints. Scores are the path's own, without any penalty.
        """
        emissions, steps = self._check("decode", emissions, lengths, mask)
        if not emissions.numel():
            empty = emissions.new_zeros(emissions.shape[:2], dtype=torch.int64)
            return empty, emissions.new_zeros(len(emissions))
        edges = self._edges(emissions, steps)
        tags, scores = best_path(emissions, edges, steps)
        return tags, edges.without_penalty(scores).to(emissions.dtype)

    @torch.no_grad()
    def n_best(
        self, emissions: Tensor, n: int, *, lengths: Lengths = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The n best allowed paths: tags (B, n, T) int64 and scores (B, n), best first. No gradient.

        Where a row has fewer, the rest score -inf and their tags mean nothing. exp(score - log_partition) is
        a path's probability.

        Cost: n times that of `decode`, and a sort of n·K numbers for each step and tag.
        """
        check_sizes("LinearChainCRF.n_best", n=n)
        emissions, steps = self._check("n_best", emissions, lengths, mask)
        B, T = emissions.shape[:2]
        if not emissions.numel():
            scores = emissions.new_full((B, n), -torch.inf)
            scores[:, 0] = 0.0
            return scores.new_zeros(B, n, T, dtype=torch.int64), scores
        tags, is_path = best_paths(emissions, self._edges(emissions, steps), steps, n)
        flat = (emissions.repeat_interleave(n, 0), tags.flatten(0, 1))
        scores = self._sum_along(*flat, None if steps is None else steps.repeat_interleave(n, 0)).view(B, n)
        if steps is not None:
            # Of an empty row there is one path.
            first = torch.arange(n, device=tags.device) == 0
            is_path = torch.where((steps == 0).unsqueeze(1), first, is_path)
        return tags, scores.masked_fill(~is_path, -torch.inf).to(emissions.dtype)

    @torch.no_grad()
    def marginals(self, emissions: Tensor, *, lengths: Lengths = None, mask: Tensor | None = None) -> Tensor:
        """P(tag at step | emissions), (B, T, K); zeros beyond a row's length. No gradient."""
        emissions, steps = self._check("marginals", emissions, lengths, mask)
        return marginals(emissions, *self._scores(), steps, self._allowed()).to(emissions.dtype)

    # Inside ------------------------------------------------------------------------------------------

    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.transitions, self.start, self.end

    def _allowed(self) -> Allowed | None:
        if self.constraints is None:
            return None
        return Allowed(self._may_transitions, self._may_start, self._may_end, self._mixing_steps)

    def _edges(self, emissions: Tensor, lengths: Tensor | None) -> Edges:
        return Edges.penalised(*self._scores(), self._allowed(), emissions, lengths)

    def _check(
        self, method: str, emissions: Tensor, lengths: Lengths, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Emissions in the parameters' dtype, and the lengths where not all are T."""
        where = f"LinearChainCRF.{method}"
        if isinstance(emissions, Tensor) and emissions.dim() == 3 and emissions.shape[2] != self.num_tags:
            raise SizeError(
                f"{where}: emissions have width {emissions.shape[2]}, expected num_tags={self.num_tags}"
            )
        emissions = check_input(where, emissions, self.num_tags, 3, self.transitions)
        stretch = make_stretch(
            where, emissions, lengths=lengths, mask=mask, resets=None, dt=None, takes_dt=False
        )
        if stretch.mask is None:
            return emissions, None
        steps = stretch.mask.sum(1)
        gaps = None if mask is None else (mask[:, 1:] > mask[:, :-1]).any(1)
        if gaps is not None and bool(gaps.any()):
            row = int(gaps.nonzero()[0])
            raise InputError(
                f"{where}: mask has a gap in row {row}; expected the real steps of each row first, as "
                "a chain joins neighbours; gather the real steps and pass lengths"
            )
        return emissions, steps

    def _partition(self, emissions: Tensor, lengths: Tensor | None) -> Tensor:
        return log_partition(emissions, *self._scores(), lengths, self._allowed())

    def _score(self, method: str, emissions: Tensor, tags: Tensor, lengths: Tensor | None) -> Tensor:
        where = f"LinearChainCRF.{method}"
        if not isinstance(tags, Tensor) or tags.shape != emissions.shape[:2]:
            found = tuple(tags.shape) if isinstance(tags, Tensor) else type(tags).__name__
            raise SizeError(f"{where}: tags are {found}, expected (B, T) = {tuple(emissions.shape[:2])}")
        if tags.dtype.is_floating_point or tags.dtype == torch.bool:
            raise SizeError(f"{where}: tags are {tags.dtype}, expected integers")
        if not emissions.numel():
            return emissions.sum((1, 2), dtype=working_dtype(emissions))
        tags = tags.long()
        if lengths is not None:
            tags = tags.masked_fill(_beyond(lengths, tags.shape[1]), 0)
        if emissions.device.type == "cpu":
            self._check_tags(where, tags, lengths)
        return self._sum_along(emissions, tags, lengths)

    def _sum_along(self, emissions: Tensor, tags: Tensor, lengths: Tensor | None) -> Tensor:
        """The score of each row's path; `tags` are in range everywhere."""
        work = working_dtype(emissions)
        T = tags.shape[1]
        steps = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
        pair = tags[:, :-1] * self.num_tags + tags[:, 1:]
        pairs = self.transitions.flatten().gather(0, pair.flatten()).view_as(pair)
        first, last = tags[:, 0], tags[:, -1]
        if lengths is None:
            edges = self.start[first] + self.end[last]
            return steps.sum(1, dtype=work) + pairs.sum(1, dtype=work) + edges
        beyond = _beyond(lengths, T)
        steps, pairs = steps.masked_fill(beyond, 0.0), pairs.masked_fill(beyond[:, 1:], 0.0)
        last = tags.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        edges = (self.start[first] + self.end[last]).masked_fill(lengths == 0, 0.0)
        return steps.sum(1, dtype=work) + pairs.sum(1, dtype=work) + edges

    def _check_tags(self, where: str, tags: Tensor, lengths: Tensor | None) -> None:
        low, high = tags.aminmax()
        if low < 0 or high >= self.num_tags:
            raise SizeError(
                f"{where}: tags are {int(low)} … {int(high)}, expected 0 … num_tags - 1 = {self.num_tags - 1}"
            )
        if self.constraints is None:
            return
        ends = tags[:, -1]
        wrong = ~self._may_transitions[tags[:, :-1], tags[:, 1:]]
        if lengths is not None:
            wrong &= ~_beyond(lengths, tags.shape[1])[:, 1:]
            ends = tags.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        edge = ~(self._may_start[tags[:, 0]] & self._may_end[ends])
        broken = wrong.any(1) | (edge if lengths is None else edge & (lengths > 0))
        if bool(broken.any()):
            row = int(broken.nonzero()[0])
            raise InputError(
                f"{where}: the tags of row {row} break the constraints: "
                f"{self._explain(wrong[row], tags[row])}; mend them (respell does, for spans) or build the "
                "layer without constraints"
            )

    def _explain(self, wrong: Tensor, tags: Tensor) -> str:
        if not bool(wrong.any()):
            return "its first tag may not begin a row, or its last not end one"
        step = int(wrong.nonzero()[0])
        return f"tag {int(tags[step + 1])} at step {step + 1} may not follow tag {int(tags[step])}"


def _beyond(lengths: Tensor, T: int) -> Tensor:
    """(B, T): steps that are not real."""
    return torch.arange(T, device=lengths.device) >= lengths.unsqueeze(1)
