"""The command line: `python -m runtime generate`, `python -m runtime platform` and `python -m runtime hooks`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import hookery
from hookery.tables import print_table
from runtime import config
from runtime.core.errors import EngineError
from runtime.core.sampling_params import SamplingParams
from runtime.entrypoints import engine
from runtime.plugins import bootstrap, catalogue
from runtime.plugins.hook_target import Part, Role, When

DEFAULT_PROMPT: Final = "If the argument is"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows that it cannot
    try:
        status = int(parsed.run(parsed))
        sys.stdout.flush()
    except (EngineError, hookery.HookError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _abandon_output()  # whoever read it has left
        return 1
    except OSError as error:
        _abandon_output()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _abandon_output() -> None:
    """Standard output cannot be written any more: let what is still in its buffer go nowhere when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime", description="A compact inference runtime.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    generate = commands.add_parser(
        "generate",
        help="continue prompts",
        description="Continue prompts; several make one batch. The text appears as it is made.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.set_defaults(run=_generate)
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", default=[DEFAULT_PROMPT], help="a text to continue")
    generate.add_argument(
        "--model",
        metavar="DIR",
        default=engine.EMBEDDED_MODEL,
        help="a checkpoint directory in the Hugging Face layout",
    )
    defaults = SamplingParams()
    generate.add_argument("--max-new-tokens", type=int, metavar="N", default=defaults.max_new_tokens, help="per prompt")
    generate.add_argument(
        "--temperature", type=float, metavar="T", default=defaults.temperature, help="0 takes the likeliest token"
    )
    generate.add_argument(
        "--top-p", type=float, metavar="P", default=defaults.top_p, help="keep the likeliest tokens up to this mass"
    )
    generate.add_argument(
        "--top-k", type=int, metavar="K", default=defaults.top_k, help="keep the K likeliest tokens; 0 for all"
    )
    generate.add_argument("--seed", type=int, metavar="S", default=None, help="seed of every prompt's own sampling")
    generate.add_argument("--dtype", metavar="D", default="auto", help=f"one of {', '.join(config.DTYPES)}")
    generate.add_argument(
        "--kv-cache-dtype", metavar="D", default="auto", help=f"one of {', '.join(config.KV_CACHE_DTYPES)}"
    )
    generate.add_argument(
        "--page-size", type=int, metavar="N", default=None, help="KV slots per page; the platform's default without it"
    )
    generate.add_argument(
        "--chunked-prefill-size", type=int, metavar="N", default=None, help="cut prompts to N tokens per step"
    )
    generate.add_argument(
        "--decode-graph",
        choices=config.DECODE_GRAPHS,
        default=None,
        help="record decodes and replay them; what the platform does by itself without it",
    )
    generate.add_argument(
        "--prefill-graph", choices=config.PREFILL_GRAPHS, default=None, help="how steps with prompts are recorded"
    )
    generate.add_argument(
        "--graph-backend", metavar="NAME", default=None, help="how steps are recorded; the platform's first without it"
    )
    generate.add_argument(
        "--decode-graph-sizes", type=int, nargs="+", metavar="N", default=None, help="batch sizes to record"
    )
    generate.add_argument(
        "--prefill-graph-sizes", type=int, nargs="+", metavar="N", default=None, help="token counts to record"
    )
    generate.add_argument("--disable-radix-cache", action="store_true", help="compute every prompt anew")
    generate.add_argument(
        "--plugin",
        action="append",
        metavar="MODULE",
        default=[],
        dest="plugins",
        help="load this plugin module in every process; may be given several times",
    )
    generate.add_argument("--json", action="store_true", help="print one JSON object when all is done")
    platform = commands.add_parser(
        "platform",
        help="say what the runtime would run on",
        description="Say which platform was chosen and what it says of its device.",
    )
    platform.set_defaults(run=_platform)
    platform.add_argument(
        "--check", action="store_true", help="try what is declared, and compare products with the host's"
    )
    platform.add_argument("--json", action="store_true", help="print one JSON object")
    hooks = commands.add_parser(
        "hooks",
        help="list what a hook can be put on",
        description="List the hook targets of the runtime: what each is for, which processes of an engine run it, when,"
        " and its arguments.",
        epilog=f"areas: {', '.join(catalogue.AREAS)}\n\nwhen:\n"
        + "\n".join(f"  {when.value:8}  {when.meaning}" for when in When)
        + "\n\nonly with:\n"
        + "\n".join(f"  {part.value:24}  {part.meaning}" for part in Part),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hooks.set_defaults(run=_hooks)
    hooks.add_argument(
        "text", nargs="?", default="", metavar="TEXT", help="only those with this in name, purpose or area"
    )
    hooks.add_argument("--process", choices=[role.value for role in Role], help="only those that this process runs")
    hooks.add_argument("--when", choices=[when.value for when in When], help="only those that run then")
    hooks.add_argument("--long", action="store_true", help="print each in full, with types and where it is defined")
    hooks.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _generate(parsed: argparse.Namespace) -> int:
    params = SamplingParams(
        max_new_tokens=parsed.max_new_tokens,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        top_k=parsed.top_k,
        seed=parsed.seed,
    )
    with engine.Engine(
        parsed.model,
        dtype=parsed.dtype,
        page_size=parsed.page_size,
        chunked_prefill_size=parsed.chunked_prefill_size,
        disable_radix_cache=parsed.disable_radix_cache,
        kv_cache_dtype=parsed.kv_cache_dtype,
        decode_graph=parsed.decode_graph,
        prefill_graph=parsed.prefill_graph,
        graph_backend=parsed.graph_backend,
        decode_graph_sizes=parsed.decode_graph_sizes,
        prefill_graph_sizes=parsed.prefill_graph_sizes,
        plugins=tuple(parsed.plugins),
    ) as served:
        started = time.perf_counter()
        if parsed.json:
            outputs = served.generate(parsed.prompts, sampling_params=params)
            seconds = time.perf_counter() - started
            print(json.dumps(_as_json(parsed.prompts, outputs, seconds, served.applied_hooks())))
            return 0
        generated = _print_stream(served, parsed.prompts, params)
        seconds = time.perf_counter() - started
        print(f"\n{generated} tokens in {seconds:.2f} s, {generated / seconds:.0f} tokens/s", file=sys.stderr)
        hooks = served.applied_hooks()
        if any(hooks.values()):
            print(f"\n{hookery.format_table(hooks)}")
    return 0


def _platform(parsed: argparse.Namespace) -> int:
    with bootstrap.building(()):
        from runtime.platforms import report as platform_report  # after the hooks: it brings torch

        report = platform_report.describe()
        if parsed.check:
            report["check"] = platform_report.check()
    if parsed.json:
        print(json.dumps(report))
        return 0
    check = report.pop("check", None)
    width = max(map(len, report))
    for name, value in report.items():
        shown = f"{value / 2**30:.1f} GiB" if name.endswith("_memory") and type(value) is int else _in_words(value)
        print(f"{name.replace('_', ' '):{width}}  {shown}")
    if check is not None:
        print(
            f"check: the device's float32 product is the host's to {check['max_relative_error']:.1e},"
            f" {check['milliseconds']:.2f} ms with the copy"
        )
        print(f"check: the device does what is declared: {', '.join(check['capabilities'])}")
    return 0


def _hooks(parsed: argparse.Namespace) -> int:
    found = catalogue.find(
        parsed.text,
        role=None if parsed.process is None else Role(parsed.process),
        when=None if parsed.when is None else When(parsed.when),
    )
    described = catalogue.describe(found)
    if parsed.json:
        print(json.dumps({"targets": [each.to_dict() for each in described]}))
        return 0
    if not found:
        print("no hook target is like that", file=sys.stderr)
        return 1
    if parsed.long:
        print("\n\n".join(map(str, described)))
    else:
        print_table(*catalogue.table(described), catalogue.notes(described))
    return 0


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {None: "not known", True: "yes", False: "no"}.get(value, str(value))


def _print_stream(served: engine.Engine, prompts: Sequence[str], params: SamplingParams) -> int:
    """Print each prompt and its continuation as it is made, one prompt after the other; return how many tokens."""
    held_back = [""] * len(prompts)
    finished = [False] * len(prompts)
    shown = -1
    generated = 0

    def advance() -> None:
        nonlocal shown
        while shown < len(prompts) and (shown < 0 or finished[shown]):
            if shown >= 0:
                print()
            shown += 1
            if shown < len(prompts):
                separator = "\n" if shown else ""
                print(f"{separator}{prompts[shown]}{held_back[shown]}", end="", flush=True)

    stream = served.stream(prompts, sampling_params=params)  # refuses a bad prompt before anything is printed
    try:
        advance()
        for chunk in stream:
            generated += len(chunk.token_ids)
            finished[chunk.index] = chunk.finish_reason is not None
            if chunk.index == shown:
                print(chunk.text, end="", flush=True)
                advance()
            else:
                held_back[chunk.index] += chunk.text
    except (EngineError, KeyboardInterrupt):
        print(flush=True)  # end the line that the text broke off in
        raise
    return generated


def _as_json(
    prompts: Sequence[str],
    outputs: Sequence[engine.GenerateOutput],
    seconds: float,
    hooks: dict[str, list[hookery.HookRecord]],
) -> dict[str, Any]:
    return {
        "outputs": [
            {
                "prompt": prompt,
                "text": output.text,
                "token_ids": output.token_ids,
                "finish_reason": output.finish_reason,
            }
            for prompt, output in zip(prompts, outputs, strict=True)
        ],
        "seconds": seconds,
        "hooks": {process: [record.to_dict() for record in records] for process, records in hooks.items()},
    }
