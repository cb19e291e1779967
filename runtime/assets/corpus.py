"""English text from the Python standard library, cleaned until it reads like language.

Four sources, all of them files that come with the interpreter and fall under its licence (PSF-2.0):

- the docstrings of every module, class and function;
- the language reference that `help()` shows (`pydoc_data/topics.py`);
- block comments that are prose;
- the licence itself.

The order is that of the sorted file names and, inside a file, of the source lines. Nothing is imported or run:
every file is only parsed. What is not prose (doctests, code, grammar, option tables, signatures) is dropped
paragraph by paragraph, hard line breaks are undone, and repeated texts are kept once.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip", "turtledemo"}
)
TOPICS_FILE = "pydoc_data/topics.py"

SHORTEST_DOCUMENT_WORDS = 7
SHORTEST_COMMENT_LINES = 3
SHORTEST_COMMENT_CHARACTERS = 160
WRAPPED_LINE_WIDTH = 58
"""A line that could not have taken one more word within this width was broken by hand, not by meaning."""

LEAST_FUNCTION_WORD_SHARE = 0.18
LEAST_PROSE_CHARACTER_SHARE = 0.94
HELD_OUT_ONE_IN = 50

_TYPOGRAPHIC_TO_ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "..."}
)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_PROSE_CHARACTER = re.compile(r"[A-Za-z0-9 ,.;:'\"`()\n-]")
_CODE_SIGN = re.compile(
    r">>>|::=|\*\*\*\*|====|----|~~~~|\+--|\|\s|^\s*(?:def|class|import|from|return|raise|assert|for|if|with|"
    r"while|try|except|print)\b.*[:()=]\s*\S*$|^\s*[\w.\[\]]+ [-+*]?= |^\s*[@$%#<>{}\[\]]",
    re.MULTILINE,
)
_FUNCTION_WORD = re.compile(
    r"(?:an?|and|any|are|as|at|be|been|but|by|can|do|does|each|either|for|from|has|have|if|in|into|is|its?|may"
    r"|must|no|not|of|on|one|only|or|other|should|so|some|such|than|that|the|their|then|there|these|they|this|to"
    r"|used|was|were|what|when|where|which|while|will|with|would|you)",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(r"^[\w.]+\([^)]*\)(?:\s*(?:->|=>|--+>|=).*)?$")
_LIST_MARK = re.compile(r"^(?:[-*+\u2022]|\(?\d{1,2}[.)]|[a-z]\))\s+")
_REST_ROLE = re.compile(r":[a-z:+-]+:`~?([^`]+)`")
_UNFINISHED_TAIL = re.compile(r"(?:(?<=[.!?;]) |^)[^.!?]*:$")
_COMMENT_TO_SKIP = re.compile(r"^(?:XXX|TODO|FIXME|type:|pylint|noqa|[-*=#]|!/|Author|Copyright|Written by)", re.I)


class CorpusError(Exception):
    """The interpreter's standard library does not hold what the corpus is made of."""


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents to be judged on, each in source order."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


def build_corpus(max_documents: int | None = None) -> Corpus:
    """Collect the corpus of this interpreter; `max_documents` stops early, for a quick look or a test."""
    training: list[str] = []
    held_out: list[str] = []
    for number, document in enumerate(iterate_documents()):
        if number == max_documents:
            break
        (held_out if is_held_out(document) else training).append(document)
    if not training:
        raise CorpusError(f"no text in the standard library of this interpreter ({standard_library()})")
    return Corpus(tuple(training), tuple(held_out))


def is_held_out(document: str) -> bool:
    """A document stays on its side of the split whatever else changes, because only its own text decides."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def standard_library() -> Path:
    """The folder of the standard library's sources."""
    return Path(sysconfig.get_path("stdlib"))


def python_licence() -> str | None:
    """The licence text that came with the interpreter, or None where a distribution keeps it elsewhere."""
    for folder in (standard_library(), standard_library().parent):
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
    return None


def iterate_documents() -> Iterator[str]:
    """Every document of the corpus, cleaned, each text once."""
    seen: set[str] = set()
    for raw in _raw_texts():
        document = clean(raw)
        if document is not None and document not in seen:
            seen.add(document)
            yield document


def _raw_texts() -> Iterator[str]:
    root = standard_library()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        source = path.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an odd escape in somebody's source is not our news
                tree = ast.parse(source)
        except SyntaxError:
            continue  # some modules keep samples of another Python's syntax under a .py name
        if relative.as_posix() == TOPICS_FILE:
            yield from _topics(tree)
            continue
        yield from _docstrings(tree)
        yield from _comment_blocks(source.decode("utf-8", errors="replace"))
    licence = python_licence()
    if licence is not None:
        yield licence


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=True)
            if docstring:
                yield docstring


def _topics(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def _comment_blocks(source: str) -> Iterator[str]:
    block: list[str] = []
    for line in (*source.splitlines(), ""):
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#").strip())
            continue
        text = "\n".join(block)
        if (
            len(block) >= SHORTEST_COMMENT_LINES
            and len(text) >= SHORTEST_COMMENT_CHARACTERS
            and not _COMMENT_TO_SKIP.match(text)
        ):
            yield text
        block = []


def clean(raw: str) -> str | None:
    """The prose of one text, paragraphs on one line each, or None when too little of it is prose."""
    text = raw.expandtabs(4).translate(_TYPOGRAPHIC_TO_ASCII)
    text = _REST_ROLE.sub(r"`\1`", text).replace("``", "`")
    kept: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        paragraph = _unwrap(block)
        if reads_like_prose(block, paragraph):
            kept.append(re.sub(r"::$", ":", paragraph))
        elif kept and kept[-1].endswith(":"):  # it announced the example that is dropped here
            shortened = _UNFINISHED_TAIL.sub("", kept.pop()).rstrip()
            if shortened:
                kept.append(shortened)
    if kept and kept[-1].endswith(":"):
        kept[-1] = _UNFINISHED_TAIL.sub("", kept[-1]).rstrip()
    document = "\n\n".join(paragraph for paragraph in kept if paragraph)
    return document if len(_WORD.findall(document)) >= SHORTEST_DOCUMENT_WORDS else None


def reads_like_prose(block: str, paragraph: str) -> bool:
    """Whether a paragraph (as it stood, and unwrapped) is English sentences and not code, a table or a list."""
    words = _WORD.findall(paragraph)
    if len(words) < 3 or _CODE_SIGN.search(block) or _SIGNATURE.match(paragraph):
        return False
    prose_characters = len(_PROSE_CHARACTER.findall(paragraph))
    if prose_characters < LEAST_PROSE_CHARACTER_SHARE * len(paragraph):
        return False
    function_words = sum(_FUNCTION_WORD.fullmatch(word) is not None for word in words)
    return function_words >= LEAST_FUNCTION_WORD_SHARE * len(words)


def _unwrap(block: str) -> str:
    """Undo the line breaks that only keep a source file narrow; keep the ones that begin a list item."""
    lines: list[str] = []
    previous_width = 0
    for raw_line in block.splitlines():
        line = re.sub(r"\s+", " ", raw_line).strip()
        first_word_width = len(line.split(" ", 1)[0])
        was_wrapped = previous_width + 1 + first_word_width > WRAPPED_LINE_WIDTH
        if lines and was_wrapped and not _LIST_MARK.match(line):
            lines[-1] += " " + line
        else:
            lines.append(line)
        previous_width = len(raw_line.rstrip())
    return "\n".join(lines)
