"""What a decode step costs as it is written and with a graph runner, and what it costs to fill the buffers.

Every way to run a step runs on the same weights, requests and platform, in this process, in rounds that alternate; the
median is printed. *host* is the time until `forward` returns: Python and, on a device, the launching of its work.
*step* is the time until the device has finished. The limit is the time in which the memory can deliver the model's
weights once, by a copy timed in the same run; a step has to read them all.

*fill* is `CudaGraphBufferRegistry.fill_from` on a decode registry, beside a bare grouped copy of the same tensors, a
copy of each of them, and a single copy of as many bytes.

    python benchmarks/graph_runners.py                              # a random checkpoint, on the platform there is
    python benchmarks/graph_runners.py --model DIR --dtype bfloat16 --batch-sizes 1 64 --ways eager device
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.platforms import host_threads

host_threads.wait_passively()  # as the scheduler does; it has to come before torch

import torch  # noqa: E402
import transformers  # noqa: E402

from runtime import platforms  # noqa: E402
from runtime.config import ServerArgs  # noqa: E402
from runtime.core.forward_batch import ForwardBatch, ForwardMode  # noqa: E402
from runtime.core.request import Request  # noqa: E402
from runtime.core.sampling_params import SamplingParams  # noqa: E402
from runtime.model_executor import cuda_graph_buffer_registry  # noqa: E402
from runtime.model_executor.model_runner import ModelRunner  # noqa: E402

EAGER = "eager"
COPY_BYTES = 1 << 28


@dataclass(frozen=True)
class Row:
    """One line: a way to do something at a batch size, in microseconds, beside its peer and its limit."""

    what: str
    way: str
    batch_size: int
    host_us: float
    step_us: float
    times_as_fast: float
    of_limit: float | None


class Decodes:
    """A runner with requests that have a prompt and go on decoding the same position."""

    def __init__(self, runner: ModelRunner, batch_size: int, prompt_tokens: int) -> None:
        self.runner = runner
        self.requests = [
            Request(str(number), list(range(3, 3 + prompt_tokens)), SamplingParams(max_new_tokens=4, ignore_eos=True))
            for number in range(batch_size)
        ]
        runner.forward(runner.prepare_forward_batch(self.requests, []))
        for request in self.requests:
            request.output_ids.append(5)
        self.batch = runner.prepare_forward_batch([], self.requests)

    def step(self) -> tuple[float, float]:
        """Seconds until the call returns, and until the device has finished."""
        synchronize = platforms.current_platform.synchronize
        synchronize()
        started = time.perf_counter()
        self.runner.forward(self.batch)
        returned = time.perf_counter()
        synchronize()
        return returned - started, time.perf_counter() - started

    def release(self) -> None:
        """Give back what the requests hold."""
        for request in self.requests:
            self.runner.release(request)


def make_runner(model: str, dtype: str, way: str, batch_sizes: Sequence[int], context: int) -> ModelRunner:
    """A runner that runs decodes in one way: `EAGER`, or a graph backend's name."""
    largest = max(batch_sizes)
    graphs: dict[str, Any] = {"decode_graph": "off"}
    if way != EAGER:
        graphs = {"decode_graph": "on", "graph_backend": way, "decode_graph_sizes": tuple(batch_sizes)}
    return ModelRunner(
        ServerArgs(
            model=model,
            dtype=dtype,
            max_running_requests=largest,
            max_total_tokens=largest * context,
            context_length=context,
            max_prefill_tokens=largest * context,
            disable_radix_cache=True,
            **graphs,
        )
    )


def memory_bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes per second that memory delivers: a copy reads and writes each byte."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    destination = torch.empty_like(source)
    seconds = min(_timed(lambda: destination.copy_(source)) for _ in range(max(3, rounds)))
    return 2 * COPY_BYTES / seconds


def weight_bytes(runner: ModelRunner) -> int:
    """Bytes of weights that a decode reads; of the token table only if it is the output projection as well."""
    tensors = {tensor.data_ptr(): tensor for tensor in runner.model.checkpoint_tensors().values()}
    table = runner.model.embed_tokens.weight
    if runner.model.lm_head is not runner.model.embed_tokens:
        tensors.pop(table.data_ptr(), None)
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())


def measure_steps(options: argparse.Namespace, ways: Sequence[str], model: str) -> list[Row]:
    """A row for each batch size and way."""
    context = options.prompt_tokens + 8
    runners = {way: make_runner(model, options.dtype, way, options.batch_sizes, context) for way in ways}
    first = runners[ways[0]]
    limit = weight_bytes(first) / memory_bandwidth(first.device, options.rounds)
    rows = []
    for batch_size in options.batch_sizes:
        sides = {way: Decodes(runner, batch_size, options.prompt_tokens) for way, runner in runners.items()}
        check_agreement(sides)
        samples: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, side in sides.items():
                samples[way] += [side.step() for _ in range(options.steps)]
        medians = {
            way: tuple(statistics.median(sample[i] for sample in of_way) for i in (0, 1))
            for way, of_way in samples.items()
        }
        for way, (host, step) in medians.items():
            faster = medians[ways[0]][1] / step
            rows.append(Row("decode", way, batch_size, host * 1e6, step * 1e6, faster, limit / step))
        for side in sides.values():
            side.release()
    return rows


def check_agreement(sides: dict[str, Decodes]) -> None:
    """End the benchmark if two ways do not say the same."""
    first, *others = sides
    expected = sides[first].runner.forward(sides[first].batch).float().clone()
    for way in others:
        got = sides[way].runner.forward(sides[way].batch).float()
        difference = ((got - expected).abs().max() / expected.abs().max()).item()
        if not difference < (1e-4 if sides[way].runner.dtype is torch.float32 else 5e-2):
            raise SystemExit(f"{way} and {first} disagree about logits by {difference:.1e}: nothing is measured")


def measure_fill(batch_size: int, rounds: int, steps: int) -> list[Row]:
    """A row for filling a decode registry, and for three ways to copy the same bytes and nothing else."""
    device = platforms.current_platform.get_device(0)
    registry = cuda_graph_buffer_registry.build_decode_registry(
        device=device, max_bs=batch_size, max_num_token=batch_size, seq_len_fill_value=1
    )
    lengths = list(range(1, batch_size + 1))
    tensor = torch.tensor(lengths, device=device)
    batch = ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        input_ids=tensor,
        positions=tensor.clone(),
        out_cache_loc=tensor.clone(),
        req_pool_indices=tensor.clone(),
        seq_lens=tensor.clone(),
        seq_lens_cpu=lengths,
        extend_lens_cpu=[1] * batch_size,
        num_extend=0,
    )
    heads = list(registry.buffers().values())
    sources = [getattr(batch, name) for name in registry.slot_names()]
    flat = torch.cat(sources)
    destination = torch.empty_like(flat)

    def fill() -> None:
        registry.fill_from(
            batch,
            raw_bs=batch_size,
            padded_bs=batch_size,
            raw_num_tokens=batch_size,
            padded_num_tokens=batch_size,
        )

    ways: dict[str, Callable[[], object]] = {
        "foreach copy": lambda: torch._foreach_copy_(heads, sources),
        "fill_from": fill,
        "copy by copy": lambda: [head.copy_(source) for head, source in zip(heads, sources, strict=True)],
        "one copy": lambda: destination.copy_(flat),
    }
    samples: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for _ in range(max(3, rounds)):
            for way, call in ways.items():
                samples[way].append(_timed(call, steps * 20))
    medians = {way: statistics.median(of_way) * 1e6 for way, of_way in samples.items()}
    peer, limit = medians["foreach copy"], medians["one copy"]
    return [Row("fill", way, batch_size, us, us, peer / us, limit / us) for way, us in medians.items()]


def _timed(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call."""
    synchronize = platforms.current_platform.synchronize
    call()
    synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return (time.perf_counter() - started) / times


def make_random_checkpoint(directory: Path, hidden: int, layers: int) -> None:
    """Write a Llama with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=2048,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


def table(rows: Sequence[Row]) -> list[str]:
    """The table that is printed."""
    lines = [f"{'':8}{'':14}{'batch':>6}{'host us':>11}{'step us':>11}{'vs. first':>11}{'of limit':>10}"]
    for row in rows:
        limit = "" if row.of_limit is None else f"{row.of_limit:.0%}"
        lines.append(
            f"{row.what:8}{row.way:14}{row.batch_size:>6}{row.host_us:>11.1f}{row.step_us:>11.1f}"
            f"{row.times_as_fast:>10.2f}x{limit:>10}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", metavar="DIR", help="a checkpoint; a random one without it")
    parser.add_argument("--hidden", type=int, default=512, help="of the random one")
    parser.add_argument("--layers", type=int, default=8, help="of the random one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="per round")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--fill-batch", type=int, default=256, metavar="N")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=f"{EAGER} and graph backends; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    ways = options.ways or [EAGER, *platforms.current_platform.get_graph_backends()]
    with tempfile.TemporaryDirectory() as directory:
        if options.model is None:
            make_random_checkpoint(Path(directory), options.hidden, options.layers)
        rows = measure_steps(options, ways, options.model or directory)
    rows += measure_fill(options.fill_batch, options.rounds, options.steps)
    if options.json:
        print(json.dumps({"platform": platforms.current_platform.device_name, "rows": [asdict(row) for row in rows]}))
        return
    print(
        f"platform {platforms.current_platform.device_name}, dtype {options.dtype}, prompt_tokens"
        f" {options.prompt_tokens}, rounds {options.rounds}, threads {torch.get_num_threads()}"
    )
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
