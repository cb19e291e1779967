"""The main process's side: owns the scheduler process, sends it requests and hands each its outputs.

One thread reads everything that the scheduler says and another writes everything that it is told. So neither process is
ever blocked by the other's writing, the scheduler's death is seen at once whoever is waiting, and a Ctrl-C in the main
thread can never cut a message in half.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Final

import hookery
from runtime.config import ServerArgs
from runtime.core import errors
from runtime.core.errors import EngineDeadError, EngineError, InvalidRequestError
from runtime.core.request import FinishReason
from runtime.core.sampling_params import SamplingParams
from runtime.managers import batch_policy, scheduler_process, tokenizer
from runtime.managers.io_struct import (
    AbortRequest,
    BatchOutput,
    Channel,
    ChannelClosedError,
    EngineLimits,
    FromScheduler,
    GenerateRequest,
    HookListing,
    ListHooks,
    RequestOutput,
    SchedulerFailed,
    SchedulerReady,
    Shutdown,
    ToScheduler,
)
from runtime.platforms import host_threads

SHUTDOWN_SECONDS: Final = 5.0
"""How long the scheduler may take to leave before it is terminated."""


@dataclass(frozen=True)
class Chunk:
    """A piece of one request's output. The last chunk of a request has a finish reason."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class _Pending:
    """A request that was sent: where its outputs go, and under which number its caller knows it."""

    request_id: str
    number: int
    arrivals: queue.SimpleQueue[tuple[int, RequestOutput | EngineError]]


class TokenizerManager:
    """Starts the scheduler and waits until its model is loaded.

    Raises:
        EngineError: the scheduler cannot start; it has said why.
        hookery.HookError: a plugin or a hook cannot be applied there.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        self.tokenizer = tokenizer.load_tokenizer(server_args.model)
        self._numbers = itertools.count()
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()
        self._listings: queue.SimpleQueue[HookListing | EngineError] = queue.SimpleQueue()
        self._listing_lock = threading.Lock()
        self._death: EngineError | None = None
        self._closing = False
        self._closed = False
        self._owner_pid = os.getpid()
        self._outbox: queue.SimpleQueue[ToScheduler | None] = queue.SimpleQueue()
        self._process, self._channel = _spawn(server_args)
        try:
            self.limits = self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self._process.join()
            self._channel.close()
            raise
        self._threads = [
            threading.Thread(target=self._read, name="scheduler-reader", daemon=True),
            threading.Thread(target=self._write, name="scheduler-writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def scheduler_pid(self) -> int:
        """The process id of the scheduler."""
        assert self._process.pid is not None, "the process was started"
        return self._process.pid

    def encode(self, prompt: str) -> list[int]:
        """The token ids of a prompt, with the special tokens that the tokenizer adds.

        Raises:
            InvalidRequestError: the prompt is not a text, or one that is not valid Unicode.
        """
        if not isinstance(prompt, str):
            raise InvalidRequestError(f"a prompt is a str, not {prompt!r}")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"the prompt {prompt!r} is not valid Unicode: {error.reason}") from None
        ids: list[int] = self.tokenizer.encode(prompt).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def check(self, input_ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse a request that can never run, before anything is sent.

        Raises:
            InvalidRequestError: see `batch_policy.check_fits`.
        """
        batch_policy.check_fits(
            input_ids,
            params.max_new_tokens,
            context_length=self.limits.context_length,
            max_total_tokens=self.limits.max_total_tokens,
            vocab_size=self.limits.vocab_size,
        )

    def stream(self, requests: Sequence[tuple[list[int], SamplingParams]]) -> Generator[tuple[int, Chunk], None, None]:
        """Run requests, each given as token ids and sampling parameters, together.

        Yields `(number, chunk)` in the order in which chunks come; `number` is the position in `requests`. Nothing is
        sent before the first chunk is asked for, and whoever stops asking early aborts what is still running.

        Raises:
            InvalidRequestError: a request can never run; at once, before anything is sent.
            EngineDeadError: the scheduler is gone.
        """
        for input_ids, params in requests:
            self.check(input_ids, params)
        return self._stream(requests)

    def _stream(self, requests: Sequence[tuple[list[int], SamplingParams]]) -> Generator[tuple[int, Chunk], None, None]:
        arrivals: queue.SimpleQueue[tuple[int, RequestOutput | EngineError]] = queue.SimpleQueue()
        running: dict[int, _Pending] = {}
        detokenizers = [tokenizer.IncrementalDetokenizer(self.tokenizer) for _ in requests]
        try:
            for number, (input_ids, params) in enumerate(requests):
                running[number] = self._submit(number, arrivals, input_ids, params)
            while running:
                number, output = arrivals.get()
                if isinstance(output, EngineError):
                    running.clear()
                    raise output
                if output.error is not None:
                    del running[number]
                    raise InvalidRequestError(output.error)
                ended = output.finish_reason is not None
                if ended:
                    del running[number]
                text = detokenizers[number].add(output.token_ids, last=ended)
                yield number, Chunk(text, output.token_ids, output.finish_reason)
        finally:
            for request in running.values():
                self._abort(request)

    def _submit(
        self,
        number: int,
        arrivals: queue.SimpleQueue[tuple[int, RequestOutput | EngineError]],
        input_ids: list[int],
        params: SamplingParams,
    ) -> _Pending:
        request = _Pending(f"request-{next(self._numbers)}", number, arrivals)
        with self._lock:
            self._check_alive()
            self._pending[request.request_id] = request
            self._outbox.put(GenerateRequest(request.request_id, input_ids, params))
        return request

    def _abort(self, request: _Pending) -> None:
        """End a request early. What it holds is freed when the batch it is in has landed."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            if self._pending.pop(request.request_id, None) is not None:
                self._outbox.put(AbortRequest(request.request_id))

    def scheduler_hooks(self) -> list[hookery.HookRecord]:
        """The hooks of the scheduler process.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        with self._listing_lock:
            number = next(self._numbers)
            with self._lock:
                self._check_alive()
                self._outbox.put(ListHooks(number))
            while True:  # an answer to a question that was interrupted may come first
                answer = self._listings.get()
                if isinstance(answer, EngineError):
                    raise answer
                if answer.number == number:
                    return [hookery.HookRecord(**record) for record in answer.records]

    def close(self) -> None:
        """Stop the scheduler; it is killed if it does not leave by itself. May be called again, also from a fork of
        the process that owns it, where it does nothing."""
        if self._closed or os.getpid() != self._owner_pid:
            return
        self._closing = True
        try:
            self._outbox.put(Shutdown())
            self._process.join(SHUTDOWN_SECONDS)
        finally:  # an impatient Ctrl-C leaves no process behind
            self._process.kill()
            self._process.join()
            self._outbox.put(None)
            for thread in self._threads:
                thread.join()
            self._channel.close()
            self._closed = True

    def _wait_until_ready(self) -> EngineLimits:
        try:
            first = self._channel.receive(wait=True)
        except ChannelClosedError:
            how = f"the scheduler process {self._how_it_ended()} while it was starting"
            if self._process.exitcode == 1:  # it could not say why: it did not get as far as its own first line
                how += ' (a script that makes an Engine must do so under `if __name__ == "__main__":`)'
            raise EngineDeadError(how) from None
        if isinstance(first, SchedulerReady):
            return first.limits
        if isinstance(first, SchedulerFailed):
            raise _as_error(first)
        raise AssertionError(f"the scheduler spoke before it was ready: {first!r}")

    def _check_alive(self) -> None:
        """Called with the lock held, before anything is put into the outbox."""
        if os.getpid() != self._owner_pid:
            raise EngineDeadError(
                f"the engine belongs to process {self._owner_pid}, which this one was forked from; make one here"
            )
        if self._death is not None:
            raise self._death

    def _write(self) -> None:
        """The writing thread: until the manager closes or the scheduler is gone."""
        while (message := self._outbox.get()) is not None:
            try:
                self._channel.send(message)
            except ChannelClosedError:
                return  # the reading thread sees it too, and tells everybody
            except Exception as error:  # noqa: BLE001  (whatever it is, nobody may be left waiting for an answer)
                self._die(EngineDeadError(f"a request could not be sent: {type(error).__name__}: {error}"))
                self._process.kill()
                return

    def _read(self) -> None:
        """The reading thread: until the scheduler closes its end."""
        while True:
            try:
                message = self._channel.receive(wait=True)
            except ChannelClosedError:
                self._die()
                return
            except Exception as error:  # noqa: BLE001  (whatever it is, nobody may be left waiting for an answer)
                self._die(EngineDeadError(f"the scheduler's answer is not understood: {type(error).__name__}: {error}"))
                self._process.kill()
                return
            match message:
                case BatchOutput():
                    for output in message.outputs:
                        self._deliver(output)
                case HookListing():
                    self._listings.put(message)
                case SchedulerFailed():
                    self._die(EngineDeadError(f"the scheduler failed: {message.error_type}: {message.message}"))

    def _deliver(self, output: RequestOutput) -> None:
        ended = output.finish_reason is not None or output.error is not None
        with self._lock:
            request = self._pending.pop(output.request_id, None) if ended else self._pending.get(output.request_id)
        if request is not None:  # an aborted request is forgotten here before the scheduler has heard of it
            request.arrivals.put((request.number, output))

    def _die(self, why: EngineError | None = None) -> None:
        """The scheduler is gone: tell everybody who waits, once."""
        if why is None:
            why = EngineDeadError(
                "the engine is shut down" if self._closing else f"the scheduler process {self._how_it_ended()}"
            )
        with self._lock:
            if self._death is None:
                self._death = why
            pending = list(self._pending.values())
            self._pending.clear()
        for request in pending:
            request.arrivals.put((request.number, self._death))
        self._listings.put(self._death)

    def _how_it_ended(self) -> str:
        self._process.join(SHUTDOWN_SECONDS)
        code = self._process.exitcode
        name = f"(pid {self._process.pid})"
        if code is None:
            return f"{name} closed its channel"
        if code < 0:
            return f"{name} was killed by {signal.Signals(-code).name}"
        return f"{name} exited with code {code}"


def _spawn(server_args: ServerArgs) -> tuple[SpawnProcess, Channel[FromScheduler]]:
    if multiprocessing.current_process().daemon:
        raise EngineError(
            "an engine cannot be made in a daemonic process, such as a worker of multiprocessing.Pool, because it"
            " starts a process of its own; concurrent.futures.ProcessPoolExecutor has workers that can"
        )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=scheduler_process.run_scheduler_process, args=(server_args, theirs), name="scheduler", daemon=True
    )
    with host_threads.children_wait_passively(), _interrupt_blocked():
        process.start()
    theirs.close()  # so that the end of the process closes the channel
    _processes.add(process)
    return process, Channel(ours, FromScheduler)


_processes: weakref.WeakSet[SpawnProcess] = weakref.WeakSet()


def _disown_in_fork() -> None:
    """In a fork of the main process: multiprocessing terminates the children it knows of at exit, and these are not
    the fork's."""
    for process in _processes:
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=_disown_in_fork)


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Start children with SIGINT blocked: Ctrl-C goes to the whole terminal, and the main process handles it.

    One that comes meanwhile is delivered to this process at the end.
    """
    resource_tracker.ensure_running()  # its own start would unblock the signal
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _as_error(failed: SchedulerFailed) -> Exception:
    """The error that the scheduler met, as the main process raises it."""
    for module in (errors, hookery):
        error_class = getattr(module, failed.error_type, None)
        if isinstance(error_class, type) and issubclass(error_class, (EngineError, hookery.HookError)):
            return error_class(failed.message)
    return EngineDeadError(f"the scheduler failed to start: {failed.error_type}: {failed.message}")
