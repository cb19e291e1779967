"""The checkpoint that ships with the runtime, and the script that makes it."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runtime.assets import EMBEDDED_MODEL_DIR, corpus, train
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_BYTES = 6 * 10**6
CHECKPOINT_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
}

# Written for this test and found in no standard library; docstring English is what the model claims to know.
UNSEEN_PASSAGE = """Return the name of the file that was opened for the given object.

If the object has no file, None is returned. The optional argument is a string that is used as the default value when
the name can not be found in the list. Raises ValueError if the argument is not a string."""
PROMPTS = ("The following functions", "Return a list of", "This module provides", "If the file")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def standard_library_words() -> set[str]:
    documents = corpus.build_corpus().training
    return {word.lower() for document in documents for word in re.findall(r"[A-Za-z]+", document)}


def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.inference_mode():
        return math.exp(model(input_ids=ids, labels=ids).loss.item())


class TestCheckpoint:
    def test_is_small_and_complete(self) -> None:
        sizes = {file.name: file.stat().st_size for file in EMBEDDED_MODEL_DIR.iterdir()}
        assert set(sizes) >= CHECKPOINT_FILES
        assert sum(sizes.values()) <= MOST_BYTES

    def test_weights_are_bfloat16_and_the_head_is_the_embedding(self) -> None:
        with safe_open(EMBEDDED_MODEL_DIR / "model.safetensors", framework="pt") as weights:
            assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 - not a mapping
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118

    def test_config_says_the_same_to_every_release_of_transformers(self) -> None:
        config = json.loads((EMBEDDED_MODEL_DIR / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
        assert config["dtype"] == config["torch_dtype"] == "bfloat16"
        assert config["tie_word_embeddings"] is True
        assert config["num_attention_heads"] > config["num_key_value_heads"]

    def test_special_tokens_agree_between_tokenizer_and_config(self, tokenizer: Any, model: Any) -> None:
        assert len(tokenizer) == model.config.vocab_size
        assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.config.eos_token_id
        assert tokenizer.pad_token_id == model.config.pad_token_id
        assert tokenizer("a word").input_ids == tokenizer("a word", add_special_tokens=False).input_ids

    def test_card_names_data_licence_and_copyright(self) -> None:
        card = (EMBEDDED_MODEL_DIR / "README.md").read_text()
        assert "PSF-2.0" in card
        assert "Python Software Foundation" in card
        assert "python -m runtime.assets.train" in card


class TestTokenizer:
    @settings(max_examples=300, deadline=None)
    @given(text=st.text(max_size=200))
    @example(text="")
    @example(text="  two  spaces \t tab \r\n line \n\n end ")
    @example(text="Grüße, 世界, здравствуй, \N{FAMILY} \U0001f469\u200d\U0001f4bb \x00\x7f")
    @example(text="don 't , please . <|endoftext|> <|pad|>")
    def test_any_text_survives_a_round_trip(self, tokenizer: Any, text: str) -> None:
        assert tokenizer.decode(tokenizer(text).input_ids) == text

    def test_english_takes_far_fewer_tokens_than_bytes(self, tokenizer: Any) -> None:
        assert len(tokenizer(UNSEEN_PASSAGE).input_ids) < len(UNSEEN_PASSAGE) / 3


class TestLanguage:
    def test_unseen_english_is_expected_and_its_words_in_disorder_are_not(self, model: Any, tokenizer: Any) -> None:
        """A model of noise has a perplexity near the vocabulary size, one of word counts alone near 400."""
        in_order = perplexity(model, tokenizer, UNSEEN_PASSAGE)
        words = UNSEEN_PASSAGE.split()
        shuffled = [words[i] for i in torch.randperm(len(words), generator=torch.Generator().manual_seed(0))]
        assert in_order < 40
        assert perplexity(model, tokenizer, " ".join(shuffled)) > 5 * in_order

    def test_the_last_position_of_the_context_is_as_good_as_the_middle(self, model: Any, tokenizer: Any) -> None:
        ids = tokenizer("\n\n".join(corpus.build_corpus(max_documents=400).held_out)).input_ids
        length = model.config.max_position_embeddings
        rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        assert rows.shape[0] > 0
        with torch.inference_mode():
            logits = model(input_ids=rows).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(0)
        assert losses[-128:].mean() < losses[128:256].mean() + 0.5

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_greedy_text_is_made_of_english_words(
        self, model: Any, tokenizer: Any, standard_library_words: set[str], prompt: str
    ) -> None:
        ids = tokenizer(prompt, return_tensors="pt")
        generated = model.generate(**ids, max_new_tokens=60, do_sample=False)
        text = tokenizer.decode(generated[0], skip_special_tokens=True)
        assert text.startswith(prompt)
        words = re.findall(r"[A-Za-z]+", text[len(prompt) :])
        known = sum(word.lower() in standard_library_words for word in words)
        assert len(words) >= 3
        assert known >= 0.9 * len(words), text

    def test_a_document_comes_to_an_end(self, model: Any, tokenizer: Any) -> None:
        ids = tokenizer("Return True if the object is a function.", return_tensors="pt")
        with torch.inference_mode():
            after_full_stop = model(**ids).logits[0, -1].softmax(-1)
        assert after_full_stop[tokenizer.eos_token_id] > 0.1


class TestCorpus:
    def test_wrapped_lines_are_joined_and_paragraphs_kept(self) -> None:
        raw = (
            "Return the name of the thing that the caller has asked for, or\n"
            "None if there is no such thing in the list.\n"
            "\n"
            "The name is always a string."
        )
        assert corpus.clean(raw) == (
            "Return the name of the thing that the caller has asked for, or None if there is no such thing in the "
            "list.\n\nThe name is always a string."
        )

    def test_examples_go_together_with_the_words_that_announce_them(self) -> None:
        raw = "Return the square of the number that was given. For example:\n\n>>> square(3)\n9"
        assert corpus.clean(raw) == "Return the square of the number that was given."

    @pytest.mark.parametrize(
        "raw",
        [
            "",
            "Too short.",
            ">>> f(1)\n1\n>>> g(2)\n2",
            "STANDARD OPTIONS\n\nactivebackground, activeforeground, anchor, background, bitmap, borderwidth",
            "def visit(self, node):\n    return self.generic_visit(node)",
        ],
    )
    def test_what_is_not_prose_is_dropped(self, raw: str) -> None:
        assert corpus.clean(raw) is None

    def test_the_same_interpreter_gives_the_same_documents(self) -> None:
        first, second = (corpus.build_corpus(max_documents=100) for _ in range(2))
        assert first == second
        assert len(first.training) + len(first.held_out) == 100
        assert len(set(first.training + first.held_out)) == 100


class TestTrainingScript:
    @pytest.mark.slow
    def test_a_tiny_run_writes_a_checkpoint_that_loads(self, tmp_path: Path) -> None:
        output = tmp_path / "new" / "model"
        command = [sys.executable, "-m", "runtime.assets.train", "--steps", "2", "--max-documents", "120"]
        run = subprocess.run(
            [*command, "--output", str(output), "--tokens-per-step", "512"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "2/2" in run.stderr
        assert "ETA" in run.stderr
        assert {file.name for file in output.iterdir()} >= CHECKPOINT_FILES
        assert list(output.parent.iterdir()) == [output]
        loaded = AutoModelForCausalLM.from_pretrained(output)
        assert loaded.dtype == torch.bfloat16
        text = "Return a list."
        tokenizer = AutoTokenizer.from_pretrained(output)
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert torch.isfinite(loaded(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits).all()

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--steps", "0"], "too small"),
            (["--steps", "many"], "not a whole number"),
            (["--learning-rate", "nan"], "not a positive number"),
            (["--tokens-per-step", "1000"], "multiple of 512"),
            (["--vocabulary-size", "100"], "too small"),
            (["--max-documents", "-3"], "too small"),
            (["--epochs", "3"], "unrecognized arguments"),
        ],
    )
    def test_nonsense_is_refused_in_one_line(
        self, arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as refusal:
            train.main([*arguments, "--output", str(tmp_path / "model")])
        assert refusal.value.code == 2
        message = capsys.readouterr().err
        assert complaint in message
        assert message.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_a_folder_with_other_things_is_not_replaced(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "holiday.txt").write_text("keep me")
        for output, complaint in ((tmp_path, "not a checkpoint"), (tmp_path / "holiday.txt", "not a folder")):
            with pytest.raises(SystemExit) as refusal:
                train.main(["--output", str(output)])
            assert refusal.value.code == 2
            assert complaint in capsys.readouterr().err
        assert (tmp_path / "holiday.txt").read_text() == "keep me"

    def test_a_run_that_fails_leaves_the_old_checkpoint_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = tmp_path / "model"
        old.mkdir()
        (old / "config.json").write_text("{}")
        assert train.main(["--max-documents", "3", "--steps", "1", "--output", str(old)]) == 1
        assert "less than one window" in capsys.readouterr().err
        assert (old / "config.json").read_text() == "{}"
        assert list(tmp_path.iterdir()) == [old]
