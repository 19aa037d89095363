"""Results kept by content: the answers of a generator, the verdicts of a judge. What was finished is never redone.

A `ResultCache` is one file of JSON lines for one maker (a generator with its template and decoding, or a judge), named
by the digest of all that decides its results. A line is an entry: the digest of what the result is of (a prompt; a
prompt and its answer), the result, and a checksum of both. Its first line says in clear what the file is of.

Entries are only ever appended, each with one write under a lock between processes, which also mends what a kill left:
a line cut short is closed off before the next is written. Without the lock, appending would be safe on local disks
only, and a line torn by a full disk could not be taken back. On reading, a line whose checksum does not hold (cut
short, flipped bits) counts as absent, with a warning. A kill loses at most the entry being written; a power cut those
that the system had not yet put to disk.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from mithridate.errors import MithridateError
from mithridate.files import json_digest
from mithridate.generation.base import Answer, Conversation, Decoding, Failure, Generator, Template

log = logging.getLogger(__name__)


class ResultCache:
    """Results of one maker, read when this is made and written through; several processes may use it at once.

    Args:
        folder: where the files are; made if need be.
        about: JSON of all that decides a result besides what it is of, such as `Generator.identity()`.

    Raises:
        MithridateError: the folder or file cannot be read or written.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.path = Path(folder) / f"{json_digest(about)}.jsonl"
        self._about = about
        self._lock = FileLock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        except OSError as error:
            raise self._failed(error) from error
        found = [_entry(line) for line in lines if line]
        self._values = {entry[0]: entry[1] for entry in reversed(found) if entry}  # the first of several stands
        if damaged := found.count(None):
            log.warning("%s: %d damaged lines are ignored; their results are made again.", self.path, damaged)

    def get(self, of: Any) -> Any:
        """The result kept for `of` (JSON); None where there is none."""
        return self._values.get(json_digest(of))

    def __len__(self) -> int:
        return len(self._values.keys() - {"about"})

    def add(self, results: Iterable[tuple[Any, Any]]) -> None:
        """Appends results, each with what it is of (both JSON, no result None).

        Raises:
            MithridateError: the disk is full or the like. All entries written before stay readable.
        """
        entries = {json_digest(of): result for of, result in results}
        text = "".join(map(_line, entries, entries.values())).encode()
        try:
            with self._lock, self.path.open("ab") as file:
                size = file.tell()
                head = b"" if size else _line("about", self._about).encode()
                try:
                    file.write((head if not size or _ends_whole(self.path) else b"\n") + text)
                    file.flush()
                except OSError:
                    os.ftruncate(file.fileno(), size)
                    raise
        except OSError as error:
            raise self._failed(error) from error
        for key, result in entries.items():
            self._values.setdefault(key, result)

    def _failed(self, error: OSError) -> MithridateError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        remedy = "Make room" if full else "Mend that"
        return MithridateError(
            f"{self.path}: {reason}. {remedy} and run the same command again: the {len(getattr(self, '_values', ()))} "
            "results that were kept before are used then."
        )


def cached_generate(
    generator: Generator,
    conversations: Sequence[Conversation],
    template: Template,
    decoding: Decoding,
    folder: Path | None,
    evaluation: str | None = None,
) -> Iterator[tuple[int, Answer | Failure]]:
    """As `Generator.generate`, with all answers that are in the cache taken from there, and new ones put into it.

    An answer is kept before it is yielded; failures are not kept. With greedy decoding a prompt that comes several
    times is answered once; when sampling, it is drawn anew each time, and each draw has a seed of its own, so that
    the same answers come out whatever was kept before.

    Args:
        folder: of the cache; None keeps nothing.
        evaluation: what the answers belong to. Part of their key where `generator.content_known` is false, and needed
            there: the name of a server's model says little about its weights, so that its answers are only for going
            on with the very evaluation that asked for them.

    Raises:
        ValueError: `evaluation` is missing where it is needed.
        MithridateError: also where the cache cannot be written.
    """
    if folder and not generator.content_known and evaluation is None:
        raise ValueError("the answers of a generator whose content is not known are kept for one evaluation: name it")
    greedy = decoding.temperature <= 0
    if greedy:
        decoding = Decoding(decoding.max_new_tokens)  # nothing else matters then
    cache = None
    if folder:
        about = {"answers of": generator.identity(), "template": asdict(template), "decoding": asdict(decoding)}
        cache = ResultCache(folder, about | {"evaluation": None if generator.content_known else evaluation})
    places: dict[str, list[int]] = {}  # of a prompt, by its text: all its indices
    for i, conversation in enumerate(conversations):
        places.setdefault(json.dumps(conversation, sort_keys=True), []).append(i)
    missing: dict[int, list[tuple[Any, list[int]]]] = {}  # by the number of the draw
    for prompt, indices in places.items():
        for number, group in enumerate([indices] if greedy else [[i] for i in indices]):
            of = {"prompt": json.loads(prompt), "number": number}  # samples of the same prompt are numbered
            if (kept := cache.get(of) if cache is not None else None) is None:
                missing.setdefault(number, []).append((of, group))
            else:
                yield from ((i, Answer(**kept)) for i in group)
    for number, part in sorted(missing.items()):
        asked = [conversations[group[0]] for _, group in part]
        for j, answer in generator.generate(asked, template, _draw(decoding, number)):
            of, group = part[j]
            if cache is not None and isinstance(answer, Answer):
                cache.add([(of, asdict(answer))])
            yield from ((i, answer) for i in group)


def _draw(decoding: Decoding, number: int) -> Decoding:
    """How the answer of that number to a prompt is drawn: the first with the decoding's own seed, all of 31 bits."""
    if not number:
        return decoding
    seed = int.from_bytes(hashlib.sha256(f"{decoding.seed} {number}".encode()).digest()[:4]) >> 1
    return replace(decoding, seed=seed)


def _line(key: str, value: Any) -> str:
    entry = {"key": key, "value": value}
    return json.dumps(entry | {"sum": json_digest(entry)[:16]}, allow_nan=False) + "\n"


def _entry(line: bytes) -> tuple[str, Any] | None:
    """Key and value of a line whose checksum holds, else None."""
    try:
        entry = json.loads(line)
        given = entry.pop("sum")
        return (entry["key"], entry["value"]) if given == json_digest(entry)[:16] else None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
