"""Text to tokens and back: what streams adds up to what decoding at once gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from runtime.core.errors import ModelLoadError
from runtime.managers.tokenizer import IncrementalDetokenizer, load_tokenizer
from tests.runtime.checkpoints import make_tokenizer

BYTE_LEVEL: Tokenizer = make_tokenizer().backend_tokenizer


def stream(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [detokenizer.add([token_id], last=number == len(token_ids) - 1) for number, token_id in enumerate(token_ids)]


@given(st.text(min_size=1))
def test_the_pieces_of_any_text_add_up_to_the_text(text: str) -> None:
    token_ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert "".join(stream(BYTE_LEVEL, token_ids)) == text


@given(st.lists(st.integers(0, 278), min_size=1))
def test_the_pieces_of_any_token_ids_are_never_taken_back(token_ids: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    shown = ""
    for number, token_id in enumerate(token_ids):
        shown += detokenizer.add([token_id], last=number == len(token_ids) - 1)
        assert detokenizer.text == shown
    assert detokenizer.text == BYTE_LEVEL.decode(token_ids)


def test_a_character_of_several_tokens_is_held_back_until_it_is_whole() -> None:
    token_ids = BYTE_LEVEL.encode("a\N{SNOWMAN}b", add_special_tokens=False).ids
    assert stream(BYTE_LEVEL, token_ids) == ["a", "", "", "\N{SNOWMAN}", "b"]


def test_a_word_boundary_that_depends_on_the_neighbour_survives_streaming() -> None:
    # As in Llama 2: a leading space mark is dropped at the start of what is decoded, but not inside it.
    vocabulary = {"\u2581one": 0, "\u2581two": 1, "three": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="three"))
    tokenizer.decoder = decoders.Metaspace()
    assert "".join(stream(tokenizer, [0, 1, 2, 1])) == "one twothree two"


def test_an_output_that_ends_inside_a_character_shows_that_it_does() -> None:
    token_ids = BYTE_LEVEL.encode("a\N{SNOWMAN}", add_special_tokens=False).ids[:-1]
    assert "".join(stream(BYTE_LEVEL, token_ids)) == BYTE_LEVEL.decode(token_ids)


def test_bytes_that_are_no_text_do_not_swallow_what_follows() -> None:
    # As in Llama 2: what is no token is spelt in bytes, and broken bytes decode differently once more follow.
    vocabulary = {"<unk>": 0, "b": 1, "c": 2, "ing": 3, "<0x0A>": 4, "<0xF0>": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert "".join(stream(tokenizer, [1, 4, 5, 2, 3])).endswith("cing")


def test_special_tokens_are_not_text() -> None:
    token_ids = [*BYTE_LEVEL.encode("a", add_special_tokens=False).ids, BYTE_LEVEL.token_to_id("</s>")]
    assert "".join(stream(BYTE_LEVEL, token_ids)) == "a"


def test_tokenizer_json_is_read_as_it_is(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.encode("linear").ids == make_tokenizer()("linear")["input_ids"]


def test_a_directory_with_only_the_older_files_is_converted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_tokenizer(str(tmp_path)).encode("aba").ids == [2, 0]


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match="cannot load a tokenizer from") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
