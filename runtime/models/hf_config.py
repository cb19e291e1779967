"""Reading `config.json` and `generation_config.json` of Hugging Face checkpoints.

Both spellings are read: the one the hub is full of (`rope_theta`, `rope_scaling`, `torch_dtype`) and the one that
transformers 5 writes (`rope_parameters`, `dtype`). A field that is absent has transformers' default; a field that
shapes the model has none. What this runtime does not implement is refused by name, never ignored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.core.errors import ModelLoadError
from runtime.layers.rotary import ROPE_TYPES, RopeConfig, yarn_mscale

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"


@dataclass(frozen=True)
class JsonObject:
    """A JSON object that knows where it comes from, for error messages that name file and field."""

    source: str
    values: Mapping[str, Any]

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def spelling(self, *fields: str) -> str:
        """Which of several spellings of a field is there; the first if none is."""
        return next((field for field in fields if self.has(field)), fields[0])

    def integer(self, field: str, default: int | None = None, *, minimum: int = 1, maximum: int | None = None) -> int:
        """An integer field; without `default` it is required."""
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(field, f"must be an integer >= {minimum}, not {value!r}")
        if maximum is not None and value > maximum:
            raise self.error(field, f"must be an integer <= {maximum}, not {value}")
        return value

    def number(self, field: str, default: float | None = None, *, minimum: float | None = None) -> float:
        """A finite number, positive or, if given, at least `minimum`; without `default` it is required."""
        value = self._get(field, default)
        bound = "> 0" if minimum is None else f">= {minimum:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise self.error(field, f"must be a number {bound}, not {value!r}")
        if value < minimum if minimum is not None else value == 0:
            raise self.error(field, f"must be a number {bound}, not {value!r}")
        return float(value)

    def boolean(self, field: str, default: bool) -> bool:
        """A boolean field."""
        value = self._get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, f"must be true or false, not {value!r}")
        return value

    def string(self, field: str, default: str) -> str:
        """A string field."""
        value = self._get(field, default)
        if not isinstance(value, str):
            raise self.error(field, f"must be a string, not {value!r}")
        return value

    def expect(self, field: str, *allowed: Any) -> None:
        """Refuse a field whose value is none of `allowed`, the values that mean what is implemented.

        A field that is absent or null is fine.
        """
        value = self.values.get(field)
        if value is not None and value not in allowed:
            meant = " or ".join(repr(each) for each in allowed) or "nothing"
            raise self.error(field, f"is {value!r}: only {meant} is implemented")

    def token_ids(self, field: str) -> frozenset[int]:
        """A token id or a list of them; empty if the field is absent."""
        value = self.values.get(field)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            raise self.error(field, f"must be a token id or a list of token ids, not {value!r}")
        return frozenset(ids)

    def error(self, field: str, problem: str) -> ModelLoadError:
        """The error to raise about a field."""
        return ModelLoadError(f"{self.source}: field {field!r} {problem}")

    def _get(self, field: str, default: Any) -> Any:
        value = self.values.get(field)
        if value is None:
            value = default
        if value is None:
            raise self.error(field, "is missing")
        return value


def read_json_object(path: str) -> JsonObject:
    """Read a file that holds one JSON object.

    Raises:
        ModelLoadError: the file cannot be read, is no JSON, or holds something other than an object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return JsonObject(path, values)


ROPE_FIELDS = frozenset(
    (
        *("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"),
        *("low_freq_factor", "high_freq_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"),
    )
)
"""Fields of `rope_parameters` and `rope_scaling` that are understood."""


def read_rope_config(config: JsonObject, max_position_embeddings: int, default_theta: float = 10000.0) -> RopeConfig:
    """The rotary embedding that a configuration asks for, in either spelling.

    Args:
        config: the object in `config.json`.
        max_position_embeddings: the model's context length, in tokens.
        default_theta: base of the wavelengths where the configuration names none.

    Raises:
        ModelLoadError: a field is ill-typed, missing, or asks for what is not implemented.
    """
    # transformers' order: rope_scaling if it says anything, else rope_parameters; what they lack is at the top level.
    field = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    nested = config.values.get(field) or {}
    if not isinstance(nested, dict):
        raise config.error(field, f"must be an object, not {nested!r}")
    partial = nested.get("partial_rotary_factor", config.values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise config.error("partial_rotary_factor", f"is {partial!r}: only 1.0 is implemented")
    if any(isinstance(value, dict) for value in nested.values()):
        raise config.error(field, "has an entry per layer type: that is not implemented")
    rope = JsonObject(f"{config.source}: {field}" if nested else config.source, nested)
    rope_type = rope.string("rope_type", rope.string("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise rope.error("rope_type", f"is {rope_type!r}: implemented are {', '.join(ROPE_TYPES)}")
    unknown = sorted(name for name, value in nested.items() if name not in ROPE_FIELDS and value is not None)
    if unknown:
        raise rope.error(unknown[0], "is not implemented")
    rope_theta = (rope if "rope_theta" in nested else config).number("rope_theta", default_theta)
    if rope_type == "default":
        return RopeConfig(rope_theta=rope_theta)
    # As in transformers, a length at the top level wins over the nested one; the dynamic type knows neither.
    owner = config if config.has("original_max_position_embeddings") else rope
    original = owner.integer("original_max_position_embeddings", max_position_embeddings)
    ratio = max_position_embeddings / original
    common: dict[str, Any] = {
        "rope_type": rope_type,
        "rope_theta": rope_theta,
        "factor": rope.number("factor", ratio if rope_type == "yarn" else None),
        "mscale_all_dim": rope.number("mscale_all_dim", minimum=0.0) if rope.has("mscale_all_dim") else 0.0,
    }
    if rope_type == "linear":
        return RopeConfig(**common)
    if rope_type == "dynamic":
        return RopeConfig(**common, original_max_position_embeddings=max_position_embeddings)
    common["original_max_position_embeddings"] = original
    return _llama3_config(rope, common) if rope_type == "llama3" else _yarn_config(rope, common)


def _llama3_config(rope: JsonObject, common: Mapping[str, Any]) -> RopeConfig:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"must be above low_freq_factor={low}")
    return RopeConfig(**common, low_freq_factor=low, high_freq_factor=high)


def _yarn_config(rope: JsonObject, common: Mapping[str, Any]) -> RopeConfig:
    factor, all_dim = common["factor"], common["mscale_all_dim"]
    mscale = rope.number("mscale", minimum=0.0) if rope.has("mscale") else 0.0
    implied = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim) if mscale and all_dim else yarn_mscale(factor)
    return RopeConfig(
        **common,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.boolean("truncate", True),
        attention_factor=rope.number("attention_factor", implied),
    )


def read_configs(model_dir: str) -> tuple[JsonObject, JsonObject | None]:
    """`config.json` and, if the directory has one, `generation_config.json`.

    Raises:
        ModelLoadError: the directory or its `config.json` is missing, or a file is damaged.
    """
    if not os.path.isdir(model_dir):
        raise ModelLoadError(f"model directory {model_dir} does not exist: give a local checkpoint directory")
    config_path = os.path.join(model_dir, CONFIG_FILE)
    if not os.path.isfile(config_path):
        raise ModelLoadError(f"model directory {model_dir} has no {CONFIG_FILE}")
    generation_path = os.path.join(model_dir, GENERATION_CONFIG_FILE)
    generation = read_json_object(generation_path) if os.path.isfile(generation_path) else None
    return read_json_object(config_path), generation
