"""Token ids to vectors, and vectors to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class VocabEmbedding:
    """The token table. The output projection is one too; a tied model uses a single table for both.

    Attributes:
        weight: [vocab, hidden].
    """

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(vocab_size, hidden_size, dtype=dtype, device=device)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 ids to [T, hidden]."""
        return F.embedding(input_ids, self.weight)

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, hidden] to [B, vocab]."""
        return F.linear(hidden_states, self.weight)
