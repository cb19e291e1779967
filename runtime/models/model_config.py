"""Configurations of models: the part that all share, and that of the models with grouped-query attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.layers.attention.base import AttentionConfig
from runtime.layers.rotary import RopeConfig
from runtime.mem_cache.memory_pool import AttentionKind
from runtime.models.hf_config import CONFIG_FILE, GENERATION_CONFIG_FILE, JsonObject, read_rope_config

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ModelConfig(ABC):
    """What every model has.

    A subclass adds fields, reads them in `fields_from_hf`, and says which defaults transformers has for its family.

    Attributes:
        attention_kind: which kind of KV pool it needs.
        vocab_size: rows of the token table.
        hidden_size: width of the residual stream.
        intermediate_size: width of a dense feed-forward layer.
        num_hidden_layers: layers.
        num_attention_heads: query heads.
        max_position_embeddings: tokens of one sequence that the model was made for.
        rms_norm_eps: epsilon of the norms.
        tie_word_embeddings: whether the output projection is the token table.
        rope: rotary embedding.
        dtype: dtype the checkpoint names, by its torch name, or None.
        eos_token_ids: tokens that end a sequence; may be empty.
        bos_token_id: token that begins one, or None.
    """

    attention_kind: ClassVar[AttentionKind]
    default_max_position_embeddings: ClassVar[int] = 2048
    default_rms_norm_eps: ClassVar[float] = 1e-6
    default_rope_theta: ClassVar[float] = 10000.0

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
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
    ) -> Self:
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
        fields = cls.fields_from_hf(config)
        if generation is not None:
            eos_token_ids = JsonObject(generation_source, generation).token_ids("eos_token_id")
            fields["eos_token_ids"] = eos_token_ids or fields["eos_token_ids"]
        return cls(**fields)

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """The fields of this class, from the contents of `config.json`; raises as `from_hf`."""
        config.expect("hidden_act", "silu", "swish")
        if config.has("quantization_config"):
            raise config.error("quantization_config", "is set: quantized checkpoints are not implemented")
        max_position_embeddings = config.integer("max_position_embeddings", cls.default_max_position_embeddings)
        dtype_field = "dtype" if config.has("dtype") else "torch_dtype"
        return {
            "vocab_size": config.integer("vocab_size"),
            "hidden_size": config.integer("hidden_size"),
            "intermediate_size": config.integer("intermediate_size"),
            "num_hidden_layers": config.integer("num_hidden_layers"),
            "num_attention_heads": config.integer("num_attention_heads"),
            "max_position_embeddings": max_position_embeddings,
            "rms_norm_eps": config.number("rms_norm_eps", cls.default_rms_norm_eps),
            "tie_word_embeddings": config.boolean("tie_word_embeddings", False),
            "rope": read_rope_config(config, max_position_embeddings, cls.default_rope_theta),
            "dtype": config.string(dtype_field, "").removeprefix("torch.") or None,
            "eos_token_ids": config.token_ids("eos_token_id"),
            "bos_token_id": config.integer("bos_token_id", minimum=0) if config.has("bos_token_id") else None,
        }

    @property
    def max_context_length(self) -> int:
        """Tokens of one sequence at most, for who asks for more than `max_position_embeddings`.

        That is more where the rotary embedding stretches by itself, as the dynamic one does.
        """
        if self.rope.rope_type == "dynamic":
            return int(self.max_position_embeddings * self.rope.factor)
        return self.max_position_embeddings

    @property
    @abstractmethod
    def rotary_dim(self) -> int:
        """Width of what the rotary embedding rotates."""

    @abstractmethod
    def kv_pool_args(self) -> dict[str, int]:
        """The sizes that the KV pool of this `attention_kind` is made with."""

    @abstractmethod
    def attention_config(self) -> AttentionConfig:
        """What an attention backend has to know."""


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A model with multi-head or grouped-query attention: Llama, and what is built like it.

    Attributes:
        num_key_value_heads: key and value heads; divides `num_attention_heads`.
        head_dim: width of a head; even.
        qkv_bias: whether q, k and v have biases.
        o_bias: whether o has one.
        mlp_bias: whether gate, up and down have biases.
        sliding_windows: for each layer, how many tokens a token sees, itself included; None for all.
    """

    attention_kind: ClassVar[AttentionKind] = AttentionKind.MHA
    default_num_key_value_heads: ClassVar[int | None] = None
    default_head_dim: ClassVar[int | None] = None

    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    sliding_windows: tuple[int | None, ...]

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        fields = super().fields_from_hf(config)
        heads, hidden_size = fields["num_attention_heads"], fields["hidden_size"]
        # Null stands for one of each, in all families; only an absent field has the family's default.
        absent = "num_key_value_heads" not in config.values
        kv_heads = config.integer("num_key_value_heads", (absent and cls.default_num_key_value_heads) or heads)
        if heads % kv_heads:
            raise config.error("num_key_value_heads", f"is {kv_heads}: it must divide num_attention_heads={heads}")
        default_head_dim = cls.default_head_dim if "head_dim" not in config.values else None
        if not config.has("head_dim") and default_head_dim is None and hidden_size % heads:
            raise config.error("hidden_size", f"is {hidden_size}: it must be a multiple of {heads} heads")
        head_dim = config.integer("head_dim", default_head_dim or hidden_size // heads)
        if head_dim % 2:
            raise config.error("head_dim", f"is {head_dim}: rotary embedding needs an even number")
        windows = cls.sliding_windows_from_hf(config, fields["num_hidden_layers"])
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        if config.has("layer_types") and config.values["layer_types"] != kinds:
            raise config.error("layer_types", f"is {config.values['layer_types']!r}, which the other fields contradict")
        bias = config.boolean("attention_bias", False)
        return fields | {
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "qkv_bias": bias,
            "o_bias": bias,
            "mlp_bias": config.boolean("mlp_bias", False),
            "sliding_windows": tuple(windows),
        }

    @classmethod
    def sliding_windows_from_hf(cls, config: JsonObject, num_layers: int) -> list[int | None]:
        """The window of each layer; a family that has windows overrides this."""
        config.expect("sliding_window")
        return [None] * num_layers

    @property
    def rotary_dim(self) -> int:
        """See `ModelConfig.rotary_dim`."""
        return self.head_dim

    def kv_pool_args(self) -> dict[str, int]:
        """See `ModelConfig.kv_pool_args`."""
        return {
            "head_num": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "layer_num": self.num_hidden_layers,
        }

    def attention_config(self) -> AttentionConfig:
        """See `ModelConfig.attention_config`."""
        return AttentionConfig(
            kind=self.attention_kind,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_windows=self.sliding_windows,
        )


def window_of(config: JsonObject, default: int | None) -> int | None:
    """The field `sliding_window`; null stands for none, an absent one for `default`."""
    if config.values.get("sliding_window", default) is None:
        return None
    return config.integer("sliding_window", default)
