"""Random little checkpoints of every supported architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,  # the row of one would be zero, and so would everything be that an index makes of it
}

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-3,  # not for the norms inside attention
}

GROUPS: dict[str, Any] = {"n_group": 4, "topk_group": 2}

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}

# With few heads, a score is often exactly zero (none of the products is positive), and ties may fall either way.
INDEX: dict[str, Any] = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 12}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "qwen3-moe-mixed": (
        "Qwen3Moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [0],
            "use_sliding_window": True,
            "sliding_window": 9,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    "deepseek-v2": ("DeepseekV2", LATENT | {"topk_method": "greedy", "routed_scaling_factor": 1.5}),
    "deepseek-v2-lite": ("DeepseekV2", LATENT | {"q_lora_rank": None, "attention_bias": True, "mlp_bias": True}),
    "deepseek-v2-groups": ("DeepseekV2", LATENT | GROUPS | {"topk_method": "group_limited_greedy"}),
    "deepseek-v2-yarn": ("DeepseekV2", LATENT | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}),
    "deepseek-v3": ("DeepseekV3", LATENT | GROUPS | {"norm_topk_prob": True}),
    "deepseek-v3-plain": ("DeepseekV3", LATENT | GROUPS | {"q_lora_rank": None, "norm_topk_prob": False}),
    "deepseek-v3-halves": ("DeepseekV3", LATENT | GROUPS | {"rope_interleave": False, "attention_bias": True}),
    "deepseek-v3-yarn": (
        "DeepseekV3",
        LATENT | GROUPS | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}},
    ),
    "deepseek-v32": ("DeepseekV32", LATENT | GROUPS | INDEX),
    "deepseek-v32-yarn": (
        "DeepseekV32",
        LATENT | GROUPS | INDEX | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek-v32-layers": (
        "DeepseekV32",
        LATENT | GROUPS | INDEX | {"mlp_layer_types": ["sparse", "dense", "sparse"]},
    ),
}
"""Kinds of checkpoints: the prefix of transformers' classes, and fields of the configuration."""

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mixtral", "qwen3-moe", "deepseek-v2", "deepseek-v3", "deepseek-v32")
"""One of each architecture."""


def build_model(name: str, *, seed: int = 0, scale: float = 4.0, **changes: Any) -> transformers.PreTrainedModel:
    """A random model of transformers whose logits are far apart and whose every parameter matters.

    Args:
        name: key of `FAMILIES`.
        seed: seed of the weights.
        scale: factor on the random matrices.
        **changes: fields of the configuration to change.
    """
    prefix, fields = FAMILIES[name]
    config = getattr(transformers, f"{prefix}Config")(**(BASE | fields | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.dim() > 1:
                    tensor.mul_(scale)
                else:  # norms are ones and biases zeros
                    tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def make_checkpoint(
    directory: Path,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **options: Any,
) -> Path:
    """Save `build_model(name, **options)` in `dtype` and return `directory`."""
    transformers.utils.logging.disable_progress_bar()
    build_model(name, **options).to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory
