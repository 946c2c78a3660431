"""`TreeClassifier`: words at the leaves of trees, a tree LSTM, a class for every node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.forest import Forest
from ostinato.layers.options import check_choice
from ostinato.layers.tree import ChildSumTreeLSTM, NaryTreeLSTM, TreeLSTM, TreeOutput
from ostinato.models.token_encoder import TokenEncoder
from ostinato.types import Batch, LossOutput

CELLS = ("nary", "child_sum")


class TreeClassifier(nn.Module):
    """A class for each tree, learned from those of all its nodes (Tai et al. 2015, arXiv:1503.00075, §4.1).

    Args:
        sizes: `TreePreparation.sizes`.
        n_classes: K.
        cell: `nary`, where the children of a node have an order, or `child_sum`.
        hidden_size: H.
        max_children: N, for `nary`.
        dropout_in, dropout_candidate, dropout_out: of the tree LSTM; `dropout_out` is before the classes.
        init: of the tree LSTM.
        **tokens: options of `TokenEncoder`, such as `word_size` and `spelling`.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; an option that does not fit.

    Cost: that of the tree LSTM, and 2·H·K flops a node.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        n_classes: int,
        *,
        cell: str = "nary",
        hidden_size: int = 150,
        max_children: int = 2,
        dropout_in: float = 0.5,
        dropout_candidate: float = 0.0,
        dropout_out: float = 0.5,
        init: str | Mapping[str, Any] = "torch",
        **tokens: Any,
    ):
        super().__init__()
        check_sizes("TreeClassifier", n_classes=n_classes)
        check_choice("TreeClassifier", "cell", cell, CELLS)
        self.n_classes = n_classes
        # A tree's leaves are masked one by one, in the layer.
        self.words = TokenEncoder(sizes, **{"dropout": 0.0, **tokens})
        options: dict[str, Any] = {
            "dropout_in": dropout_in,
            "dropout_candidate": dropout_candidate,
            "dropout_out": dropout_out,
            "init": init,
        }
        width = self.words.output_size
        self.tree: TreeLSTM = (
            NaryTreeLSTM(width, hidden_size, max_children, **options)
            if cell == "nary"
            else ChildSumTreeLSTM(width, hidden_size, **options)
        )
        self.head = nn.Linear(hidden_size, n_classes)

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

    def loss(self, batch: Batch, state: None = None) -> LossOutput:
        """Cross-entropy, summed over all nodes that have a class.

        The batch says which: `node_y` (M,) for the nodes, -1 where there is none, and `y` (B,) for the roots;
        either may be left out, and at a root `y` counts.

        Raises:
            InputError: neither of them.
        """
        output, forest = self._encode(batch)
        y = batch.get("node_y")
        if "y" in batch:
            y = torch.full_like(batch["parents"], -1) if y is None else y
            y = y.index_copy(0, forest.roots, batch["y"])
        if y is None:
            raise InputError("TreeClassifier.loss: the batch has neither node_y (M,) nor y (B,)")
        # Most nodes of many treebanks have no class.
        known = (y >= 0).nonzero().squeeze(1)
        total = F.cross_entropy(self.head(output.h.index_select(0, known)), y[known], reduction="sum")
        return LossOutput(total, torch.tensor(len(known)))

    def _encode(self, batch: Batch) -> tuple[TreeOutput, Forest]:
        forest = Forest(batch["parents"], batch["heights"])
        words = self.words(batch)
        # Row by row: the leaves tree after tree, from left to right, as the forest has them.
        is_word = torch.arange(words.shape[1], device=words.device) < batch["lengths"].unsqueeze(1)
        return self.tree(words[is_word], forest), forest
