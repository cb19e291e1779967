"""What records steps of a model and replays them, where a platform has such a thing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch

from runtime.core.forward_batch import ForwardBatch


class EagerRunner(Protocol):
    """What a graph runner records: a model runner."""

    device: torch.device

    def forward_eager(self, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits, computed operation by operation."""


class GraphRunner(ABC):
    """Made once, after the model and its pools; a platform names its subclass in `get_graph_runner_cls`."""

    def __init__(self, model_runner: EagerRunner) -> None:
        self.model_runner = model_runner

    @abstractmethod
    def can_run(self, batch: ForwardBatch) -> bool:
        """Whether `replay` takes this batch; one it does not take runs operation by operation."""

    @abstractmethod
    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """[B, vocab] logits of the batch; called in the platform's `inference_mode`."""
