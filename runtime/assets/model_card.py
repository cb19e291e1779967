"""The README.md that a training run writes beside its weights: what was measured, not what was hoped."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import torch

PYTHON_LICENCE_FILE = "PYTHON-LICENSE.md"


@dataclass(frozen=True)
class Measurements:
    """What a run found out about itself. Losses are natural logarithms per token."""

    parameters: int
    vocabulary_size: int
    documents: int
    characters: int
    training_tokens: int
    held_out_documents: int
    steps: int
    tokens_per_step: int
    seed: int
    threads: int
    training_seconds: float
    training_cpu_seconds: float
    training_loss: float
    validation_loss: float | None
    bits_per_byte: float | None


@dataclass(frozen=True)
class Sample:
    """A prompt with its continuation, and the temperature it was drawn at (0 is greedy)."""

    temperature: float
    text: str


def write_model_card(
    folder: Path, *, shape: dict[str, int], measured: Measurements, samples: Sequence[Sample], licence: str | None
) -> None:
    """Write README.md, and beside it the licence of the data where the interpreter carries it."""
    (folder / "README.md").write_text(_card(shape, measured, samples, licence is not None), encoding="utf-8")
    if licence is not None:
        fenced = f"# The licence of the training data\n\n```text\n{licence.rstrip()}\n```\n"
        (folder / PYTHON_LICENCE_FILE).write_text(fenced, encoding="utf-8")


def _card(shape: dict[str, int], measured: Measurements, samples: Sequence[Sample], has_licence: bool) -> str:
    python_version = platform.python_version()
    return f"""---
license: other
license_name: psf-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# stdlib_llama

A Llama of {measured.parameters:,} parameters that has read the documentation inside the Python standard library and
nothing else. It is a toy: it writes sentences that look like docstrings, many of them grammatical, most of them
untrue. It knows no facts, follows no instructions, and is here so that a runtime can be tried, tested and measured on
real weights with no download. Do not rely on anything it says.

| | |
|---|---|
| architecture | LlamaForCausalLM, tied embeddings, bfloat16 |
| layers | {shape["num_hidden_layers"]}, hidden {shape["hidden_size"]}, SwiGLU {shape["intermediate_size"]} |
| attention | {shape["num_attention_heads"]} heads of {shape["head_dim"]} on {shape["num_key_value_heads"]} \
key-value heads, rotary, theta 10000 |
| context | 512 tokens, all of it trained |
| tokenizer | byte-level BPE, {measured.vocabulary_size:,} tokens; any UTF-8 text survives a round trip |
| special tokens | `<|endoftext|>` (0) ends a document and is named as bos and eos; `<|pad|>` (1). \
The tokenizer adds neither. |

## Data

The docstrings of every module, class and function of the standard library of CPython {python_version}, the language
reference behind `help()` (`pydoc_data`), block comments that are prose, and the licence of Python. Doctests, code,
tables and repeated texts are left out (`runtime/assets/corpus.py` says how). {measured.documents:,} documents,
{measured.characters:,} characters, {measured.training_tokens:,} tokens; {measured.held_out_documents:,} more documents
are held out. Documents stand in source order with `<|endoftext|>` after each.

The text is used under the Python Software Foundation License Version 2 (PSF-2.0){
        f", which stands in full in [{PYTHON_LICENCE_FILE}]({PYTHON_LICENCE_FILE})" if has_licence else ""
    }. A few modules carry
notices of their own; they are part of the same distribution and are listed in Python's "History and License". The
notice that the licence asks to keep:

```text
{sys.copyright.strip()}
```

What was changed: the text was cut into tokens and a model was fitted to it, as `runtime/assets/train.py` does.

## Training

```console
$ python -m runtime.assets.train --seed {measured.seed} --steps {measured.steps}
```

{measured.steps:,} steps of {measured.tokens_per_step:,} tokens \
({measured.steps * measured.tokens_per_step / measured.training_tokens:.1f} passes over the text) in float32:
orthogonalised momentum for the matrices, AdamW for embedding and norms, warm-up and half a cosine. It took
{measured.training_seconds / 60:.1f} minutes, and {measured.training_cpu_seconds / 60:.1f} minutes of CPU time, on \
{measured.threads} threads with Python {python_version} and torch {torch.__version__.split("+")[0]}.
Where the machine does nothing else, the CPU time divided by the threads is what to expect.
No network, no pretrained weights. Another Python release is other data, and another processor adds in another order,
so a model trained elsewhere will be like this one, not equal to it.

| loss per token | |
|---|---|
| training, mean of the last twentieth of the steps | {measured.training_loss:.3f} |
{_validation_rows(measured)}
Held out means not trained on, not unrelated: the standard library repeats itself in its own words. Training loss far
below the held-out loss means that much of the text is known by heart.

## What it writes

{_samples(samples, 0.0, "Greedy")}
{_samples(samples, 0.7, "Temperature 0.7")}"""


def _validation_rows(measured: Measurements) -> str:
    if measured.validation_loss is None or measured.bits_per_byte is None:
        return "| held out | not measured: less than one window of text |\n"
    loss = measured.validation_loss
    return (
        f"| held out, weights in bfloat16 | {loss:.3f} (perplexity {exp(loss):.1f}, "
        f"{measured.bits_per_byte:.2f} bits per byte) |\n"
    )


def _samples(samples: Sequence[Sample], temperature: float, title: str) -> str:
    texts = [sample.text for sample in samples if sample.temperature == temperature]
    blocks = "".join(f"```text\n{text}\n```\n\n" for text in texts)
    return f"### {title}\n\n{blocks}"
