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
from typing import Any, ClassVar, Literal

from runtime.core.errors import ModelLoadError
from runtime.layers.rotary import ROPE_TYPES, RopeConfig
from runtime.mem_cache.memory_pool import AttentionKind

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

    def integer(self, field: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer field; without `default` it is required."""
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(field, f"must be an integer >= {minimum}, not {value!r}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """A positive finite number; without `default` it is required."""
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(field, f"must be a number > 0, not {value!r}")
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


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama-architecture model.

    Attributes:
        attention_kind: which kind of KV pool it needs.
        vocab_size: rows of the token table.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward layer.
        num_hidden_layers: layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides `num_attention_heads`.
        head_dim: width of a head; even.
        max_position_embeddings: tokens of one sequence at most.
        rms_norm_eps: epsilon of the norms.
        tie_word_embeddings: whether the output projection is the token table.
        attention_bias: whether q, k, v and o have biases.
        mlp_bias: whether gate, up and down have biases.
        rope: rotary embedding.
        dtype: dtype the checkpoint names, by its torch name, or None.
        eos_token_ids: tokens that end a sequence; may be empty.
        bos_token_id: token that begins one, or None.
    """

    attention_kind: ClassVar[Literal[AttentionKind.MHA]] = AttentionKind.MHA

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    rope: RopeConfig
    dtype: str | None
    eos_token_ids: frozenset[int]
    bos_token_id: int | None

    @classmethod
    def from_hf(
        cls,
        values: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        *,
        source: str = CONFIG_FILE,
        generation_source: str = GENERATION_CONFIG_FILE,
    ) -> LlamaConfig:
        """Read the contents of `config.json` and, if there is one, of `generation_config.json`.

        Args:
            values: the object in `config.json`.
            generation: the object in `generation_config.json`; its end-of-sequence tokens win, as in transformers.
            source: what error messages call the first.
            generation_source: what error messages call the second.

        Raises:
            ModelLoadError: a field is missing, of the wrong type, contradicts another, or asks for what is not
                implemented; one line that names file and field.
        """
        config = JsonObject(source, values)
        hidden_act = config.string("hidden_act", "silu")
        if hidden_act not in ("silu", "swish"):
            raise config.error("hidden_act", f"is {hidden_act!r}: only silu is implemented")
        if config.has("quantization_config"):
            raise config.error("quantization_config", "is set: quantized checkpoints are not implemented")
        heads = config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise config.error("num_key_value_heads", f"is {kv_heads}: it must divide num_attention_heads={heads}")
        hidden_size = config.integer("hidden_size")
        if not config.has("head_dim") and hidden_size % heads:
            raise config.error("hidden_size", f"is {hidden_size}: it must be a multiple of {heads} heads")
        head_dim = config.integer("head_dim", hidden_size // heads)
        if head_dim % 2:
            raise config.error("head_dim", f"is {head_dim}: rotary embedding needs an even number")
        max_position_embeddings = config.integer("max_position_embeddings", 2048)
        dtype_field = "dtype" if config.has("dtype") else "torch_dtype"
        eos_token_ids = config.token_ids("eos_token_id")
        if generation is not None:
            eos_token_ids = JsonObject(generation_source, generation).token_ids("eos_token_id") or eos_token_ids
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.integer("intermediate_size"),
            num_hidden_layers=config.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
            rms_norm_eps=config.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=config.boolean("tie_word_embeddings", False),
            attention_bias=config.boolean("attention_bias", False),
            mlp_bias=config.boolean("mlp_bias", False),
            rope=_rope_config(config, max_position_embeddings),
            dtype=config.string(dtype_field, "").removeprefix("torch.") or None,
            eos_token_ids=eos_token_ids,
            bos_token_id=config.integer("bos_token_id", minimum=0) if config.has("bos_token_id") else None,
        )


def _rope_config(config: JsonObject, max_position_embeddings: int) -> RopeConfig:
    # transformers' order: rope_scaling if it says anything, else rope_parameters; what they lack is at the top level.
    field = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    nested = config.values.get(field) or {}
    if not isinstance(nested, dict):
        raise config.error(field, f"must be an object, not {nested!r}")
    merged = {"rope_theta": config.values.get("rope_theta")} | nested
    partial = nested.get("partial_rotary_factor", config.values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise config.error("partial_rotary_factor", f"is {partial!r}: only 1.0 is implemented")
    if any(isinstance(value, dict) for value in nested.values()):
        raise config.error(field, "has an entry per layer type: that is not implemented")
    rope = JsonObject(f"{config.source}: {field}" if nested else config.source, merged)
    rope_type = rope.string("rope_type", rope.string("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise rope.error("rope_type", f"is {rope_type!r}: implemented are {', '.join(ROPE_TYPES)}")
    rope_theta = rope.number("rope_theta", 10000.0)
    if rope_type == "default":
        return RopeConfig(rope_theta=rope_theta)
    factor = rope.number("factor")
    if rope_type == "linear":
        return RopeConfig(rope_type="linear", rope_theta=rope_theta, factor=factor)
    # As in transformers, a length at the top level wins over the nested one.
    owner = config if config.has("original_max_position_embeddings") else rope
    llama3 = RopeConfig(
        rope_type="llama3",
        rope_theta=rope_theta,
        factor=factor,
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=owner.integer("original_max_position_embeddings", max_position_embeddings),
    )
    if llama3.high_freq_factor <= llama3.low_freq_factor:
        raise rope.error("high_freq_factor", f"must be above low_freq_factor={llama3.low_freq_factor}")
    return llama3


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
