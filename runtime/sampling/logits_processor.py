"""Which hidden states become logits."""

from __future__ import annotations

import itertools

import torch

from runtime.core.forward_batch import ForwardBatch


def last_hidden_states(hidden_states: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """[B, hidden] the hidden state of each row's last token, out of [T, hidden].

    Done before the output projection, so that a prompt of a thousand tokens costs one row of logits.
    """
    if batch.forward_mode.is_decode():
        return hidden_states
    last = [end - 1 for end in itertools.accumulate(batch.extend_lens_cpu)]
    return hidden_states.index_select(0, torch.tensor(last, device=hidden_states.device))
