"""The scheduler: takes requests, runs batches, sends tokens back. It lives in a process of its own.

The loop in one line: receive, choose a batch, run it, process what it gave. Prompts join while others decode
(continuous batching), in one mixed forward pass. Finishing and aborting only mark a request; what it holds is
released when the batch it was in has landed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import hookery
from runtime.config import ServerArgs
from runtime.core.errors import EngineError, InvalidRequestError
from runtime.core.request import Request
from runtime.managers import batch_policy
from runtime.managers.io_struct import (
    AbortRequest,
    BatchOutput,
    Channel,
    EngineLimits,
    GenerateRequest,
    HookListing,
    ListHooks,
    RequestOutput,
    Shutdown,
    ToScheduler,
)
from runtime.model_executor import model_runner
from runtime.sampling import sampler


@dataclass(frozen=True)
class ScheduleBatch:
    """The requests of one step: those whose prompt runs now, and those that decode one more token."""

    extends: list[Request]
    decodes: list[Request]

    @property
    def requests(self) -> list[Request]:
        """All rows, in the order of the forward batch."""
        return self.extends + self.decodes


class Scheduler:
    """Owns the model, the waiting and the running requests.

    Raises:
        EngineError: the model cannot be loaded or the arguments do not fit it.
    """

    def __init__(self, server_args: ServerArgs, channel: Channel[ToScheduler]) -> None:
        self.channel = channel
        self.model_runner = model_runner.ModelRunner(server_args)
        self.limits = EngineLimits(
            context_length=self.model_runner.context_length,
            max_total_tokens=self.model_runner.max_total_tokens,
            vocab_size=self.model_runner.vocab_size,
        )
        self.policy = batch_policy.BatchPolicy(
            context_length=self.limits.context_length,
            max_total_tokens=self.limits.max_total_tokens,
            max_running_requests=self.model_runner.max_running_requests,
            max_prefill_tokens=self.model_runner.max_prefill_tokens,
        )
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.by_id: dict[str, Request] = {}
        self.stopping = False

    def event_loop(self) -> None:
        """Serve until the main process says `Shutdown`.

        Raises:
            ChannelClosedError: the main process is gone.
        """
        while not self.stopping:
            self.receive_messages()
            if self.waiting or self.running:
                self.step()

    def step(self) -> int:
        """Run one batch and send what it gave. Returns how many tokens were made."""
        batch = self.get_next_batch_to_run()
        if batch is None:
            return 0
        next_token_ids = self.run_batch(batch)
        self.process_batch_result(batch, next_token_ids)
        return len(next_token_ids)

    def receive_messages(self) -> None:
        """Take every message that has arrived; with nothing to run, wait for one."""
        message = self.channel.receive(wait=not (self.waiting or self.running))
        while message is not None:
            match message:
                case GenerateRequest():
                    self._accept(message)
                case AbortRequest():
                    self._abort(message.request_id)
                case ListHooks():
                    records = [record.to_dict() for record in hookery.applied_hooks()]
                    self.channel.send(HookListing(message.number, records))
                case Shutdown():
                    self.stopping = True
                    return
            message = self.channel.receive(wait=False)

    def get_next_batch_to_run(self) -> ScheduleBatch | None:
        """Admit waiting requests as the policy allows; they join the running ones in one batch."""
        self._release_finished()
        demands = (self._demand(request) for request in self.waiting)
        reserved = sum(self._demand(request).max_kv_slots for request in self.running)
        admitted = self.policy.admit(demands, len(self.running), reserved)
        extends = [self.waiting.popleft() for _ in range(admitted)]
        decodes = self.running
        self.running = extends + decodes
        return ScheduleBatch(extends, decodes) if self.running else None

    def run_batch(self, batch: ScheduleBatch) -> list[int]:
        """Forward and sample: the next token of every request of the batch."""
        forward_batch = self.model_runner.prepare_forward_batch(batch.extends, batch.decodes)
        logits = self.model_runner.forward(forward_batch)
        sampling_batch = sampler.SamplingBatch.from_requests(batch.requests)
        return self.model_runner.sample(logits, sampling_batch)

    def process_batch_result(self, batch: ScheduleBatch, next_token_ids: list[int]) -> None:
        """Give every request its token, decide who has ended, send the tokens, release what has ended."""
        outputs = []
        if len(next_token_ids) != len(batch.requests) or any(type(token_id) is not int for token_id in next_token_ids):
            raise EngineError(
                f"a batch of {len(batch.requests)} requests gave {next_token_ids!r} instead of one int for each; a hook"
                " on Scheduler.run_batch or ModelRunner.sample has to return a list of ints"
            )
        for request, token_id in zip(batch.requests, next_token_ids, strict=True):
            request.append_token(token_id, self.model_runner.eos_token_ids, self.limits.context_length)
            outputs.append(RequestOutput(request.request_id, [token_id], request.finish_reason))
        self.running = [request for request in self.running if not request.finished]
        for request in batch.requests:
            if request.finished:
                self._forget(request)
        self.channel.send(BatchOutput(outputs))

    def _demand(self, request: Request) -> batch_policy.Demand:
        return self.policy.demand(len(request.input_ids), request.sampling_params.max_new_tokens)

    def _accept(self, message: GenerateRequest) -> None:
        try:
            batch_policy.check_fits(
                message.input_ids,
                message.sampling_params.max_new_tokens,
                context_length=self.limits.context_length,
                max_total_tokens=self.limits.max_total_tokens,
                vocab_size=self.limits.vocab_size,
            )
        except InvalidRequestError as error:
            self.channel.send(BatchOutput([RequestOutput(message.request_id, [], error=str(error))]))
            return
        request = Request(message.request_id, message.input_ids, message.sampling_params)
        self.by_id[request.request_id] = request
        self.waiting.append(request)

    def _abort(self, request_id: str) -> None:
        request = self.by_id.get(request_id)
        if request is not None:  # else it has ended, and its terminal output is on its way
            request.abort()

    def _forget(self, request: Request) -> None:
        self.model_runner.release(request)
        del self.by_id[request.request_id]

    def _release_finished(self) -> None:
        """Release what was aborted since the last batch landed, and send each its terminal output."""
        ended = [request for request in [*self.waiting, *self.running] if request.finished]
        if not ended:
            return
        self.waiting = deque(request for request in self.waiting if not request.finished)
        self.running = [request for request in self.running if not request.finished]
        for request in ended:
            self._forget(request)
        self.channel.send(BatchOutput([RequestOutput(r.request_id, [], r.finish_reason) for r in ended]))
