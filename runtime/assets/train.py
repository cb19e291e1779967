"""Train the embedded model: `python -m runtime.assets.train`.

From nothing (no network, no pretrained weights) to a checkpoint in Hugging Face layout: a byte-level BPE
tokenizer and a Llama of under three million parameters, both learnt from the text in `runtime.assets.corpus`.

The result is a function of the seed, the Python release (its standard library is the data), the versions of
torch, transformers and tokenizers, and the processor: another number of threads or another instruction set adds
floating-point sums in another order, and the weights drift apart after a few hundred steps. On one machine with
the same versions and `--threads`, two runs write the same `model.safetensors` and `tokenizer.json`.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

# Sleep, not spin, at a barrier: spinning threads stall each other when anything else runs. OpenMP reads it once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from runtime.assets import EMBEDDED_MODEL_DIR
from runtime.assets.corpus import Corpus, CorpusError, build_corpus, python_licence
from runtime.assets.model_card import Measurements, Sample, write_model_card
from runtime.assets.optimizer import MatrixOptimizer

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
END_OF_TEXT_ID = 0
PADDING_ID = 1
SMALLEST_VOCABULARY = 256 + 2

CONTEXT_LENGTH = 512
FIRST_PHASE_LENGTH = 256
FIRST_PHASE_SHARE = 0.65
"""Attention is a third of the work at 512 tokens, so the first steps see the same tokens in shorter windows."""

SAMPLE_PROMPTS = ("If the file", "If the argument is", "Return a list of", "This module provides")
SAMPLE_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """The sizes of the model; everything else of a Llama follows from them."""

    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32


@dataclass(frozen=True)
class Recipe:
    """How the model is trained.

    The default is more steps than the held-out loss likes best: 1200 of them end at 3.55 where 2200 end at 3.66, but
    their text goes in circles, and readable text is what this model is for.
    """

    steps: int = 2200
    tokens_per_step: int = 2048
    learning_rate: float = 6e-3
    warmup_share: float = 0.04
    weight_decay: float = 0.1
    gradient_norm: float = 1.0
    seed: int = 0


# ---------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(documents: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """Byte-level BPE: every byte is in the alphabet, so any UTF-8 text survives encode and decode."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer=trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: Sequence[str]) -> torch.Tensor:
    """All documents in one row, each followed by the end-of-text token."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(END_OF_TEXT_ID)
    return torch.tensor(ids, dtype=torch.int64)


# --------------------------------------------------------------------------------------------------------- data


def windows(stream: torch.Tensor, length: int, offset: int = 0) -> torch.Tensor:
    """Neighbouring windows of `length` tokens as rows; what does not fill a row at the end is left out."""
    count = (stream.numel() - offset) // length
    return stream[offset : offset + count * length].view(count, length)


def batches(stream: torch.Tensor, length: int, rows: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled windows for ever; every pass over the text cuts it at other places."""
    remaining = torch.empty(0, length, dtype=stream.dtype)
    while True:
        while remaining.shape[0] < rows:
            offset = int(torch.randint(min(length, stream.numel() - length + 1), (), generator=generator))
            fresh = windows(stream, length, offset)
            remaining = torch.cat([remaining, fresh[torch.randperm(fresh.shape[0], generator=generator)]])
        yield remaining[:rows]
        remaining = remaining[rows:]


# ----------------------------------------------------------------------------------------------------- training


class Progress:
    """Where a long run stands, on stderr: one line that renews itself on a terminal, now and then a line else."""

    SECONDS_BETWEEN_LINES = 15.0
    SECONDS_BETWEEN_RENEWALS = 0.5

    def __init__(self, steps: int, tokens_per_step: int) -> None:
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._renews = sys.stderr.isatty()
        self._started = time.perf_counter()
        self._shown = -math.inf
        self._loss: float | None = None

    def step(self, done: int, loss: float) -> None:
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        now = time.perf_counter()
        pause = self.SECONDS_BETWEEN_RENEWALS if self._renews else self.SECONDS_BETWEEN_LINES
        if done < self._steps and now - self._shown < pause:
            return
        self._shown = now
        elapsed = now - self._started
        minutes, seconds = divmod(round(elapsed / done * (self._steps - done)), 60)
        filled = 24 * done // self._steps
        line = (
            f"[{'#' * filled}{'.' * (24 - filled)}] {done}/{self._steps}  loss {self._loss:.3f}  "
            f"{done * self._tokens_per_step / elapsed:,.0f} tokens/s  ETA {minutes}:{seconds:02}"
        )
        if self._renews:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done == self._steps else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def new_model(shape: Shape, vocabulary_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        **asdict(shape),
        vocab_size=vocabulary_size,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=PADDING_ID,
    )
    return LlamaForCausalLM(config)


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """A short linear rise, then half a cosine down to nothing."""
    warmup = max(1, round(recipe.warmup_share * recipe.steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train_model(model: LlamaForCausalLM, stream: torch.Tensor, recipe: Recipe) -> float:
    """Train in place; returns the mean training loss of the last twentieth of the steps."""
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.dim() != 2 or p is embedding]
    optimizer = MatrixOptimizer(matrices, others, weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(recipe.seed)
    first_phase_steps = int(FIRST_PHASE_SHARE * recipe.steps)
    sources = {
        length: batches(stream, length, max(1, recipe.tokens_per_step // length), generator)
        for length in (FIRST_PHASE_LENGTH, CONTEXT_LENGTH)
    }
    progress = Progress(recipe.steps, recipe.tokens_per_step)
    losses: list[float] = []
    model.train()
    for step in range(recipe.steps):
        batch = next(sources[FIRST_PHASE_LENGTH if step < first_phase_steps else CONTEXT_LENGTH])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimizer.step(learning_rate_at(step, recipe))
        losses.append(loss.item())
        progress.step(step + 1, losses[-1])
    last = losses[-max(1, recipe.steps // 20) :]
    return sum(last) / len(last)


@torch.inference_mode()
def validation_loss(model: LlamaForCausalLM, stream: torch.Tensor) -> float | None:
    """Mean loss per token on held-out text in whole windows; None where there is less than one window of it."""
    rows = windows(stream, CONTEXT_LENGTH)
    if rows.shape[0] == 0:
        return None
    model.eval()
    return sum(model(input_ids=row, labels=row).loss.item() for row in rows.split(1)) / rows.shape[0]


@torch.inference_mode()
def continue_text(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, temperature: float, seed: int, tokens: int
) -> str:
    """Prompt and continuation, up to the end of the document; a temperature of 0 takes the likeliest token."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    model.eval()
    for _ in range(tokens):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        if token == END_OF_TEXT_ID:
            break
        ids.append(token)
    return str(tokenizer.decode(ids))


# ---------------------------------------------------------------------------------------------------- checkpoint


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, shape: Shape) -> None:
    """The files that transformers and the runtime read; `model` must be in bfloat16."""
    special_ids = {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PADDING_ID,
    }
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": model.config.vocab_size,
            **asdict(shape),
            "max_position_embeddings": CONTEXT_LENGTH,
            "hidden_act": "silu",
            "rms_norm_eps": model.config.rms_norm_eps,
            "initializer_range": model.config.initializer_range,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "use_cache": True,
            # transformers 5 reads `rope_parameters` and `dtype`; 4 reads the other three. They say the same.
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            **special_ids,
        },
    )
    write_json(folder / "generation_config.json", special_ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_LENGTH,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PADDING,
            "model_input_names": ["input_ids", "attention_mask"],  # else transformers 4 adds token_type_ids
            "clean_up_tokenization_spaces": False,
        },
    )
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied: the same matrix as the embedding
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


class StagedFolder:
    """A folder that appears at `target` whole, or not at all.

    The work goes on in a hidden sibling, made at once, so that a place nobody may write to is found before the
    training and not after it.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))

    def publish(self) -> None:
        umask = os.umask(0)
        os.umask(umask)
        self.path.chmod(0o777 & ~umask)
        for file in self.path.iterdir():
            file.chmod(0o666 & ~umask)
        if not self._target.exists():
            self.path.rename(self._target)
            return
        retired = Path(tempfile.mkdtemp(prefix=f".{self._target.name}.old.", dir=self._target.parent))
        self._target.rename(retired / self._target.name)
        try:
            self.path.rename(self._target)
        except OSError:
            (retired / self._target.name).rename(self._target)
            raise
        finally:
            shutil.rmtree(retired)

    def discard(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)


# --------------------------------------------------------------------------------------------------- command line


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _whole_number(least: int) -> Any:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is too small, the least is {least}")
        return number

    return parse


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m runtime.assets.train",
        description="Train the embedded model on the docstrings of this interpreter's standard library and write it "
        "in Hugging Face layout. Needs no network; about a quarter of an hour on two CPU cores.",
    )
    recipe = Recipe()
    count = _whole_number(1)
    parser.add_argument(
        "--output",
        type=Path,
        default=EMBEDDED_MODEL_DIR,
        help="folder to write; a checkpoint there is replaced (default: stdlib_llama beside this script)",
    )
    parser.add_argument("--steps", type=count, default=recipe.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--seed", type=_whole_number(0), default=recipe.seed, help="of weights and data order (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens-per-step",
        type=_whole_number(CONTEXT_LENGTH),
        default=recipe.tokens_per_step,
        help=f"tokens in a batch, a multiple of {CONTEXT_LENGTH} (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=_positive_number,
        default=recipe.learning_rate,
        help="at its peak (default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary-size",
        type=_whole_number(SMALLEST_VOCABULARY),
        default=2048,
        help="tokens of the tokenizer (default: %(default)s)",
    )
    parser.add_argument(
        "--max-documents",
        type=count,
        default=None,
        help="read only the first so many documents: a trial in seconds (default: all of them)",
    )
    parser.add_argument(
        "--threads", type=count, default=None, help="threads of torch (default: as many as torch chooses)"
    )
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output.resolve()
    output: Path = arguments.output
    if arguments.tokens_per_step % CONTEXT_LENGTH:
        parser.error(f"--tokens-per-step {arguments.tokens_per_step} is not a multiple of {CONTEXT_LENGTH}")
    if output.exists() and not output.is_dir():
        parser.error(f"--output {output} is not a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
        parser.error(f"--output {output} holds something that is not a checkpoint; not replacing it")
    return arguments


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def train_into(folder: Path, arguments: argparse.Namespace, corpus: Corpus) -> None:
    """Train on `corpus` as the command line asks and write every file of the checkpoint into `folder`."""
    started = time.perf_counter()
    shape = Shape()
    recipe = Recipe(
        steps=arguments.steps,
        tokens_per_step=arguments.tokens_per_step,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    tokenizer = train_tokenizer(corpus.training, arguments.vocabulary_size)
    stream = token_stream(tokenizer, corpus.training)
    if stream.numel() < CONTEXT_LENGTH:
        raise CorpusError(f"{stream.numel()} tokens of text are less than one window of {CONTEXT_LENGTH}")
    torch.manual_seed(recipe.seed)
    model = new_model(shape, tokenizer.get_vocab_size())
    parameters = sum(p.numel() for p in model.parameters())
    epochs = recipe.steps * recipe.tokens_per_step / stream.numel()
    say(
        f"{len(corpus.training):,} documents, {stream.numel():,} tokens; {parameters:,} parameters; "
        f"{recipe.steps:,} steps of {recipe.tokens_per_step:,} tokens, {epochs:.1f} passes over the text; "
        f"{torch.get_num_threads()} threads"
    )
    training_started, cpu_started = time.perf_counter(), time.process_time()
    training = train_model(model, stream, recipe)
    seconds, cpu_seconds = time.perf_counter() - training_started, time.process_time() - cpu_started
    model = model.bfloat16()  # what is measured from here on is what is written
    held_out_stream = token_stream(tokenizer, corpus.held_out)
    validation = validation_loss(model, held_out_stream)
    held_out_bytes = sum(len(document.encode()) for document in corpus.held_out)
    measurements = Measurements(
        parameters=parameters,
        vocabulary_size=tokenizer.get_vocab_size(),
        documents=len(corpus.training),
        characters=sum(map(len, corpus.training)),
        training_tokens=stream.numel(),
        held_out_documents=len(corpus.held_out),
        steps=recipe.steps,
        tokens_per_step=recipe.tokens_per_step,
        seed=recipe.seed,
        threads=torch.get_num_threads(),
        training_seconds=seconds,
        training_cpu_seconds=cpu_seconds,
        training_loss=training,
        validation_loss=validation,
        bits_per_byte=None
        if validation is None
        else validation / math.log(2) * held_out_stream.numel() / held_out_bytes,
    )
    write_checkpoint(folder, model, tokenizer, shape)
    samples = [
        Sample(temperature, continue_text(model, tokenizer, prompt, temperature, number, SAMPLE_TOKENS))
        for temperature in (0.0, 0.7)
        for number, prompt in enumerate(SAMPLE_PROMPTS)
    ]
    write_model_card(folder, shape=asdict(shape), measured=measurements, samples=samples, licence=python_licence())
    say(f"trained in {seconds / 60:.1f} minutes, everything in {(time.perf_counter() - started) / 60:.1f}")
    say(f"training loss {training:.3f}")
    if validation is not None:
        say(f"validation loss {validation:.3f}, perplexity {math.exp(validation):.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    transformers_logging.set_verbosity_error()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        staged = StagedFolder(arguments.output)
    except OSError as error:
        say(f"cannot write to {arguments.output.parent}: {error}")
        return 2
    try:
        train_into(staged.path, arguments, build_corpus(arguments.max_documents))
        staged.publish()
    except (CorpusError, OSError) as error:
        say(f"cannot train: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    finally:
        staged.discard()
    total = sum(file.stat().st_size for file in arguments.output.iterdir())
    say(f"wrote {arguments.output} ({total:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
