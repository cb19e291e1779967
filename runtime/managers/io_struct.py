"""The messages between the main process and the scheduler, and the channel that carries them.

Every message is a typed `msgspec.Struct`, encoded as MessagePack: nothing is unpickled, and a message of the wrong
shape is an error at the receiving end, not a surprise later.
"""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import msgspec

from runtime.core.request import FinishReason
from runtime.core.sampling_params import SamplingParams


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has to fit into.

    Attributes:
        context_length: tokens of prompt and output together.
        max_total_tokens: KV slots of the pool, shared by all running requests.
        vocab_size: token ids lie in [0, vocab_size).
    """

    context_length: int
    max_total_tokens: int
    vocab_size: int


class GenerateRequest(msgspec.Struct, frozen=True, tag=True):
    """Generate from `input_ids`. Answered by outputs of which exactly one is terminal."""

    request_id: str
    input_ids: list[int]
    sampling_params: SamplingParams


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """End a request early. Its terminal output still comes."""

    request_id: str


class ListHooks(msgspec.Struct, frozen=True, tag=True):
    """Ask for the hooks of the scheduler process; the answer carries the same number."""

    number: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop and exit."""


class SchedulerReady(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded; requests are taken from now on."""

    limits: EngineLimits


class SchedulerFailed(msgspec.Struct, frozen=True, tag=True):
    """The scheduler cannot start or go on; it exits after this message.

    Attributes:
        error_type: class name of the error, so that the main process can raise the same.
        message: one line.
    """

    error_type: str
    message: str


class RequestOutput(msgspec.Struct, frozen=True):
    """What a step made of one request. Terminal if `finish_reason` or `error` is set."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    error: str | None = None


class BatchOutput(msgspec.Struct, frozen=True, tag=True):
    """The outputs of one step."""

    outputs: list[RequestOutput]


class HookListing(msgspec.Struct, frozen=True, tag=True):
    """The answer to `ListHooks`: one dictionary per `hookery.HookRecord`."""

    number: int
    records: list[dict[str, Any]]


ToScheduler = GenerateRequest | AbortRequest | ListHooks | Shutdown
FromScheduler = SchedulerReady | SchedulerFailed | BatchOutput | HookListing

M = TypeVar("M")


class ChannelClosedError(Exception):
    """The process at the other end has closed the channel or is gone."""


class Channel(Generic[M]):
    """One end of a pipe that carries typed messages. `send` may be called from several threads.

    Args:
        connection: the pipe's end; the channel owns it.
        receives: the union of messages that may arrive here.
    """

    def __init__(self, connection: Connection, receives: Any) -> None:
        self.connection = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(receives)
        self._send_lock = threading.Lock()

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        Raises:
            ChannelClosedError: nobody is there to read it.
        """
        data = self._encoder.encode(message)
        try:
            with self._send_lock:
                self.connection.send_bytes(data)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise ChannelClosedError(f"the other process is gone ({error})") from error

    def receive(self, *, wait: bool) -> M | None:
        """Return the next message; without `wait`, `None` if there is none yet.

        Raises:
            ChannelClosedError: the other end is closed and every message has been read.
        """
        try:
            if not wait and not self.connection.poll():
                return None
            return self._decoder.decode(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError, OSError) as error:
            raise ChannelClosedError("the other process has closed the channel") from error

    def close(self) -> None:
        self.connection.close()
