"""Checkpoints load exactly, or are refused with one line that says why."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from runtime.core.errors import ConfigError, ModelLoadError
from runtime.models import loader
from runtime.models.model_config import LlamaConfig
from tests.runtime.checkpoints import make_llama_checkpoint, reference_model

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(llama_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(llama_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="session")
def sharded_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards."""
    directory = make_llama_checkpoint(tmp_path_factory.mktemp("sharded"), tied=False, max_shard_size="200KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    return directory


@pytest.fixture
def sharded(sharded_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good sharded checkpoint, to be damaged."""
    return Path(shutil.copytree(sharded_checkpoint, tmp_path / "copy"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def refusal(directory: Path, error: type[Exception] = ModelLoadError) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(error) as caught:
        loader.load_model(str(directory), "auto", CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_loaded_exactly(directory: Path) -> None:
    model, _ = loader.load_model(str(directory), "auto", CPU)
    expected = reference_model(directory).state_dict()
    for name, tensor in model.checkpoint_tensors().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("variant", ["tied-gqa", "untied-mha", "biases"])
def test_every_weight_is_loaded_as_it_is(checkpoint: Callable[[str], Path], variant: str) -> None:
    assert_loaded_exactly(checkpoint(variant))


def test_shards_load_like_one_file(sharded_checkpoint: Path) -> None:
    assert_loaded_exactly(sharded_checkpoint)


def test_a_weight_belongs_to_one_place_and_every_place_is_filled(llama_checkpoint: Path) -> None:
    model, _ = loader.load_model(str(llama_checkpoint), "auto", CPU)
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in model.checkpoint_tensors().values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    layer = model.layers[0]
    named = sum(t.numel() for n, t in model.checkpoint_tensors().items() if n.startswith("model.layers.0."))
    linears = (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    assert named == sum(owner.weight.numel() for owner in (*linears, *norms))


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_are_converted_to_the_dtype_asked_for(llama_checkpoint: Path, name: str, dtype: torch.dtype) -> None:
    for asked in (name, dtype):
        model, _ = loader.load_model(str(llama_checkpoint), asked, CPU)
        assert {tensor.dtype for tensor in model.checkpoint_tensors().values()} == {dtype}


def test_auto_is_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    make_llama_checkpoint(tmp_path, dtype=torch.bfloat16)
    model, config = loader.load_model(str(tmp_path), "auto", CPU)
    assert config.dtype == "bfloat16"
    assert model.norm.weight.dtype is torch.bfloat16


def test_auto_is_the_dtype_of_the_weights_where_the_configuration_names_none(tmp_path: Path) -> None:
    make_llama_checkpoint(tmp_path, dtype=torch.float16)
    edit_json(tmp_path / "config.json", lambda c: c.pop("dtype"))
    model, config = loader.load_model(str(tmp_path), "auto", CPU)
    assert config.dtype is None
    assert model.norm.weight.dtype is torch.float16


def test_an_unknown_dtype_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"int8.*float32"):
        loader.load_model(str(directory), "int8", CPU)
    edit_json(directory / "config.json", lambda c: c.update(dtype="float8_e4m3fn"))
    assert "float8_e4m3fn" in refusal(directory, ConfigError)


def test_rotary_buffers_and_a_tied_head_in_the_file_are_passed_over(directory: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    edit_weights(directory / WEIGHTS, add)
    loader.load_model(str(directory), "auto", CPU)


def test_a_head_of_its_own_is_used_though_the_configuration_says_tied(directory: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)

    edit_weights(directory / WEIGHTS, add)
    model, config = loader.load_model(str(directory), "auto", CPU)
    assert not config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, model.embed_tokens.weight.flip(0))
    oracle = reference_model(directory)
    assert torch.equal(oracle.lm_head.weight, model.lm_head.weight)
    assert torch.equal(oracle.model.embed_tokens.weight, model.embed_tokens.weight)


def test_a_directory_that_is_missing_empty_or_a_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "file").write_text("")
    assert "does not exist" in refusal(tmp_path / "file")


def test_a_directory_without_weights_is_refused(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    assert "no weights" in refusal(directory)


def test_pickled_weights_are_refused_without_being_opened(directory: Path, tmp_path: Path) -> None:
    (directory / WEIGHTS).unlink()
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trap),)

    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    message = refusal(directory)
    assert "pytorch_model.bin" in message
    assert "never loaded" in message
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 4, 500, -100])
def test_a_truncated_file_is_refused_by_name(directory: Path, keep: int) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert WEIGHTS in refusal(directory)


def test_a_file_of_something_else_is_refused_by_name(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"\x80\x02" * 4000)
    assert WEIGHTS in refusal(directory)


def test_missing_extra_and_misshapen_tensors_are_all_named(directory: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.layers.7.extra.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(65)

    edit_weights(directory / WEIGHTS, damage)
    message = refusal(directory)
    assert "1 missing: model.layers.1.self_attn.k_proj.weight" in message
    assert "1 not part of the model: model.layers.7.extra.weight" in message
    assert "model.norm.weight is [65], expected [64]" in message


def test_an_untied_model_needs_its_head(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoint("untied-gqa"), tmp_path / "copy"))
    edit_weights(directory / WEIGHTS, lambda tensors: tensors.pop("lm_head.weight"))
    assert "1 missing: lm_head.weight" in refusal(directory)


def test_long_lists_of_names_are_cut_short(directory: Path) -> None:
    edit_json(directory / "config.json", lambda c: c.update(num_hidden_layers=30))
    message = refusal(directory)
    assert "243 missing" in message
    assert "238 more" in message
    assert len(message) < 600


def test_integer_weights_are_refused(directory: Path) -> None:
    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)

    edit_weights(directory / WEIGHTS, quantize)
    assert "model.norm.weight is stored as I8" in refusal(directory)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", 3])
def test_an_index_cannot_point_out_of_its_directory(sharded: Path, shard: Any) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    message = refusal(sharded)
    assert "only a plain file name" in message
    assert "model.norm.weight" in message


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    assert shard.name in refusal(sharded)


def test_a_shard_that_differs_from_the_index_is_refused(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    edit_weights(shard, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    message = refusal(sharded)
    assert shard.name in message
    assert "not listed surprise" in message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": [1]}', "{}", "\xff"])
def test_a_damaged_index_is_refused_by_name(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_bytes(content.encode("latin-1"))
    assert INDEX in refusal(sharded)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff"])
def test_a_damaged_config_is_refused_by_name(directory: Path, content: str) -> None:
    (directory / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(directory)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "'hidden_size' must be an integer"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' must be"),
        ({"num_hidden_layers": True}, "'num_hidden_layers' must be"),
        ({"vocab_size": 2.5}, "'vocab_size' must be"),
        ({"num_key_value_heads": 3}, "'num_key_value_heads' is 3: it must divide num_attention_heads=4"),
        ({"head_dim": 15}, "'head_dim' is 15"),
        ({"head_dim": None, "hidden_size": 66}, "'hidden_size' is 66"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps' must be"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' must be"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' must be true or false"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"eos_token_id": "end"}, "'eos_token_id' must be a token id"),
        ({"bos_token_id": -1}, "'bos_token_id' must be"),
        ({"quantization_config": {"quant_method": "fp8"}}, "'quantization_config' is set"),
        ({"architectures": ["MambaForCausalLM"]}, "implemented are LlamaForCausalLM"),
        ({"architectures": None}, "'architectures' must be a list"),
        ({"architectures": []}, "'architectures' must be a list"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "'rope_type' is 'longrope'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 2.0}}, "'rope_type' is 'su'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "'factor' is missing"),
        ({"rope_parameters": {"mrope_section": [2, 3, 3]}}, "'mrope_section' is not implemented"),
        ({"sliding_window": 64}, "'sliding_window' is 64"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "an entry per layer type"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor' is 0.5"),
        ({"rope_parameters": "default"}, "'rope_parameters' must be an object"),
        ({"rope_parameters": {"rope_theta": -1}}, "'rope_theta' must be"),
        (
            {"rope_theta": "1e6", "rope_scaling": {"type": "linear", "factor": 2.0}},
            "config.json: field 'rope_theta' must",
        ),
    ],
)
def test_a_bad_field_is_refused_by_file_and_name(directory: Path, change: dict[str, Any], named: str) -> None:
    edit_json(directory / "config.json", lambda c: c.update(change))
    message = refusal(directory)
    assert "config.json" in message
    assert named in message


BASE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_absent_fields_have_transformers_defaults() -> None:
    config = LlamaConfig.from_hf(BASE)
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (4, 16, 2048)
    assert (config.rms_norm_eps, config.rope.rope_theta, config.tie_word_embeddings) == (1e-6, 10000.0, False)
    assert (config.dtype, config.eos_token_ids, config.bos_token_id) == (None, frozenset(), None)


def test_both_spellings_of_rope_and_dtype_mean_the_same() -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    hub = BASE | {"rope_theta": 5e5, "rope_scaling": llama3, "torch_dtype": "bfloat16"}
    new = BASE | {"rope_parameters": llama3 | {"rope_theta": 5e5}, "dtype": "bfloat16"}
    assert LlamaConfig.from_hf(hub) == LlamaConfig.from_hf(new)
    legacy = LlamaConfig.from_hf(BASE | {"rope_scaling": {"type": "linear", "factor": 4}})
    assert (legacy.rope.rope_type, legacy.rope.factor) == ("linear", 4.0)


def test_llama3_falls_back_to_the_context_length_for_the_original_one() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig.from_hf(BASE | {"rope_parameters": rope, "max_position_embeddings": 512})
    assert config.rope.original_max_position_embeddings == 512
    top = LlamaConfig.from_hf(BASE | {"rope_parameters": rope, "original_max_position_embeddings": 128})
    assert top.rope.original_max_position_embeddings == 128


def test_end_tokens_of_the_generation_config_win() -> None:
    values = BASE | {"eos_token_id": 2}
    assert LlamaConfig.from_hf(values).eos_token_ids == {2}
    assert LlamaConfig.from_hf(values, {"eos_token_id": [3, 4]}).eos_token_ids == {3, 4}
    assert LlamaConfig.from_hf(values, {"temperature": 0.6}).eos_token_ids == {2}
    with pytest.raises(ModelLoadError, match=r"generation_config.json: field 'eos_token_id'"):
        LlamaConfig.from_hf(values, {"eos_token_id": [True]})


def test_a_damaged_generation_config_is_refused_by_name(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")
    assert "generation_config.json" in refusal(directory)
