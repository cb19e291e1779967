"""Checkpoints of every architecture load exactly, from one file or from shards, in either spelling, or are refused."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from runtime.models import loader
from runtime.models.registry import ARCHITECTURES as IMPLEMENTED
from tests.runtime.families import ARCHITECTURES, FAMILIES, make_checkpoint
from tests.runtime.test_loader import CPU, INDEX, WEIGHTS, edit_json, edit_weights, refusal

Family = Callable[[str], Path]
IN_FLOAT32 = ("e_score_correction_bias", "indexer.weights_proj.weight")


@pytest.fixture
def copy(family: Family, tmp_path: Path) -> Callable[[str], Path]:
    """A function from a family to a copy of its checkpoint, to be damaged."""
    return lambda name: Path(shutil.copytree(family(name), tmp_path / name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_of_the_file_has_its_place_and_no_two_the_same(family: Family, name: str) -> None:
    model, _ = loader.load_model(str(family(name)), "auto", CPU)
    stored = safetensors.torch.load_file(family(name) / WEIGHTS)
    loaded = model.checkpoint_tensors()
    assert loaded.keys() == stored.keys()
    for tensor_name, tensor in loaded.items():
        assert torch.equal(tensor, stored[tensor_name]), tensor_name
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in loaded.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shards_load_like_one_file(family: Family, tmp_path: Path, name: str) -> None:
    sharded = make_checkpoint(tmp_path, name, max_shard_size="100KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert (sharded / INDEX).is_file()
    one, many = (loader.load_model(str(d), "auto", CPU)[0].checkpoint_tensors() for d in (family(name), sharded))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[tensor], many[tensor]) for tensor in one)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_converted_except_those_that_decide_in_float32(family: Family, name: str) -> None:
    model, _ = loader.load_model(str(family(name)), "bfloat16", CPU)
    for tensor_name, tensor in model.checkpoint_tensors().items():
        expected = torch.float32 if tensor_name.endswith(IN_FLOAT32) else torch.bfloat16
        assert tensor.dtype is expected, tensor_name


DAMAGED = {
    "qwen2": "model.layers.1.self_attn.q_proj.bias",
    "qwen3": "model.layers.1.self_attn.k_norm.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.2.w3.weight",
    "qwen3-moe": "model.layers.0.mlp.experts.7.down_proj.weight",
    "deepseek-v2": "model.layers.2.self_attn.kv_a_proj_with_mqa.weight",
    "deepseek-v2-lite": "model.layers.1.self_attn.q_proj.weight",
    "deepseek-v3": "model.layers.1.mlp.gate.e_score_correction_bias",
    "deepseek-v32": "model.layers.0.self_attn.indexer.k_norm.bias",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_each_one_clear_error(
    copy: Callable[[str], Path], name: str
) -> None:
    directory, damaged = copy(name), DAMAGED[name]
    whole = safetensors.torch.load_file(directory / WEIGHTS)

    edit_weights(directory / WEIGHTS, lambda tensors: tensors.pop(damaged))
    assert f"1 missing: {damaged}" in refusal(directory)

    extra = damaged.replace(".1.", ".0.").replace("weight", "scales").replace("bias", "scales")
    safetensors.torch.save_file(whole | {extra: torch.zeros(2)}, directory / WEIGHTS)
    assert f"1 not part of the model: {extra}" in refusal(directory)

    shape = list(whole[damaged].shape)
    safetensors.torch.save_file(whole | {damaged: torch.zeros(shape[0] + 1, *shape[1:])}, directory / WEIGHTS)
    assert f"{damaged} is {[shape[0] + 1, *shape[1:]]}, expected {shape}" in refusal(directory)


def test_one_expert_too_many_is_not_part_of_the_model(copy: Callable[[str], Path]) -> None:
    directory = copy("mixtral")
    edit_json(directory / "config.json", lambda c: c.update(num_local_experts=3))
    message = refusal(directory)
    assert "block_sparse_moe.experts.3.w1.weight" in message
    assert "gate.weight is [4, 64], expected [3, 64]" in message


def test_layers_that_predict_further_tokens_are_passed_over(copy: Callable[[str], Path]) -> None:
    directory = copy("deepseek-v3")
    further = {"model.layers.3.eh_proj.weight": torch.zeros(2), "model.layers.3.mlp.gate.weight": torch.zeros(2)}
    edit_weights(directory / WEIGHTS, lambda tensors: tensors.update(further))
    loader.load_model(str(directory), "auto", CPU)
    edit_json(directory / "config.json", lambda c: c.update(num_nextn_predict_layers=0))
    assert "2 not part of the model" in refusal(directory)


def in_the_spelling_of_the_hub(values: dict[str, Any]) -> None:
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        values["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    values["torch_dtype"] = values.pop("dtype")
    for new, old in (("num_local_experts", "num_experts"), ("num_nextn_predict_layers", "num_mtp_layers")):
        if new in values:
            values[old] = values.pop(new)
    values.pop("mlp_layer_types", None)
    values.pop("layer_types", None)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"deepseek-v32-layers"}))
def test_both_spellings_of_a_configuration_mean_the_same(copy: Callable[[str], Path], name: str) -> None:
    directory = copy(name)
    _, new = loader.load_config(str(directory))
    edit_json(directory / "config.json", in_the_spelling_of_the_hub)
    assert "rope_parameters" not in json.loads((directory / "config.json").read_text())
    _, old = loader.load_config(str(directory))
    assert old == new


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("mistral", {"attention_bias": True}, "'attention_bias' is True"),
        ("qwen2", {"attention_bias": False}, "'attention_bias' is False"),
        ("qwen2", {"mlp_bias": True}, "'mlp_bias' is True"),
        ("qwen2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 3"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "which the other fields contradict"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "which the other fields contradict"),
        ("qwen2-window", {"sliding_window": 0}, "'sliding_window' must be an integer >= 1"),
        ("qwen3-moe", {"num_experts_per_tok": 9}, "'num_experts_per_tok' must be an integer <= 8"),
        ("qwen3-moe", {"mlp_only_layers": ["x"]}, "'mlp_only_layers' must be a list"),
        ("mixtral", {"num_local_experts": 0}, "'num_local_experts' must be an integer >= 1"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "'topk_method' is 'noaux_tc'"),
        ("deepseek-v2", {"norm_topk_prob": True}, "'norm_topk_prob' is True"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "'scoring_func' is 'sigmoid'"),
        ("deepseek-v2", {"num_key_value_heads": 2}, "'num_key_value_heads' is 2"),
        ("deepseek-v2", {"moe_layer_freq": 2}, "'moe_layer_freq' is 2"),
        ("deepseek-v2", {"qk_rope_head_dim": 7}, "'qk_rope_head_dim' is 7"),
        ("deepseek-v2-groups", {"n_group": 3}, "'n_group' is 3"),
        ("deepseek-v2-groups", {"topk_group": 5}, "'topk_group' must be an integer <= 4"),
        ("deepseek-v2-groups", {"topk_group": 1}, "'topk_group' is 1"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "'scoring_func' is 'softmax'"),
        ("deepseek-v3", {"topk_method": "greedy"}, "'topk_method' is 'greedy'"),
        ("deepseek-v3", {"n_group": 8, "topk_group": 4}, "'n_group' is 8"),
        ("deepseek-v3", {"kv_lora_rank": None}, "'kv_lora_rank' is missing"),
        ("deepseek-v3", {"routed_scaling_factor": 0}, "'routed_scaling_factor' must be a number > 0"),
        ("deepseek-v3", {"sliding_window": 16}, "'sliding_window' is 16"),
        ("deepseek-v32", {"q_lora_rank": None}, "'q_lora_rank' is null"),
        ("deepseek-v32", {"layer_types": ["full_attention"] * 3}, "'layer_types' is"),
        ("deepseek-v32", {"mlp_layer_types": ["dense"]}, "'mlp_layer_types' must say"),
        ("deepseek-v32", {"index_head_dim": 4}, "'index_head_dim' must be an integer >= 8"),
        ("deepseek-v32", {"rope_interleave": False}, "'rope_interleave' is False"),
    ],
)
def test_what_is_not_implemented_or_contradicts_is_refused_by_name(
    copy: Callable[[str], Path], name: str, change: dict[str, Any], named: str
) -> None:
    directory = copy(name)
    edit_json(directory / "config.json", lambda c: c.update(change))
    assert named in refusal(directory)


LATENT_ON_THE_HUB = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "attention_bias": False,
    "ep_size": 1,
    "torch_dtype": "bfloat16",
    "seq_aux": True,
    "aux_loss_alpha": 0.001,
    "pretraining_tp": 1,
    "use_cache": True,
    "rms_norm_eps": 1e-06,
}


def test_configurations_as_the_hub_has_them_are_understood() -> None:
    yarn = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
    lite = IMPLEMENTED["DeepseekV2ForCausalLM"].config_cls.from_hf(
        LATENT_ON_THE_HUB
        | {"vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27}
        | {"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 163840}
        | {"first_k_dense_replace": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6}
        | {"moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "q_lora_rank": None}
        | {"norm_topk_prob": False, "scoring_func": "softmax", "routed_scaling_factor": 1.0, "rope_theta": 10000}
        | {"rope_scaling": yarn | {"mscale": 0.707, "mscale_all_dim": 0.707}, "tie_word_embeddings": False}
    )
    assert lite.kv_pool_args() == {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "layer_num": 27}
    assert lite.attention_config().scale == pytest.approx(192**-0.5 * (0.0707 * math.log(40) + 1) ** 2)
    assert lite.rope.attention_factor == 1.0

    sparse = IMPLEMENTED["DeepseekV32ForCausalLM"].config_cls.from_hf(
        LATENT_ON_THE_HUB
        | {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61}
        | {"num_attention_heads": 128, "num_key_value_heads": 128, "max_position_embeddings": 163840}
        | {"first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8}
        | {"moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "q_lora_rank": 1536}
        | {"norm_topk_prob": True, "scoring_func": "sigmoid", "routed_scaling_factor": 2.5, "rope_theta": 10000}
        | {"rope_scaling": yarn | {"mscale": 1.0, "mscale_all_dim": 1.0}, "num_nextn_predict_layers": 1}
        | {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
    )
    assert sparse.kv_pool_args()["index_head_dim"] == 128
    assert sparse.attention_config().index_topk == 2048
    assert (sparse.dtype, sparse.rope.rope_type, sparse.rope.factor) == ("bfloat16", "yarn", 40.0)

    qwen = IMPLEMENTED["Qwen2ForCausalLM"].config_cls.from_hf(
        {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
        | {"num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 1e6}
        | {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "use_mrope": False}
        | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}
    )
    assert set(qwen.attention_config().sliding_windows) == {None}
    assert qwen.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_the_way_queries_are_made_has_no_default(copy: Callable[[str], Path]) -> None:
    directory = copy("deepseek-v3")
    edit_json(directory / "config.json", lambda c: c.pop("q_lora_rank"))
    assert "'q_lora_rank' is missing" in refusal(directory)


@pytest.mark.parametrize("name", sorted(IMPLEMENTED))
def test_absent_fields_have_the_defaults_that_transformers_has(name: str) -> None:
    import transformers

    reference = getattr(transformers, name.replace("ForCausalLM", "Config"))()
    required = {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
        *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("n_routed_experts", "n_shared_experts", "index_n_heads", "index_head_dim", "index_topk"),
    }
    given = {field: getattr(reference, field) for field in required if hasattr(reference, field)}
    if name == "DeepseekV2ForCausalLM":
        given["num_experts_per_tok"] = 6
    config = IMPLEMENTED[name].config_cls.from_hf(given)
    for field in ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "routed_scaling_factor"):
        if hasattr(config, field):
            assert getattr(config, field) == getattr(reference, field), field
    assert config.rope.rope_theta == reference.rope_parameters["rope_theta"]
    if hasattr(config, "sliding_windows"):
        assert config.num_key_value_heads == reference.num_key_value_heads
        head_dim = getattr(reference, "head_dim", None) or reference.hidden_size // reference.num_attention_heads
        assert config.head_dim == head_dim
        kinds = getattr(reference, "layer_types", None) or ["sliding_attention"] * reference.num_hidden_layers
        window = getattr(reference, "sliding_window", None)
        assert config.sliding_windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)
    else:
        first = getattr(reference, "first_k_dense_replace", 0)
        assert config.sparse_layers == frozenset(range(first, reference.num_hidden_layers))
        assert config.norm_topk_prob == reference.norm_topk_prob
