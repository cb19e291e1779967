"""`python -m runtime generate`, as a program: what it prints, how it ends, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.processes import children_of, wait_until_gone
from tests.runtime.checkpoints import make_llama_checkpoint, reference_greedy

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "runtime", "generate", *arguments]


def generate(*arguments: str, python_path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, env=environment(python_path), check=False
    )


def environment(python_path: Sequence[Path] = ()) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*python_path, ROOT])), "HOOKERY_PLUGINS": ""}


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command and return when its first output has come: the scheduler runs then."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    return process


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments with which the command goes on far longer than any test: a long context and nothing that ends it."""
    directory = tmp_path_factory.mktemp("endless")
    make_llama_checkpoint(directory, max_position_embeddings=50_000, eos_token_id=None)
    return ["The", "--model", str(directory), "--max-new-tokens", "49000"]


def test_the_prompt_is_continued_and_the_speed_goes_to_standard_error() -> None:
    done = generate("The following functions", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The following functions")
    assert len(done.stdout) > len("The following functions") + 3
    assert "8 tokens in" in done.stderr


def test_json_gives_one_object_with_an_output_per_prompt(llama_checkpoint: Path) -> None:
    flags = ["--max-new-tokens", "6", "--dtype", "float32", "--model", str(llama_checkpoint)]
    done = generate("one", "two and more", *flags, "--json")
    printed = json.loads(done.stdout)
    assert [output["prompt"] for output in printed["outputs"]] == ["one", "two and more"]
    for output in printed["outputs"]:
        assert output["finish_reason"] in {"length", "stop"}
        assert len(output["token_ids"]) <= 6
    assert set(printed["hooks"]) == {"main", "scheduler"}


def test_json_token_ids_are_those_of_transformers(llama_checkpoint: Path) -> None:
    from runtime.managers.tokenizer import load_tokenizer

    flags = ["--max-new-tokens", "12", "--dtype", "float32", "--model", str(llama_checkpoint), "--json"]
    (output,) = json.loads(generate("some text", *flags).stdout)["outputs"]
    prompt = load_tokenizer(str(llama_checkpoint)).encode("some text").ids
    expected = reference_greedy(llama_checkpoint, prompt, 12)
    assert output["token_ids"] == expected[: len(output["token_ids"])]


def test_flags_of_the_memory_change_how_the_output_is_made_and_not_what_it_is(llama_checkpoint: Path) -> None:
    flags = ["--max-new-tokens", "6", "--dtype", "float32", "--model", str(llama_checkpoint), "--json"]
    memory = ["--page-size", "16", "--chunked-prefill-size", "3", "--disable-radix-cache", "--kv-cache-dtype", "fp32"]
    plain, changed = (json.loads(generate("some longer text", *flags, *more).stdout) for more in ([], memory))
    assert changed["outputs"] == plain["outputs"]


def test_several_prompts_are_printed_one_after_the_other(llama_checkpoint: Path) -> None:
    flags = ["--max-new-tokens", "5", "--model", str(llama_checkpoint)]
    separate = [generate(prompt, *flags).stdout for prompt in ("first", "second", "third")]
    together = generate("first", "second", "third", *flags).stdout
    assert together == "\n".join(separate)


def test_a_seed_makes_sampling_repeatable(llama_checkpoint: Path) -> None:
    flags = ["--model", str(llama_checkpoint), "--temperature", "1", "--top-p", "0.9", "--top-k", "50"]
    first, again, other = (generate("x", *flags, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_text_appears_as_it_is_made(endless: list[str]) -> None:
    process = start(*endless[:-1], "3000")
    assert process.stdout is not None
    process.stdout.read(30)
    assert process.poll() is None, "thirty characters were there before the end"
    assert children_of(process.pid), "the scheduler is still generating"
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_demo_plugin_is_listed_in_both_processes_and_runs_in_the_scheduler() -> None:
    done = generate("The", "--max-new-tokens", "5", "--plugin", "runtime.plugins.demo")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.startswith(("main ", "scheduler "))]
    steps = {row[0]: row for row in table if row[1] == "runtime.managers.scheduler.Scheduler.step"}
    memory = {row[0]: row for row in table if row[1] == "runtime.platforms.current_platform.get_available_memory"}
    assert steps["scheduler"][2:4] == ["AROUND", "time_step"]
    assert steps["scheduler"][-3:] == ["applied", "yes", "5"]
    assert memory["scheduler"][2:4] == ["AFTER", "keep_headroom"]
    assert memory["scheduler"][-3:] == ["applied", "yes", "2"], "before the model is loaded, and after"
    assert steps["main"][-3:] == memory["main"][-3:] == ["pending", "no", "0"]


def test_without_a_plugin_nothing_is_hooked_and_no_table_is_printed() -> None:
    done = generate("The", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert "Scheduler.step" not in done.stdout


@pytest.fixture
def broken_model(request: pytest.FixtureRequest, tmp_path: Path, llama_checkpoint: Path) -> Path:
    """A model directory with one thing wrong with it."""
    directory = tmp_path / "model"
    match request.param:
        case "missing":
            return directory
        case "empty":
            directory.mkdir()
            return directory
    directory.mkdir()
    for file in llama_checkpoint.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    match request.param:
        case "unknown architecture":
            config = json.loads((directory / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
        case "truncated weights":
            weights = (directory / "model.safetensors").read_bytes()
            (directory / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        case "no weights":
            (directory / "model.safetensors").unlink()
        case "no tokenizer":
            (directory / "tokenizer.json").unlink()
    return directory


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in says:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("broken_model", "says"),
    [
        ("missing", "does not exist"),
        ("empty", "config.json"),
        ("unknown architecture", "MambaForCausalLM"),
        ("truncated weights", "model.safetensors"),
        ("no weights", "safetensors"),
        ("no tokenizer", "tokenizer"),
    ],
    indirect=["broken_model"],
)
def test_a_model_that_cannot_be_loaded_is_one_clear_line(broken_model: Path, says: str) -> None:
    assert_one_clear_line(generate("x", "--model", str(broken_model)), str(broken_model), says)


def test_a_prompt_longer_than_the_context_is_one_clear_line() -> None:
    assert_one_clear_line(generate("word " * 2000), "the prompt has", "tokens, but the context holds 512")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--temperature", "-1", "temperature=-1.0"),
        ("--top-p", "0", "top_p=0.0"),
        ("--top-k", "-3", "top_k=-3"),
        ("--max-new-tokens", "0", "max_new_tokens=0"),
        ("--max-new-tokens", "9" * 30, "max_new_tokens=999"),
        ("--top-k", "9" * 30, "top_k=999"),
        ("--seed", "-1", "seed=-1"),
        ("--dtype", "int3", "dtype='int3'"),
        ("--kv-cache-dtype", "int3", "kv_cache_dtype='int3'"),
        ("--page-size", "65", "page_size=65"),
        ("--chunked-prefill-size", "0", "chunked_prefill_size=0"),
        ("--plugin", "no_such_plugin", "no_such_plugin"),
        ("--plugin", "./no_such_plugin.py", "not the dotted name of a module"),
    ],
)
def test_a_bad_argument_is_one_clear_line(flag: str, value: str, says: str) -> None:
    assert_one_clear_line(generate("x", flag, value), says)


def test_a_plugin_that_raises_at_import_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "raising_plugin.py").write_text("raise ValueError('the licence has expired')\n")
    done = generate("x", "--plugin", "raising_plugin", python_path=[tmp_path])
    assert_one_clear_line(done, "raising_plugin", "ValueError: the licence has expired")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("runtime.managers.scheduler.Scheduler.stepp", "did you mean 'step'"),
        ("runtime.managers.schedular.Scheduler.step", "did you mean 'scheduler'"),
        ("runtime.platforms.current_platform.get_available_memry", "did you mean 'get_available_memory'"),
        ("no_such_package.module.function", "there is no module 'no_such_package'"),
    ],
)
def test_a_hook_target_that_does_not_exist_is_one_clear_line(
    tmp_path: Path, llama_checkpoint: Path, target: str, says: str
) -> None:
    (tmp_path / "missing_target_plugin.py").write_text(
        f"import hookery\n@hookery.plugin_hook({target!r}, hookery.HookType.BEFORE)\ndef hook(*args, **kwargs): ...\n"
    )
    flags = ["--model", str(llama_checkpoint), "--plugin", "missing_target_plugin"]
    assert_one_clear_line(generate("x", *flags, python_path=[tmp_path]), target, says)


HOOK = """
import hookery

@hookery.plugin_hook("runtime.model_executor.model_runner.ModelRunner.sample", hookery.HookType.AFTER)
def hook(result, *args, **kwargs):
    {body}
"""


def generate_hooked(
    directory: Path, body: str, *arguments: str, model: Path | None = None
) -> subprocess.CompletedProcess[str]:
    (directory / "sample_hook.py").write_text(HOOK.format(body=body))
    flags = ["--plugin", "sample_hook", "--max-new-tokens", "3", *arguments]
    return generate("def", *flags, *(["--model", str(model)] if model else []), python_path=[directory])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return [float(token_id) for token_id in result]", "instead of one int for each"),
        ("return [*result, 1]", "instead of one int for each"),
        ("raise ValueError('first line\\nsecond line')", "the scheduler failed: ValueError: first line second line"),
    ],
)
def test_a_hook_that_breaks_the_scheduler_ends_the_command_with_its_error(
    tmp_path: Path, llama_checkpoint: Path, body: str, says: str
) -> None:
    done = generate_hooked(tmp_path, body, model=llama_checkpoint)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert says in line


def test_what_a_hook_prints_in_the_scheduler_does_not_mix_with_the_output(
    tmp_path: Path, llama_checkpoint: Path
) -> None:
    done = generate_hooked(tmp_path, "print('from the hook', flush=True)", "--json", model=llama_checkpoint)
    assert json.loads(done.stdout)["outputs"]
    assert "from the hook" in done.stderr


def test_an_error_after_some_text_stands_on_a_line_of_its_own(endless: list[str]) -> None:
    process = subprocess.Popen(
        command(*endless), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    assert process.stdout is not None
    process.stdout.read(5)
    (scheduler,) = children_of(process.pid)
    os.kill(scheduler, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1].startswith("error: the scheduler process")


def test_a_refused_prompt_is_not_printed() -> None:
    done = generate("word " * 2000)
    assert done.stdout == ""


def test_text_that_the_terminal_cannot_show_is_replaced(llama_checkpoint: Path) -> None:
    done = subprocess.run(
        command("caf\u00e9", "--max-new-tokens", "2", "--model", str(llama_checkpoint)),
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf?")


def test_an_output_that_cannot_be_written_is_one_clear_line(llama_checkpoint: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("x", "--max-new-tokens", "2", "--model", str(llama_checkpoint)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: [Errno 28]")
    assert "Traceback" not in done.stderr


def test_closed_standard_files_are_not_taken_by_the_channel(tmp_path: Path, llama_checkpoint: Path) -> None:
    (tmp_path / "sample_hook.py").write_text(HOOK.format(body="print('into whatever is number 1', flush=True)"))
    flags = f"--plugin sample_hook --max-new-tokens 2 --model {llama_checkpoint}"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m runtime generate x {flags} <&- >&-"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=environment([tmp_path]),
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_scheduler_does_not_outlive_a_killed_command_that_was_forked(llama_checkpoint: Path) -> None:
    code = (
        "import os, signal, time\n"
        "from runtime.entrypoints.engine import Engine\n"
        "if __name__ == '__main__':\n"
        f"    engine = Engine({str(llama_checkpoint)!r})\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(30); os._exit(0)\n"
        "    print(engine.tokenizer_manager.scheduler_pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = llama_checkpoint.parent / "forks.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as process:
        assert process.stdout is not None
        scheduler = int(process.stdout.readline())
        wait_until_gone([scheduler])
        os.killpg(process.pid, signal.SIGKILL)  # the fork that sleeps


def test_a_killed_scheduler_ends_the_command_within_five_seconds_and_leaves_nothing(endless: list[str]) -> None:
    process = start(*endless)
    (scheduler,) = children_of(process.pid)
    killed = time.monotonic()
    os.kill(scheduler, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - killed < 5
    assert process.returncode == 1
    assert f"error: the scheduler process (pid {scheduler}) was killed by SIGKILL" in error
    wait_until_gone([scheduler])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_scheduler_does_not_outlive_a_killed_command(how: signal.Signals, endless: list[str]) -> None:
    process = start(*endless)
    (scheduler,) = children_of(process.pid)
    process.send_signal(how)
    process.communicate(timeout=60)
    wait_until_gone([scheduler])


def test_ctrl_c_ends_both_processes_without_a_traceback(endless: list[str]) -> None:
    process = subprocess.Popen(
        command(*endless),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        # A program that a shell starts in the background ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    process.stdout.read(1)
    (scheduler,) = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip() == "interrupted"
    wait_until_gone([scheduler])


def test_a_reader_that_leaves_early_ends_the_command(endless: list[str]) -> None:
    with start(*endless) as process:
        (scheduler,) = children_of(process.pid)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        wait_until_gone([scheduler])
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_no_command_and_unknown_flags_show_the_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime"], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert done.returncode == 2
    assert "usage: python -m runtime" in done.stderr
    assert generate("--no-such-flag").returncode == 2


def show_platform(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "platform", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment(), "RUNTIME_PLATFORM": "cpu", **changes},
        check=False,
    )


def test_the_platform_is_shown_for_people_and_for_programs() -> None:
    shown = show_platform()
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in shown.stdout.splitlines())
    report = json.loads(show_platform("--json").stdout)
    assert {name.replace("_", " ") for name in report} == {name.strip() for name in rows}
    assert report["platform"] == report["device"] == "cpu"
    assert report["class"] == "runtime.platforms.cpu.CpuSRTPlatform"
    assert report["dtypes"] == ["float32", "bfloat16", "float16"]
    assert 0 < report["used_memory"] < report["free_memory"] <= report["total_memory"]
    assert "check" not in report


def test_the_device_is_checked_against_the_host() -> None:
    product, declared = show_platform("--check").stdout.splitlines()[-2:]
    assert product.startswith("check: the device's float32 product is the host's to ")
    assert declared == "check: the device does what is declared: float32, bfloat16, float16, float64"
    check = json.loads(show_platform("--check", "--json").stdout)["check"]
    assert 0 <= check["max_relative_error"] < 1e-5
    assert check["milliseconds"] > 0


def test_a_platform_that_is_not_there_is_one_line() -> None:
    shown = show_platform(RUNTIME_PLATFORM="musa")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == (
        "error: RUNTIME_PLATFORM='musa': torch sees no such device on this host; unset RUNTIME_PLATFORM to run on what"
        " there is\n"
    )
