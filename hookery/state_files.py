"""Where the processes of one user say which hooks they have: one file per process, in a folder of the user's own.

The folder is ``/tmp/hookery-UID``, or what ``HOOKERY_STATE_DIR`` names; not ``TMPDIR``, which differs between processes
that have to find each other. It must belong to the user and be closed to everybody else, and is opened once and then
used through its descriptor, so that nobody can put another in its place.

A file is a line of JSON that says everything, then one line for each change. Its name has the process's start time in
it, so that another process that gets the same number later is not taken for it. What a process has said last when it
ended goes to one of a fixed number of files, so that a program that starts processes for months does not fill the
folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from json.decoder import JSONDecoder
from typing import Any, cast

from hookery.hooks import HookError
from hookery.listing import HookRecord, records_in

FOLDER_VARIABLE = "HOOKERY_STATE_DIR"
FORMAT = 2
ENDED_FILES = 512
MAX_BYTES = 64 << 20

_decode = JSONDecoder().decode  # json.loads may be hooked
_LIVE_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.(?:jsonl|\d+\.tmp)")
_ENDED_NAME = re.compile(r"(\d+)-ended-\d+\.jsonl")
_LAST_SECOND = 1 << 40  # a time after that is no time: the calendar of C ends somewhere


class StateFolderError(HookError):
    """The folder of the state files is not the user's own."""


@dataclass(frozen=True)
class Identity:
    """A process as nobody else is it. ``start`` is in clock ticks since the machine started; ``stack``, the address of
    its stack, changes when the process executes another program. Process numbers are those of one namespace."""

    namespace: int
    pid: int
    start: int
    stack: int

    @property
    def file_name(self) -> str:
        return f"{self.namespace}-{self.pid}-{self.start}.jsonl"

    @property
    def ended_file_name(self) -> str:
        return f"{self.namespace}-ended-{self.pid % ENDED_FILES}.jsonl"


@dataclass(frozen=True)
class PublishedProcess:
    """What a process said last about its hooks. Times are seconds since the epoch.

    ``records`` are as of ``published_at`` in what they say about states, and as of ``asked_at``, the last time that the
    process was asked or ended, in whether hooks ran, how often, and which holders are unreached. ``signal`` is the one
    that asks it, and ``ended_at`` is ``None`` while it lives.
    """

    pid: int
    start: int
    parent: int
    role: str
    command: tuple[str, ...]
    python: str
    signal: int | None
    published_at: float
    asked_at: float
    ended_at: float | None
    records: tuple[HookRecord, ...]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "command": list(self.command), "records": [record.to_dict() for record in self.records]}


def folder() -> str:
    """Where the files are. A path that is not absolute is from where this process is at its first use, and is made
    absolute in the environment then: it is one folder wherever this process and its children go."""
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return f"/tmp/hookery-{os.geteuid()}"
    if not os.path.isabs(named):
        named = os.environ[FOLDER_VARIABLE] = os.path.abspath(named)
    return named


@contextmanager
def opened_folder(*, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder.

    Raises:
        StateFolderError: it belongs to another user, is open to others, or is not a folder itself.
        OSError: it cannot be made or opened, or does not exist.
    """
    path = folder()
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
            descriptor = os.open(path, flags)
    except NotADirectoryError:
        raise StateFolderError(_refusal(path, "is not a folder itself")) from None
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise StateFolderError(_refusal(path, f"belongs to the user with the number {status.st_uid}"))
        if status.st_mode & 0o077:
            raise StateFolderError(_refusal(path, f"is open to others (mode {stat.S_IMODE(status.st_mode):o})"))
        yield descriptor
    finally:
        os.close(descriptor)


def _refusal(path: str, why: str) -> str:
    return (
        f"{path} {why}, so hookery neither reads nor writes there; remove it, close it to others (chmod 700), or name"
        f" another folder with {FOLDER_VARIABLE}"
    )


def identity_of(pid: int | None = None) -> Identity | None:
    """Who the process with that number is; by default this one. ``None`` if there is none, or it has ended."""
    try:
        descriptor = os.open(f"/proc/{'self' if pid is None else pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            after_name = os.read(descriptor, 4096).rpartition(b")")[2].split()  # a line of some 300 bytes
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        if pid is None:
            raise
        return None
    state, start, stack = after_name[0], int(after_name[19]), int(after_name[25])  # fields 3, 22 and 28 of proc(5)
    return None if state in b"ZX" else Identity(namespace(), os.getpid() if pid is None else pid, start, stack)


def namespace() -> int:
    """The namespace that the numbers of this process's world belong to: containers may share a folder."""
    return os.stat("/proc/self/ns/pid").st_ino


def write(directory: int, name: str, content: str, scratch_name: str, *, in_place: bool) -> None:
    """Put ``content`` under ``name`` in one step: ``scratch_name`` is used until then. With ``in_place`` it is written
    there if nothing is there yet, which is faster: nobody reads it until its first line is complete.

    Raises:
        OSError: it cannot be written; then there is what was there before.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    first = name if in_place else scratch_name
    try:
        descriptor = os.open(first, flags, 0o600, dir_fd=directory)
    except FileExistsError:
        if not in_place:
            raise
        first = scratch_name
        descriptor = os.open(first, flags, 0o600, dir_fd=directory)
    try:
        _write_all(descriptor, content)
        if first != name:
            os.replace(first, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):  # what is to be told is why it could not be written
            os.unlink(first, dir_fd=directory)
        raise


def append(directory: int, name: str, content: str) -> int:
    """Add a line to a file that is there, and return how many bytes it had.

    Raises:
        OSError: it cannot be written, or is not there.
    """
    descriptor = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    size = os.fstat(descriptor).st_size
    _write_all(descriptor, content)
    return size


def _write_all(descriptor: int, content: str) -> None:
    data = content.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def read_processes(*, ended: bool = False) -> tuple[list[PublishedProcess], list[str]]:
    """What the processes of this user that live have published, and what was found that could not be read.

    What processes left behind that were killed is removed.

    Args:
        ended: include processes that have ended by themselves, the last few hundred.

    Raises:
        StateFolderError: the folder is not the user's own.
        OSError: it cannot be read.
    """
    found: list[PublishedProcess] = []
    unreadable: list[str] = []
    try:
        with opened_folder() as directory:
            names = os.listdir(directory)
            for name in remove_litter(directory, names):
                if name.endswith(".tmp") or (_ENDED_NAME.fullmatch(name) and not ended):
                    continue
                try:
                    process = _read(directory, name)
                except FileNotFoundError:
                    continue  # it has ended in this moment
                except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    unreadable.append(f"{folder()}/{name}: {type(error).__name__}: {error}")
                else:
                    if process is not None:
                        found.append(process)
    except FileNotFoundError:
        return [], []  # nobody has published anything yet
    return sorted(found, key=lambda process: (process.ended_at or float("inf"), process.pid)), unreadable


def remove_litter(directory: int, names: Iterable[str]) -> list[str]:
    """Remove what killed processes have left, and return which of the files belong to this namespace and are none."""
    here = str(namespace())
    kept = []
    for name in names:
        live, ended = _LIVE_NAME.fullmatch(name), _ENDED_NAME.fullmatch(name)
        match = live or ended
        if match is None or match[1] != here:
            continue
        if live is not None:
            identity = identity_of(int(live[2]))
            if identity is None or identity.start != int(live[3]):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                continue
        kept.append(name)
    return kept


def _read(directory: int, name: str) -> PublishedProcess | None:
    """What a file says; ``None`` if it is about a program that its process does not run any more, or says nothing yet.

    Raises:
        OSError: it cannot be read.
        ValueError, TypeError, KeyError, AttributeError, RecursionError: it is not what this version of hookery writes.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise ValueError("it is not a file of this user")
        lines = file.read(MAX_BYTES).decode("utf-8", "replace").split("\n")
    if len(lines) == 1:
        return None  # its first line is being written
    head = _decode(lines[0])
    if head["format"] != FORMAT:
        raise ValueError(f"it has the format {head['format']!r}, this version of hookery reads {FORMAT}")
    process = PublishedProcess(
        pid=head["pid"],
        start=head["start"],
        parent=head["parent"],
        role=head["role"],
        command=tuple(head["command"]),
        python=head["python"],
        signal=head["signal"],
        published_at=head["published_at"],
        asked_at=head["published_at"],
        ended_at=head["ended_at"],
        records=(),
    )
    _check(process)
    if process.signal is not None and process.signal < 1:
        raise ValueError(f"its 'signal' is {process.signal}, which is none")
    if process.ended_at is None:
        # Asked again: since the names were looked at, the number may have gone to another process.
        identity = identity_of(process.pid)
        if identity is None or (identity.start, identity.stack) != (process.start, head["stack"]):
            return None
    records = {record.order: record for record in records_in(head["records"])}
    for line in lines[1:-1]:  # after the last one that is complete there is what is being written, or nothing
        change = _decode(line)
        records.update({record.order: record for record in records_in(change["records"])})
        for order in change["gone"]:
            records.pop(order, None)
        process = replace(process, published_at=change["published_at"])
    process = replace(process, records=tuple(records[order] for order in sorted(records)))
    _check(process)
    for record in process.records:
        _check(record)
    return process


def _check(said: PublishedProcess | HookRecord) -> None:
    """Check that every field has a value of its type: what is read goes into tables, and times into the calendar.

    Raises:
        TypeError: one has not.
    """
    for name, annotation, is_of_type in _CHECKS[type(said)]:
        value = getattr(said, name)
        if not is_of_type(value):
            raise TypeError(f"its {name!r} is {value!r:.80}, not {annotation}")


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast("float", value) <= _LAST_SECOND


def _is_texts(value: object) -> bool:
    return type(value) is tuple and all(type(text) is str for text in value)


# By what the fields are annotated with; what is in JSON is of no subclass.
_IS_OF_TYPE: Mapping[str, Callable[[object], bool]] = {
    "int": lambda value: type(value) is int,
    "int | None": lambda value: value is None or type(value) is int,
    "bool | None": lambda value: value is None or type(value) is bool,
    "str": lambda value: type(value) is str,
    "str | None": lambda value: value is None or type(value) is str,
    "float": _is_time,
    "float | None": lambda value: value is None or _is_time(value),
    "tuple[str, ...]": _is_texts,
    "tuple[str, ...] | None": lambda value: value is None or _is_texts(value),
    "tuple[HookRecord, ...]": lambda value: type(value) is tuple,
}
_CHECKS = {
    kind: [
        (field.name, str(field.type), _IS_OF_TYPE[str(field.type)])
        for field in fields(kind)
        if field.name not in ("reason", "notes")  # only passed on, and nobody checks them when they are given
    ]
    for kind in (PublishedProcess, HookRecord)
}
