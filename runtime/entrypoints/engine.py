"""The engine: text or token ids in, generated text out, from Python."""

from __future__ import annotations

import operator
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import hookery
from runtime.assets import EMBEDDED_MODEL_DIR
from runtime.config import ServerArgs
from runtime.core.errors import ConfigError, InvalidRequestError
from runtime.core.request import FinishReason
from runtime.core.sampling_params import SamplingParams
from runtime.managers import tokenizer_manager
from runtime.plugins import bootstrap

EMBEDDED_MODEL: Final = str(EMBEDDED_MODEL_DIR)
"""The small model that the package ships, trained on the documentation strings of Python's standard library."""


@dataclass(frozen=True)
class GenerateOutput:
    """What was generated for one prompt.

    Attributes:
        text: the generated text, without the prompt and without special tokens.
        token_ids: the generated token ids, an end-of-sequence token included.
        finish_reason: "stop" at an end-of-sequence or stop token, "length" at `max_new_tokens` or the context's end.
        prompt_token_ids: the token ids that were continued.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_token_ids: list[int]


@dataclass(frozen=True)
class StreamChunk:
    """A piece of the output of the prompt number `index`; `finish_reason` is set on its last one."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


class Engine:
    """A model that is served by a scheduler process of its own; use it as a context manager.

    Installed plugins, and those named by `plugins`, are loaded here and in the scheduler before anything else.

    Args:
        model: a local directory in the Hugging Face layout; the embedded model by default.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        max_running_requests: rows of a batch at most; the platform's default by default, as for the next.
        max_prefill_tokens: prompt tokens of one step at most.
        context_length: tokens of prompt and output together; the model's own by default.
        max_total_tokens: KV slots of the pool; as many as are useful and fit the memory by default.
        page_size: KV slots per page, 1 to 64; the platform's default, which is 1 unless it says otherwise.
        chunked_prefill_size: prompt tokens of one step at most, longer prompts being cut to it; by default none is cut.
        disable_radix_cache: compute every prompt anew instead of keeping the keys and values of earlier ones.
        kv_cache_dtype: "auto" (as `dtype`), "float32", "bfloat16", "float16", "fp8_e4m3" or "fp8_e5m2".
        decode_graph: "on" to record decodes and replay them, or "off"; what the platform does by itself by default.
        prefill_graph: "breakable" or "piecewise" (compiled as well) to record steps with prompts; "off" by default.
        graph_backend: how steps are recorded, one of the platform's ways: on the CPU "plain" or "compiled", on a GPU
            also "device" or "accelerator"; the platform's first by default.
        decode_graph_sizes: batch sizes to record decodes at; a list up to `max_running_requests` by default.
        prefill_graph_sizes: token counts to record steps with prompts at; a list up to the most tokens of a step.
        random_seed: seed of the scheduler's default generators, which sampling without a seed of its own draws from.
        plugins: plugin modules to load beside the installed ones.

    Raises:
        EngineError: the model or the arguments cannot be used (`ModelLoadError`, `ConfigError`), or the scheduler
            ended while it was starting (`EngineDeadError`).
        hookery.HookError: a plugin fails to load, or a hook cannot be applied, here or in the scheduler.
        PlatformError: a platform plugin fails, or several are active.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = EMBEDDED_MODEL,
        *,
        dtype: str = "auto",
        max_running_requests: int | None = None,
        max_prefill_tokens: int | None = None,
        context_length: int | None = None,
        max_total_tokens: int | None = None,
        page_size: int | None = None,
        chunked_prefill_size: int | None = None,
        disable_radix_cache: bool = False,
        kv_cache_dtype: str = "auto",
        decode_graph: str | None = None,
        prefill_graph: str | None = None,
        graph_backend: str | None = None,
        decode_graph_sizes: Sequence[int] | None = None,
        prefill_graph_sizes: Sequence[int] | None = None,
        random_seed: int | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        if isinstance(plugins, str) or not all(isinstance(plugin, str) for plugin in plugins):
            raise ConfigError(f"plugins={plugins!r} is not valid: it must be a list of dotted module names")
        bootstrap.load_process_plugins(plugins)
        self.server_args = ServerArgs(
            model=os.fspath(model) if isinstance(model, os.PathLike) else model,
            dtype=dtype,
            max_running_requests=max_running_requests,
            max_prefill_tokens=max_prefill_tokens,
            context_length=context_length,
            max_total_tokens=max_total_tokens,
            page_size=page_size,
            chunked_prefill_size=chunked_prefill_size,
            disable_radix_cache=disable_radix_cache,
            kv_cache_dtype=kv_cache_dtype,
            decode_graph=decode_graph,
            prefill_graph=prefill_graph,
            graph_backend=graph_backend,
            decode_graph_sizes=None if decode_graph_sizes is None else tuple(decode_graph_sizes),
            prefill_graph_sizes=None if prefill_graph_sizes is None else tuple(prefill_graph_sizes),
            random_seed=random_seed,
            plugins=tuple(plugins),
        ).resolve()
        self.tokenizer_manager = tokenizer_manager.TokenizerManager(self.server_args)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End the scheduler process. Requests that still run end with `EngineDeadError`. May be called again."""
        self.tokenizer_manager.close()

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        input_ids: Sequence[Sequence[int]] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[GenerateOutput]:
        """Generate for every prompt and return one output for each, in their order.

        Args:
            prompts: texts; a single string is a list of one.
            input_ids: token ids, instead of texts.
            sampling_params: for all prompts, or one for each; greedy by default.

        Raises:
            InvalidRequestError: both or neither of `prompts` and `input_ids` are given, the numbers of prompts and
                sampling parameters differ, or a prompt does not fit; nothing has run then.
            EngineDeadError: the scheduler is gone.
        """
        requests = self._requests(prompts, input_ids, sampling_params)
        token_ids: list[list[int]] = [[] for _ in requests]
        reasons: list[FinishReason | None] = [None for _ in requests]
        for number, chunk in self.tokenizer_manager.stream(requests):
            token_ids[number] += chunk.token_ids
            reasons[number] = chunk.finish_reason
        return [
            GenerateOutput(self.tokenizer_manager.decode(ids), ids, _finish_reason(reason), prompt_ids)
            for ids, reason, (prompt_ids, _) in zip(token_ids, reasons, requests, strict=True)
        ]

    def stream(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        input_ids: Sequence[Sequence[int]] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Generator[StreamChunk, None, None]:
        """Like `generate`, but yield the pieces of all outputs as they come. Errors of the arguments come at once.

        Closing the iterator early aborts what still runs.
        """
        requests = self._requests(prompts, input_ids, sampling_params)
        return _stream_chunks(self.tokenizer_manager.stream(requests))

    def applied_hooks(self) -> dict[str, list[hookery.HookRecord]]:
        """The hooks of every process of the engine, by the name of the process.

        Raises:
            EngineDeadError: the scheduler is gone.
        """
        return {"main": hookery.applied_hooks(), "scheduler": self.tokenizer_manager.scheduler_hooks()}

    def _requests(
        self,
        prompts: str | Sequence[str] | None,
        input_ids: Sequence[Sequence[int]] | None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[tuple[list[int], SamplingParams]]:
        if (prompts is None) == (input_ids is None):
            raise InvalidRequestError("give either prompts or input_ids")
        if prompts is not None:
            texts = [prompts] if isinstance(prompts, str) else list(prompts)
            ids = [self.tokenizer_manager.encode(text) for text in texts]
        else:
            assert input_ids is not None, "one of the two is given"
            ids = [_token_ids(row) for row in input_ids]
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(ids)
        else:
            params = list(sampling_params)
        for param in params:
            if not isinstance(param, SamplingParams):
                raise InvalidRequestError(f"sampling_params are SamplingParams, not {param!r}")
        if len(params) != len(ids):
            raise InvalidRequestError(f"{len(ids)} prompts but {len(params)} sampling parameters")
        return list(zip(ids, params, strict=True))


def _token_ids(row: Sequence[int]) -> list[int]:
    """A row of token ids as Python ints; NumPy's and torch's integers are welcome, floats and truth values are not."""
    if isinstance(row, (str, bytes)) or not hasattr(row, "__iter__"):
        raise InvalidRequestError(f"input_ids is a list of lists of token ids, and {row!r} is no list of token ids")
    ids = []
    for token_id in row:
        try:
            ids.append(operator.index(token_id))
        except TypeError:
            raise InvalidRequestError(f"a token id is an int, not {token_id!r}") from None
        if isinstance(token_id, bool):
            raise InvalidRequestError(f"a token id is an int, not {token_id!r}")
    return ids


def _stream_chunks(
    stream: Generator[tuple[int, tokenizer_manager.Chunk], None, None],
) -> Generator[StreamChunk, None, None]:
    with closing(stream):
        for number, chunk in stream:
            reason = None if chunk.finish_reason is None else chunk.finish_reason.value
            yield StreamChunk(number, chunk.text, chunk.token_ids, reason)


def _finish_reason(reason: FinishReason | None) -> str:
    assert reason is not None, "a stream ends only after every request's terminal chunk"
    return reason.value
