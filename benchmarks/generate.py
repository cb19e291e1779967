"""Prefill and decode speed of the runtime beside `transformers` `generate`, on the same weights in one run.

Both sides run in this process, with the same dtype, threads and prompts, and must produce the same tokens in fp32. The
rounds of the two alternate, so that a machine whose speed drifts treats both alike; the median is printed, with the
range. Prefill is the time to the first token of every prompt, decode the time from there to the last.

    python benchmarks/generate.py                          # a random checkpoint
    python benchmarks/generate.py --model DIR --dtype bfloat16 --batch-sizes 1 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.platforms import PLATFORM_ENV, host_threads

host_threads.wait_passively()  # as the scheduler does; it serves both sides, and has to come before torch
os.environ[PLATFORM_ENV] = "cpu"  # where the other side runs, and whose memory is the limit

import torch  # noqa: E402
import transformers  # noqa: E402

from runtime.config import ServerArgs  # noqa: E402
from runtime.core.request import Request  # noqa: E402
from runtime.core.sampling_params import SamplingParams  # noqa: E402
from runtime.model_executor.model_runner import ModelRunner  # noqa: E402
from runtime.sampling.sampler import SamplingBatch  # noqa: E402


@dataclass(frozen=True)
class Timing:
    """Seconds of one round."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Row:
    """The figures of one engine at one batch size, in tokens per second over all rounds."""

    engine: str
    batch_size: int
    prefill_median: float
    prefill_range: tuple[float, float]
    decode_median: float
    decode_range: tuple[float, float]


class RuntimeSide:
    """The runtime without its processes: the batch, the model and the sampler of a scheduler step."""

    name = "runtime"

    def __init__(self, model: str, dtype: str) -> None:
        self.runner = ModelRunner(ServerArgs(model=model, dtype=dtype).resolve())

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> tuple[Timing, list[list[int]]]:
        """Generate `new_tokens` for every prompt; return the timing and the token ids."""
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        requests = [Request(str(number), list(prompt), params) for number, prompt in enumerate(prompts)]
        started = time.perf_counter()
        self._step(requests, [])
        prefilled = time.perf_counter()
        while not requests[0].finished:
            self._step([], requests)
        ended = time.perf_counter()
        for request in requests:
            self.runner.release(request)
        return Timing(prefilled - started, ended - prefilled), [request.output_ids for request in requests]

    def _step(self, extends: list[Request], decodes: list[Request]) -> None:
        batch = self.runner.prepare_forward_batch(extends, decodes)
        rows = extends + decodes
        tokens = self.runner.sample(self.runner.forward(batch), SamplingBatch.from_requests(rows))
        for request, token in zip(rows, tokens, strict=True):
            request.append_token(token, frozenset(), self.runner.context_length)


class TransformersSide:
    """`AutoModelForCausalLM.generate`, greedy, with its default cache and attention."""

    name = "transformers"

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> tuple[Timing, list[list[int]]]:
        """Like `RuntimeSide.run`. The first token's time is taken by a streamer, inside the one `generate` call."""
        input_ids = torch.tensor(prompts)
        clock = _FirstTokenClock()
        started = time.perf_counter()
        with torch.inference_mode():
            output = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=new_tokens,
                eos_token_id=None,  # both sides go on to the last token
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        ended = time.perf_counter()
        prefilled = clock.first_token
        return Timing(prefilled - started, ended - prefilled), output[:, input_ids.shape[1] :].tolist()


class _FirstTokenClock(transformers.StoppingCriteria):
    """Never stops; notes when it is first asked, which is right after the first token of every row."""

    def __init__(self) -> None:
        self.first_token = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.first_token = self.first_token or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def make_random_checkpoint(directory: Path) -> None:
    """Write a Llama of some 30 million random parameters (hidden 512, 8 layers, GQA) to `directory`."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # far-apart logits: rounding must not decide a token
    model.save_pretrained(directory)


def measure(
    ours: RuntimeSide,
    theirs: TransformersSide,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
) -> list[Row]:
    """Run both sides at every batch size, alternating, and return their rows.

    Raises:
        SystemExit: in fp32 the two sides disagree about a token; speed is then meaningless.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for batch_size in batch_sizes:
        prompts = torch.randint(ours.runner.vocab_size, (batch_size, prompt_tokens), generator=generator).tolist()
        timings: dict[str, list[Timing]] = {ours.name: [], theirs.name: []}
        for number in range(rounds + 1):
            tokens = {}
            for side in (ours, theirs):
                timing, tokens[side.name] = side.run(prompts, new_tokens)
                if number:  # the first round warms both up
                    timings[side.name].append(timing)
            if ours.runner.dtype is torch.float32 and tokens[ours.name] != tokens[theirs.name]:
                sys.exit("the runtime and transformers disagree about a token in fp32; no speed is worth printing")
            _progress(f"batch {batch_size}: round {number} of {rounds}")
        for name, measured in timings.items():
            prefill = [batch_size * prompt_tokens / timing.prefill for timing in measured]
            decode = [batch_size * (new_tokens - 1) / timing.decode for timing in measured]
            rows.append(
                Row(
                    name,
                    batch_size,
                    statistics.median(prefill),
                    (min(prefill), max(prefill)),
                    statistics.median(decode),
                    (min(decode), max(decode)),
                )
            )
    _progress("")
    return rows


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def memory_limit(runner: ModelRunner) -> float:
    """Decode steps per second at which reading the weights alone takes all of the measured memory bandwidth.

    Counted are the weights that every step reads whole; of an untied input embedding it reads a row for each request.
    """
    config = runner.model_config
    weights = sum(tensor.nbytes for tensor in runner.model.checkpoint_tensors().values())
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size * runner.dtype.itemsize
    buffer = torch.ones(64 * 2**20, dtype=torch.float32)
    best = min(_seconds(buffer.sum) for _ in range(5))
    return buffer.nbytes / best / weights


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def print_table(rows: Sequence[Row], steps_per_second: float) -> None:
    """Print the rows, the ratio to transformers, and the share of the memory limit that decoding reaches."""
    print(f"{'batch':>5}  {'engine':<12}  {'prefill tok/s':>26}  {'decode tok/s':>26}  {'ratios':>13}  {'of limit':>8}")
    peers = {row.batch_size: row for row in rows if row.engine == TransformersSide.name}
    for row in rows:
        peer = peers[row.batch_size]
        ratios = f"{row.prefill_median / peer.prefill_median:.2f}x {row.decode_median / peer.decode_median:.2f}x"
        share = row.decode_median / row.batch_size / steps_per_second
        print(
            f"{row.batch_size:>5}  {row.engine:<12}  {_span(row.prefill_median, row.prefill_range):>26}"
            f"  {_span(row.decode_median, row.decode_range):>26}  {ratios:>13}  {share:>8.0%}"
        )
    print("ratios: prefill and decode against transformers; limit: weights read once a step at the measured bandwidth")


def _span(median: float, extremes: tuple[float, float]) -> str:
    return f"{median:.0f} ({extremes[0]:.0f}-{extremes[1]:.0f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="a Llama directory; by default a random one is made")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="B")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, help="torch threads of both sides")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parsed = parser.parse_args(arguments)
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        model = parsed.model or directory
        if parsed.model is None:
            make_random_checkpoint(Path(directory))
        ours = RuntimeSide(model, parsed.dtype)
        theirs = TransformersSide(model, ours.runner.dtype)
        rows = measure(ours, theirs, parsed.batch_sizes, parsed.prompt_tokens, parsed.new_tokens, parsed.rounds)
        limit = memory_limit(ours.runner)
    settings = {
        "model": parsed.model or "random Llama, hidden 512, 8 layers, 8/4 heads",
        "dtype": parsed.dtype,
        "prompt_tokens": parsed.prompt_tokens,
        "new_tokens": parsed.new_tokens,
        "rounds": parsed.rounds,
        "threads": torch.get_num_threads(),
        host_threads.WAIT_POLICY_ENV: os.environ[host_threads.WAIT_POLICY_ENV],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if parsed.json:
        print(json.dumps({"settings": settings, "limit_steps_per_second": limit, "rows": [asdict(r) for r in rows]}))
        return
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    print_table(rows, limit)


if __name__ == "__main__":
    main()
