"""An engine in a process of its own, for tests whose plugins must not stay in the process of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def serve(
    model: Path, rounds: list[list[list[int]]], environment: dict[str, str], new_tokens: int = 12, **engine: Any
) -> dict[str, Any]:
    """Run rounds of prompts through one engine: their `outputs`, and the `hooks` of the scheduler that ran.

    If the engine raises, `error` is the message and `kinds` the names of the classes that the error is of.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.engine_process"],
        input=json.dumps({"model": str(model), "rounds": rounds, "new_tokens": new_tokens, "engine": engine}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    from runtime.core.errors import EngineError
    from runtime.core.sampling_params import SamplingParams
    from runtime.entrypoints.engine import Engine

    asked = json.load(sys.stdin)
    params = SamplingParams(max_new_tokens=asked["new_tokens"], ignore_eos=True)
    outputs: list[list[list[int]]] = []
    try:
        with Engine(asked["model"], **asked["engine"]) as engine:
            for prompts in asked["rounds"]:
                outputs.append([o.token_ids for o in engine.generate(input_ids=prompts, sampling_params=params)])
            hooks = engine.applied_hooks()["scheduler"]
    except EngineError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        print(json.dumps({"outputs": outputs, "error": str(error), "kinds": kinds}))
        return
    print(json.dumps({"outputs": outputs, "hooks": [record.target for record in hooks if record.ran]}))


if __name__ == "__main__":
    main()
