"""What records steps of a model and replays them, where a platform has such a thing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from runtime.config import ServerArgs
from runtime.core.forward_batch import ForwardBatch
from runtime.layers.attention.base import AttentionBackend
from runtime.mem_cache.memory_pool import KVCache
from runtime.models.decoder import CausalLM


class RecordableRunner(Protocol):
    """What a graph runner records: a model runner, whose attributes these are."""

    server_args: ServerArgs
    device: torch.device
    model: CausalLM
    attention_backend: AttentionBackend
    token_to_kv_pool: KVCache
    context_length: int
    max_running_requests: int
    max_prefill_tokens: int
    max_total_tokens: int

    def forward_eager(self, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits, computed operation by operation."""


class GraphRunner(ABC):
    """Made once, after the model and its pools; a platform names its subclass in `get_graph_runner_cls` or
    `get_prefill_graph_runner_cls`."""

    @classmethod  # noqa: B027  (there may be nothing to check)
    def check_device(cls, server_args: ServerArgs, device: torch.device) -> None:
        """Raise what speaks against recording on `device` as soon as that can be known: before a model is loaded.

        Raises:
            EngineError: steps cannot be recorded there.
        """

    def __init__(self, model_runner: RecordableRunner) -> None:
        self.model_runner = model_runner

    @abstractmethod
    def can_run(self, batch: ForwardBatch) -> bool:
        """Whether `replay` takes this batch; one it does not take runs operation by operation."""

    @abstractmethod
    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits of the batch, valid until the next replay; called in the platform's `inference_mode`."""


def runner_for(batch: ForwardBatch, runners: Sequence[GraphRunner]) -> GraphRunner | None:
    """The first of `runners` that takes the batch; None if it has to run operation by operation."""
    return next((runner for runner in runners if runner.can_run(batch)), None)
