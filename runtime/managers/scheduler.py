"""The scheduler: takes requests, runs batches, sends tokens back. It lives in a process of its own.

The loop in one line: receive, choose a batch, run it, process what it gave. Prompts join while others decode
(continuous batching), in one mixed forward pass; a prompt may be cut into chunks that run in several steps. Finishing
and aborting only mark a request; what it holds is released when the batch it was in has landed. Where decodes
need slots that nobody can give, a running request is retracted and waits again.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass

import torch

import hookery
from runtime.config import CHECK_ENV, ServerArgs
from runtime.core.errors import ConfigError, EngineError, InvalidRequestError
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
    """The requests of one step.

    Attributes:
        extends: those whose prompt, or what is left of it, runs now.
        decodes: those that decode one more token.
        extend_lens: how many tokens of each extend run.
        chunked: the last of `extends` if more of its prompt is left for later steps; it gets no token yet.
    """

    extends: list[Request]
    decodes: list[Request]
    extend_lens: list[int]
    chunked: Request | None = None

    @property
    def requests(self) -> list[Request]:
        """The rows that get a token, in the order of the forward batch."""
        return self.extends[: len(self.extends) - (self.chunked is not None)] + self.decodes


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
            page_size=self.model_runner.page_size,
            max_prefill_tokens=self.model_runner.max_prefill_tokens,
            chunked_prefill_size=self.model_runner.server_args.chunked_prefill_size,
        )
        self.builder = self.model_runner.batch_builder
        self.new_token_ratio = batch_policy.INITIAL_NEW_TOKEN_RATIO
        self.check_when_idle = _check_when_idle()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.chunked: Request | None = None
        self._arrivals = itertools.count()
        self.by_id: dict[str, Request] = {}
        self.stopping = False

    def event_loop(self) -> None:
        """Serve until the main process says `Shutdown`.

        Raises:
            ChannelClosedError: the main process is gone.
        """
        while not self.stopping:
            self.receive_messages()
            if self.has_work:
                self.step()
                if self.check_when_idle and not self.has_work:
                    self.builder.check_integrity([])

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting or self.running or self.chunked)

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
        message = self.channel.receive(wait=not self.has_work)
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
        self._make_room_for_decodes()
        extends, extend_lens = self._choose_prompts()
        decodes = self.running
        if not extends and not decodes:
            return None
        chunked = self.chunked if extends and extends[-1] is self.chunked else None
        self.running = decodes + (extends[:-1] if chunked else extends)
        return ScheduleBatch(extends, decodes, extend_lens, chunked)

    def _make_room_for_decodes(self) -> None:
        """Retract running requests until the others can decode."""
        if self.builder.decode_slots(self.running) <= self.builder.available_slots():
            self.new_token_ratio = batch_policy.decayed_ratio(self.new_token_ratio)
            return
        retracted = []
        while self.builder.decode_slots(self.running) > self.builder.available_slots():
            candidates = self.running if self.chunked is None else [*self.running, self.chunked]
            if len(candidates) == 1:
                self._fail(candidates[0])
                break
            victim = candidates[
                self.policy.choose_retraction([(len(r.output_ids), len(r.input_ids)) for r in candidates])
            ]
            if victim is self.chunked:
                self.chunked = None
            else:
                self.running.remove(victim)
            # What was computed of it can be found again, unless its slots are needed before it is back.
            self.builder.finish([victim])
            retracted.append(victim)
        self.waiting.extendleft(sorted(retracted, key=lambda request: request.arrival, reverse=True))
        self.new_token_ratio = batch_policy.ratio_after_retraction(
            self.new_token_ratio, [(len(r.output_ids), r.sampling_params.max_new_tokens) for r in self.running]
        )

    def _choose_prompts(self) -> tuple[list[Request], list[int]]:
        """The requests whose prompts run in this step and how much of each; `chunked` is what is cut, or None."""
        extends: list[Request] = []
        lens: list[int] = []
        budget = self.policy.prefill_budget
        taken = self.builder.decode_slots(self.running)  # by the batch that is being put together
        if self.chunked is not None:
            request, demand = self.chunked, self._demand(self.chunked)
            tokens = self.policy.next_chunk(demand, self.builder.available_slots() - taken)
            if tokens == 0:
                if not self.running:
                    self._fail(request)
                return extends, lens
            extends.append(request)
            lens.append(tokens)
            if tokens < demand.missing_tokens:
                return extends, lens
            self.chunked = None
            taken += self.policy.slots_between(demand.cached_tokens, demand.tokens)
            budget -= tokens
        if not self.waiting:
            return extends, lens
        growing = [*self.running, *extends]
        taken += sum(self.policy.expected_growth(self._demand(r), self.new_token_ratio) for r in growing)
        while self.waiting and budget > 0 and self.chunked is None:
            rows = self.model_runner.req_to_token_pool.available_size()
            if rows == 0:
                break
            request = self.waiting[0]
            self.builder.start(request)
            demand = self._demand(request)
            is_idle = not self.running and not extends
            room = batch_policy.Room(rows, self.builder.available_slots() - taken, budget, bool(extends), is_idle)
            tokens = self.policy.admit(demand, room, self.new_token_ratio)
            if tokens == 0:
                self.builder.release(request)
                if is_idle:
                    self._fail(request)
                    continue
                break
            self.waiting.popleft()
            extends.append(request)
            lens.append(tokens)
            if tokens < demand.missing_tokens:
                self.chunked = request
            taken += self.policy.slots_between(demand.cached_tokens, demand.tokens)
            taken += self.policy.expected_growth(demand, self.new_token_ratio)
            budget -= tokens
        return extends, lens

    def run_batch(self, batch: ScheduleBatch) -> list[int]:
        """Forward and sample: the next token of every request of the batch that has its whole prompt in it."""
        forward_batch = self.model_runner.prepare_forward_batch(batch.extends, batch.decodes, batch.extend_lens)
        logits = self.model_runner.forward(forward_batch)
        requests = batch.requests
        if batch.chunked is not None:  # a prompt that goes on draws no token, so that its generator stays where it is
            if not requests:
                return []
            logits = torch.cat([logits[: len(batch.extends) - 1], logits[len(batch.extends) :]])
        sampling_batch = sampler.SamplingBatch.from_requests(requests)
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
        for request in batch.extends:
            if not request.finished and request is not batch.chunked:
                self.builder.cache(request)
        self._forget([request for request in batch.requests if request.finished])
        if outputs:
            self.channel.send(BatchOutput(outputs))

    def _demand(self, request: Request) -> batch_policy.Demand:
        return self.policy.demand(
            len(request.input_ids), len(request.output_ids), request.kv_len, request.sampling_params.max_new_tokens
        )

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
        request = Request(message.request_id, message.input_ids, message.sampling_params, arrival=next(self._arrivals))
        self.by_id[request.request_id] = request
        self.waiting.append(request)

    def _abort(self, request_id: str) -> None:
        request = self.by_id.get(request_id)
        if request is not None:  # else it has ended, and its terminal output is on its way
            request.abort()

    def _forget(self, ended: list[Request]) -> None:
        """Release what requests hold that have ended."""
        if not ended:
            return
        self.waiting = deque(request for request in self.waiting if not request.finished)
        self.running = [request for request in self.running if not request.finished]
        if self.chunked is not None and self.chunked.finished:
            self.chunked = None
        self.builder.finish(ended)
        for request in ended:
            del self.by_id[request.request_id]

    def _release_finished(self) -> None:
        """Release what was aborted since the last batch landed, and send each its terminal output."""
        alive = [*self.waiting, *self.running, *([] if self.chunked is None else [self.chunked])]
        ended = [request for request in alive if request.finished]
        if ended:
            self._forget(ended)
            self.channel.send(BatchOutput([RequestOutput(r.request_id, [], r.finish_reason) for r in ended]))

    def _fail(self, request: Request) -> None:
        """End a request that cannot have the slots it needs although nobody else runs."""
        error = (
            f"{request.request_id} cannot go on: it has {request.num_tokens} tokens, {request.kv_len} of them in KV"
            f" slots, and of the pool's {self.limits.max_total_tokens} slots {self.builder.available_slots()} are to be"
            " had; raise max_total_tokens"
        )
        request.abort()
        self._forget([request])
        self.channel.send(BatchOutput([RequestOutput(request.request_id, [], error=error)]))


def _check_when_idle() -> bool:
    wanted = os.environ.get(CHECK_ENV, "")
    if wanted not in ("", "0", "1"):
        raise ConfigError(f"{CHECK_ENV}={wanted!r} is not valid: set it to 1 to check the pools, or to 0")
    return wanted == "1"
