"""Arguments are resolved once, and a bad one is refused by name."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.config import ENVIRONMENT, ServerArgs
from runtime.core.errors import ConfigError, ModelLoadError


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A directory that looks like a checkpoint as far as the arguments are concerned."""
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("auto", "auto"), ("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16"), ("BFloat16", "bfloat16")],
)
def test_every_spelling_of_a_dtype_has_one_normal_form(model: str, spelling: str, name: str) -> None:
    assert ServerArgs(model, dtype=spelling).resolve().dtype == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("auto", "auto"), ("BF16", "bfloat16"), ("fp8_e4m3", "float8_e4m3fn"), ("fp8_e5m2", "float8_e5m2")],
)
def test_the_cache_has_dtypes_of_its_own(model: str, spelling: str, name: str) -> None:
    assert ServerArgs(model, kv_cache_dtype=spelling).resolve().kv_cache_dtype == name


def test_resolving_makes_new_arguments_with_an_absolute_path(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(model).parent)
    args = ServerArgs(Path(model).name, plugins=("a.b",))
    resolved = args.resolve()
    assert resolved.model == model
    assert args.model == Path(model).name
    assert resolved.resolve() == resolved
    assert pickle.loads(pickle.dumps(resolved)) == resolved


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", None),
        ("dtype", "int8"),
        ("dtype", None),
        ("max_running_requests", 0),
        ("max_running_requests", True),
        ("max_prefill_tokens", -1),
        ("max_prefill_tokens", 1.5),
        ("context_length", 0),
        ("max_total_tokens", "many"),
        ("page_size", 0),
        ("page_size", 65),
        ("chunked_prefill_size", 0),
        ("chunked_prefill_size", 1.5),
        ("disable_radix_cache", 1),
        ("kv_cache_dtype", "fp8"),
        ("kv_cache_dtype", None),
        ("random_seed", -1),
        ("plugins", ["a.b"]),
        ("plugins", ("",)),
        ("plugins", "a.b"),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_value(model: str, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field}=.*{re.escape(repr(value[0] if value == ('',) else value))}"):
        ServerArgs(**({"model": model} | {field: value})).resolve()


def test_a_missing_model_directory_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        ServerArgs(str(tmp_path / "nowhere")).resolve()
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        ServerArgs(str(tmp_path)).resolve()


def test_every_environment_variable_that_is_read_is_in_the_table() -> None:
    sources = [path for path in Path(runtime.__path__[0]).rglob("*.py") if "assets" not in path.parts]
    named = {name for path in sources for name in re.findall(r"\"(RUNTIME_[A-Z_]+)\"", path.read_text())}
    assert named
    assert named <= set(ENVIRONMENT)
