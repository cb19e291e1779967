"""Random little checkpoints, complete with tokenizer, and what transformers makes of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

VARIANTS: dict[str, dict[str, Any]] = {
    "tied-gqa": {"tied": True, "num_key_value_heads": 2},
    "tied-mha": {"tied": True, "num_key_value_heads": 4},
    "untied-gqa": {"tied": False, "num_key_value_heads": 2},
    "untied-mha": {"tied": False, "num_key_value_heads": 4},
    "one-kv-head-wide-head": {"num_key_value_heads": 1, "head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "llama3-rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}
"""Kinds of Llama checkpoints, as arguments of `make_llama_checkpoint`."""


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer: ids 0 to 255 are bytes, then 20 merged pairs of letters, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    merges = [(a, b) for a in "aeio" for b in "nrstl"]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def make_llama_checkpoint(
    directory: Path,
    *,
    tied: bool = True,
    num_key_value_heads: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    scale: float = 4.0,
    **config: Any,
) -> Path:
    """Save a random Llama checkpoint with its tokenizer and return `directory`.

    Args:
        directory: where to; made if it does not exist.
        tied: whether the output projection is the token table.
        num_key_value_heads: 4 heads are multi-head attention, fewer are grouped.
        seed: seed of the weights.
        dtype: dtype of the weights on disk.
        max_shard_size: weights above it are split into shards.
        scale: factor on the random matrices; 4 keeps the logits of greedy runs far enough apart to compare.
        **config: fields of `transformers.LlamaConfig` to change.
    """
    transformers.utils.logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": num_key_value_heads,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": tied,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(fields | config)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(scale)
                else:
                    # Norm weights start as ones and biases as zeros: make it matter that they are loaded.
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    return directory


@functools.lru_cache(maxsize=16)
def reference_model(directory: Path, dtype: torch.dtype | None = None) -> transformers.PreTrainedModel:
    """transformers' model of a checkpoint, in `dtype` or, without one, in its own."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto").eval()


def reference_greedy(
    directory: Path, prompt: Sequence[int], max_new_tokens: int, dtype: torch.dtype | None = None
) -> list[int]:
    """What transformers generates greedily after `prompt`, going on past end-of-sequence tokens.

    The model runs in `dtype` or, without one, in the checkpoint's own.
    """
    input_ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        output = reference_model(directory, dtype).generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=None,
        )
    return output[0, len(prompt) :].tolist()


def reference_logits(directory: Path, tokens: Sequence[int]) -> torch.Tensor:
    """[len(tokens), vocab] float32 logits of transformers at every position."""
    with torch.inference_mode():
        return reference_model(directory)(torch.tensor([list(tokens)])).logits[0].float()


def random_prompts(lengths: Sequence[int], vocab_size: int = 256, seed: int = 0) -> list[list[int]]:
    """Prompts of the given lengths with random token ids below `vocab_size`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
