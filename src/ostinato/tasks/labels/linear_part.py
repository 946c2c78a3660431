"""The linear model beside a network: solved before training, weighed against it afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ostinato.models.blending import fit_scales
from ostinato.models.pretrained_classifier import PretrainedClassifier
from ostinato.models.wide import WideAndDeep, WideLinear
from ostinato.tasks.labels.ensemble import Ensemble, chunks
from ostinato.tasks.labels.inputs import Labelled
from ostinato.types import Batch

SHARE = 0.15  # of the time that is left, for the linear models of all members
USUAL_S = 60.0


def fit_linear(
    network: Ensemble, inputs: Labelled, checks: Labelled, left_s: float | None, seed: int, *, starts: bool
) -> None:
    """Solve for the linear model of each member that has one, on what that member learns from.

    Args:
        network: the members.
        inputs, checks: learned from, and to choose penalties by.
        left_s: of the time.
        seed: of which rows serve where they are too many.
        starts: whether a network over a language model's features begins with a linear model over these.
    """
    wides = [member for member in network.members if isinstance(member, WideAndDeep)]
    if not wides:
        return
    assert inputs.codes is not None
    assert checks.codes is not None
    limit_s = (USUAL_S if left_s is None else SHARE * left_s) / len(wides)
    for m, member in enumerate(wides):
        if inputs.folds is None:
            learned, apart, source = np.arange(len(inputs)), np.flatnonzero(checks.codes >= 0), checks
        else:
            learned, apart = np.flatnonzero(inputs.folds != m), np.flatnonzero(inputs.folds == m)
            source = inputs
        assert source.codes is not None
        linear = inputs.inputs.linear  # type: ignore[attr-defined]
        most = getattr(linear, "most_rows", len(learned))
        if most < len(learned):
            learned = np.sort(np.random.default_rng([seed, 7, m]).permutation(learned)[:most])
            apart = apart[: max(most // 10, 1)]
        rows, apart_rows = linear.batch(learned), source.inputs.linear.batch(apart)  # type: ignore[attr-defined]
        given: dict[str, Any] = {
            "checks_y": torch.from_numpy(source.codes[apart]),
            "penalties": inputs.inputs.penalties if len(apart) else None,  # type: ignore[attr-defined]
            "max_time_s": limit_s,
        }
        y = torch.from_numpy(inputs.codes[learned])
        member.wide.fit(rows, y, checks=apart_rows, **given)
        if starts and isinstance(member.network, PretrainedClassifier):
            start = WideLinear(1, len(member.wide.bias), rows["dense"].shape[1])
            start.fit(_dense_alone(rows), y, checks=_dense_alone(apart_rows), **given)
            assert start.dense is not None
            member.network.begin_with(start.dense, start.bias)


def _dense_alone(rows: Batch) -> Batch:
    """Without n-grams."""
    none = {name: rows[name][:0] for name in ("ngrams", "ngram_weights")}
    return Batch(dense=rows["dense"], ngram_counts=torch.zeros_like(rows["ngram_counts"]), **none)


@torch.no_grad()
def blend_linear(network: Ensemble, checks: Labelled) -> list[float] | None:
    """Weigh networks and linear models by what they say about held-out examples.

    Returns:
        the two scales, of the network and of the linear model; None where there is no linear model.
    """
    wides = [member for member in network.members if isinstance(member, WideAndDeep)]
    assert checks.codes is not None
    usable = np.flatnonzero((checks.codes >= 0) & (checks.lengths > 0))
    if not wides or not len(usable):
        return None
    network.eval()
    device = next(network.parameters()).device
    K = wides[0].wide.bias.shape[0]
    said = torch.zeros(2, len(checks), K)
    order = usable[np.argsort(checks.lengths[usable], kind="stable")]
    for rows in chunks(order, checks.lengths):
        batch = checks.whole_batch(rows).to(device)
        # One axis for the members, one for the two of each.
        parts = torch.stack([torch.stack(member.parts(batch)) for member in wides]).cpu()
        if checks.folds is None:
            said[:, rows] = parts.mean(0)
        else:
            own = torch.from_numpy(checks.folds[rows])
            said[:, rows] = parts[own, :, torch.arange(len(rows))].transpose(0, 1)
    scales = fit_scales(list(said[:, usable]), torch.from_numpy(checks.codes[usable]))
    for member in wides:
        member.scales.copy_(scales)
    return [float(scale) for scale in scales]
