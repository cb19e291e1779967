"""Text to token ids and back, piece by piece as they come."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from runtime.core.errors import ModelLoadError

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def load_tokenizer(model_dir: str) -> Tokenizer:
    """Load the tokenizer of a Hugging Face model directory.

    `tokenizer.json` is read as it is. A directory that has only the older files (`vocab.json`, `tokenizer.model`, …)
    goes through `transformers`, which converts them; no code from the directory is run.

    Raises:
        ModelLoadError: there is no tokenizer, or it cannot be read.
    """
    path = Path(model_dir) / "tokenizer.json"
    try:
        if path.exists():
            return Tokenizer.from_file(str(path))
        return _convert(model_dir)
    except Exception as error:
        # tokenizers raises bare Exception, transformers whatever the converter of the day raises.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"cannot load a tokenizer from {model_dir}: {reason}") from error


def _convert(model_dir: str) -> Tokenizer:
    from transformers import AutoTokenizer  # only here: it imports torch, which the main process can do without

    converted = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    tokenizer = getattr(converted, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ModelLoadError(f"the tokenizer is a {type(converted).__name__}, which has no fast form")
    return tokenizer


class IncrementalDetokenizer:
    """Turns the token ids of one output into text as they come.

    A token may be part of a character, and some tokenizers join a token differently depending on its neighbours, so
    each new piece is decoded together with the tokens before it, and held back while its last character is incomplete.
    The pieces add up to the decoded whole, but for one case: a tokenizer with byte fallback may decode bytes that are
    no text into other replacement characters once more tokens follow, and what has been shown is not taken back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer
        self._context_start = 0  # tokens from here are decoded again, for the sake of their neighbours
        self._emitted_end = 0  # tokens before this one are in the text

    def add(self, token_ids: list[int], *, last: bool) -> str:
        """Add token ids and return the text that they complete; with `last`, all that is left."""
        self.token_ids += token_ids
        if last:
            whole = self._decode(self.token_ids)
            if whole.startswith(self.text):
                piece = whole[len(self.text) :]
                self.text = whole
                return piece
        known = self._decode(self.token_ids[self._context_start : self._emitted_end])
        extended = self._decode(self.token_ids[self._context_start :])
        if len(extended) <= len(known) or (extended.endswith(_INCOMPLETE) and not last):
            return ""
        piece = extended[len(known) :]
        self._context_start, self._emitted_end = self._emitted_end, len(self.token_ids)
        self.text += piece
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
