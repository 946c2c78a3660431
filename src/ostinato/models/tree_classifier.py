"""`TreeClassifier`: words at the leaves of trees, a tree LSTM, a class for every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.forest import Forest
from ostinato.layers.options import check_choice, check_known
from ostinato.layers.tree import ChildSumTreeLSTM, NaryTreeLSTM, TreeLSTM, TreeOutput
from ostinato.models.class_loss import ClassLoss
from ostinato.models.token_encoder import TokenEncoder
from ostinato.types import Batch, LossOutput

_OPTIONS = ("bias", "dropout_in", "dropout_out", "dropout_candidate", "init")
CELLS = {"nary": (*_OPTIONS, "max_children"), "child_sum": _OPTIONS}
"""The tree LSTMs by name, with the options that each takes."""


class TreeClassifier(nn.Module):
    """A class for each tree, learned from those of all its nodes (Tai et al. 2015, arXiv:1503.00075, §4.1).

    Args:
        sizes: `TreePreparation.sizes`.
        output_size: K, classes.
        cell: `nary`, where the children of a node have an order, or `child_sum`.
        hidden_size: H.
        class_weights: (K,) factors on the loss of each class.
        label_smoothing: the share of each target that is spread over all classes (arXiv:1512.00567).
        tokens: options of `TokenEncoder`, such as `word_size` and `spelling`.
        **options: of the tree LSTM, such as `max_children` for `nary`; `dropout_in` (of the words) and
            `dropout_out` (before the classes) are 0.5 where they are not told.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; an option that does not fit.

    Cost: that of the tree LSTM, and 2·H·K flops a node.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        output_size: int,
        *,
        cell: str = "nary",
        hidden_size: int = 150,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        tokens: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        check_sizes("TreeClassifier", output_size=output_size)
        check_choice("TreeClassifier", "cell", cell, CELLS)
        check_known("TreeClassifier", options, CELLS[cell])
        # A tree's leaves are masked one by one, in the layer.
        self.tokens = TokenEncoder(sizes, **{"dropout": 0.0, **(tokens or {})})
        kind = NaryTreeLSTM if cell == "nary" else ChildSumTreeLSTM
        options = {"dropout_in": 0.5, "dropout_out": 0.5, **options}
        self.tree: TreeLSTM = kind(self.tokens.output_size, hidden_size, **options)
        self.head = nn.Linear(hidden_size, output_size)
        self.objective = ClassLoss("TreeClassifier", output_size, class_weights, label_smoothing)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the trees' classes, at the roots: (B, K).

        Args:
            batch: what `EncodedForests.batch` gives.
        """
        output, _ = self._encode(batch)
        logits: Tensor = self.head(output.roots)
        return logits

    def node_logits(self, batch: Batch) -> Tensor:
        """Logits of all nodes' classes, (M, K)."""
        output, _ = self._encode(batch)
        logits: Tensor = self.head(output.h)
        return logits

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross-entropy, summed over all nodes that have a class.

        The batch says which: `node_y` (M,) for the nodes, -1 where there is none, and `y` (B,) for the roots;
        either may be left out, and at a root `y` counts.

        Raises:
            InputError: neither of them; a state, which whole trees do not carry.
        """
        if state is not None:
            raise InputError("TreeClassifier.loss: trees are whole, and no state is carried to the next")
        output, forest = self._encode(batch)
        y = batch.get("node_y")
        if "y" in batch:
            y = torch.full_like(batch["parents"], -1) if y is None else y
            y = y.index_copy(0, forest.roots, batch["y"])
        if y is None:
            raise InputError("TreeClassifier.loss: the batch has neither node_y (M,) nor y (B,)")
        # Most nodes of many treebanks have no class.
        known = (y >= 0).nonzero().squeeze(1)
        return self.objective(self.head(output.h.index_select(0, known)), y[known])

    def _encode(self, batch: Batch) -> tuple[TreeOutput, Forest]:
        forest = Forest(batch["parents"], batch["heights"])
        x = self.tokens(batch)
        # Row by row: the leaves tree after tree, from left to right, as the forest has them.
        is_word = torch.arange(x.shape[1], device=x.device) < batch["lengths"].unsqueeze(1)
        return self.tree(x[is_word], forest), forest
