"""Configurations of the DeepSeek models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from runtime.layers.attention.base import AttentionConfig
from runtime.mem_cache.memory_pool import AttentionKind
from runtime.models.hf_config import JsonObject
from runtime.models.model_config import ModelConfig


@dataclass(frozen=True)
class DeepseekConfig(ModelConfig):
    """What DeepSeek-V2, V3 and V3.2 have in common: multi-head latent attention and mixtures of experts.

    Attributes:
        q_lora_rank: width that queries are squeezed through, or None.
        kv_lora_rank: width of a latent.
        qk_nope_head_dim: width of the part of queries and keys without position.
        qk_rope_head_dim: width of the part with position; even.
        v_head_dim: width of a value.
        rope_interleave: whether neighbouring dimensions are rotated together, and not those half a head apart.
        attention_bias: whether the projections to queries' and keys' ranks and o have biases.
        mlp_bias: whether dense feed-forward layers and shared experts have biases.
        num_experts: routed experts of a sparse layer.
        num_shared_experts: experts that every token goes to.
        num_experts_per_tok: how many of the routed experts a token goes to.
        moe_intermediate_size: width of an expert.
        num_groups: groups that the routed experts are in; divides `num_experts`.
        top_groups: how many of them a token's experts may be in.
        corrected_routing: whether experts are scored and chosen as in V3; see `GroupLimitedRouter`.
        norm_topk_prob: whether the weights of a token's experts are made to sum to one.
        routed_scaling_factor: factor on them.
        sparse_layers: which layers are sparse; the others are dense.
        num_extra_layers: layers at the end of a checkpoint that predict further tokens; they are not run.
    """

    attention_kind: ClassVar[AttentionKind] = AttentionKind.MLA
    default_first_k_dense_replace: ClassVar[int] = 0
    default_routed_scaling_factor: ClassVar[float] = 1.0

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool
    attention_bias: bool
    mlp_bias: bool
    num_experts: int
    num_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_groups: int
    top_groups: int
    corrected_routing: bool
    norm_topk_prob: bool
    routed_scaling_factor: float
    sparse_layers: frozenset[int]
    num_extra_layers: int

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        fields = super().fields_from_hf(config)
        heads, layers = fields["num_attention_heads"], fields["num_hidden_layers"]
        config.expect("num_key_value_heads", heads)
        config.expect("moe_layer_freq", 1)
        config.expect("sliding_window")
        if "q_lora_rank" not in config.values:
            raise config.error("q_lora_rank", "is missing")
        rope_dim = config.integer("qk_rope_head_dim")
        if rope_dim % 2:
            raise config.error("qk_rope_head_dim", f"is {rope_dim}: rotary embedding needs an even number")
        num_experts = config.integer(config.spelling("n_routed_experts", "num_local_experts", "num_experts"))
        first_sparse = config.integer("first_k_dense_replace", cls.default_first_k_dense_replace, minimum=0)
        return fields | {
            "q_lora_rank": config.integer("q_lora_rank") if config.has("q_lora_rank") else None,
            "kv_lora_rank": config.integer("kv_lora_rank"),
            "qk_nope_head_dim": config.integer("qk_nope_head_dim"),
            "qk_rope_head_dim": rope_dim,
            "v_head_dim": config.integer("v_head_dim"),
            "rope_interleave": True,
            "attention_bias": config.boolean("attention_bias", False),
            "mlp_bias": False,
            "num_experts": num_experts,
            "num_shared_experts": config.integer("n_shared_experts"),
            "num_experts_per_tok": config.integer("num_experts_per_tok", maximum=num_experts),
            "moe_intermediate_size": config.integer("moe_intermediate_size"),
            "routed_scaling_factor": config.number("routed_scaling_factor", cls.default_routed_scaling_factor),
            "sparse_layers": frozenset(range(first_sparse, layers)),
            "num_extra_layers": 0,
        }

    @classmethod
    def groups_from_hf(
        cls, config: JsonObject, fields: dict[str, Any], num_groups: int | None, top_groups: int | None
    ) -> dict[str, int]:
        """The fields `num_groups` and `top_groups`, with defaults for both, checked against the others."""
        num_experts, chosen = fields["num_experts"], fields["num_experts_per_tok"]
        groups = config.integer("n_group", num_groups)
        if num_experts % groups:
            raise config.error("n_group", f"is {groups}: it must divide the {num_experts} routed experts")
        top = config.integer("topk_group", top_groups, maximum=groups)
        if top * (num_experts // groups) < chosen:
            raise config.error("topk_group", f"is {top}: so few groups do not have {chosen} experts for a token")
        return {"num_groups": groups, "top_groups": top}

    @property
    def rotary_dim(self) -> int:
        """See `ModelConfig.rotary_dim`."""
        return self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        """Width of queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def kv_pool_args(self) -> dict[str, int]:
        """See `ModelConfig.kv_pool_args`."""
        return {
            "kv_lora_rank": self.kv_lora_rank,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "layer_num": self.num_hidden_layers,
        }

    def attention_config(self) -> AttentionConfig:
        """See `ModelConfig.attention_config`."""
        return AttentionConfig(
            kind=self.attention_kind,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_attention_heads,
            head_dim=self.qk_head_dim,
            scale=self.qk_head_dim**-0.5 * self.rope.softmax_scale_factor,
            sliding_windows=(None,) * self.num_hidden_layers,
        )


class DeepseekV2Config(DeepseekConfig):
    """A DeepSeek-V2 model."""

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        fields = super().fields_from_hf(config)
        config.expect("scoring_func", "softmax")
        # transformers takes no notice of it, the models' own code does: what is meant cannot be told.
        config.expect("norm_topk_prob", False)
        method = config.string("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy"):
            raise config.error("topk_method", f"is {method!r}: implemented are greedy and group_limited_greedy")
        groups = {"num_groups": 1, "top_groups": 1}
        if method == "group_limited_greedy":
            groups = cls.groups_from_hf(config, fields, None, None)
        return (
            fields
            | groups
            | {"mlp_bias": config.boolean("mlp_bias", False), "corrected_routing": False, "norm_topk_prob": False}
        )


class DeepseekV3Config(DeepseekConfig):
    """A DeepSeek-V3 model."""

    default_max_position_embeddings = 4096
    default_first_k_dense_replace = 3
    default_routed_scaling_factor = 2.5

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        fields = super().fields_from_hf(config)
        config.expect("scoring_func", "sigmoid")
        config.expect("topk_method", "noaux_tc")
        config.expect("mlp_bias", False)
        groups = cls.groups_from_hf(config, fields, 8, 4)
        if fields["num_experts"] // groups["num_groups"] < 2:
            raise config.error("n_group", f"is {groups['num_groups']}: a group is judged by its two best experts")
        return (
            fields
            | groups
            | {
                "rope_interleave": config.boolean("rope_interleave", True),
                "corrected_routing": True,
                "norm_topk_prob": config.boolean("norm_topk_prob", True),
                "num_extra_layers": config.integer(
                    config.spelling("num_nextn_predict_layers", "num_mtp_layers"), 1, minimum=0
                ),
            }
        )


@dataclass(frozen=True)
class DeepseekV32Config(DeepseekV3Config):
    """A DeepSeek-V3.2 model: V3 with sparse attention.

    Attributes:
        index_n_heads: heads of the index.
        index_head_dim: their width; at least `qk_rope_head_dim`.
        index_topk: how many tokens a token sees.
    """

    attention_kind = AttentionKind.NSA
    default_max_position_embeddings = 163840

    index_n_heads: int
    index_head_dim: int
    index_topk: int

    @classmethod
    def fields_from_hf(cls, config: JsonObject) -> dict[str, Any]:
        """See `ModelConfig.fields_from_hf`."""
        fields = super().fields_from_hf(config)
        layers = fields["num_hidden_layers"]
        if fields["q_lora_rank"] is None:
            raise config.error("q_lora_rank", "is null: the index is made of what queries are squeezed through")
        config.expect("rope_interleave", True)
        config.expect("layer_types", ["indexed_attention"] * layers)
        types = config.values.get("mlp_layer_types")
        if types is not None:
            if not isinstance(types, list) or len(types) != layers or set(types) - {"dense", "sparse"}:
                raise config.error("mlp_layer_types", f"must say dense or sparse for each of {layers} layers")
            fields["sparse_layers"] = frozenset(layer for layer, kind in enumerate(types) if kind == "sparse")
        return fields | {
            "index_n_heads": config.integer("index_n_heads"),
            "index_head_dim": config.integer("index_head_dim", minimum=fields["qk_rope_head_dim"]),
            "index_topk": config.integer("index_topk"),
        }

    def kv_pool_args(self) -> dict[str, int]:
        """See `ModelConfig.kv_pool_args`."""
        return super().kv_pool_args() | {"index_head_dim": self.index_head_dim}

    def attention_config(self) -> AttentionConfig:
        """See `ModelConfig.attention_config`."""
        return dataclasses.replace(super().attention_config(), index_topk=self.index_topk)
