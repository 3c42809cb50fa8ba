"""Ways in which a disk, a person or another program damages a file, and the kinds of file that a
folder holds.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Change = Callable[[bytes, random.Random], bytes | None]
"""From the content of a file to its damaged content; ``None`` where the way does not apply to this
content.
"""
IS_ROOT = os.geteuid() == 0
_OF_NAMES = ("deleted", "a folder in its place")
"""Ways that need no content."""


@dataclass(frozen=True)
class Damage:
    """One damaged file: its path below the tree, its kind and the way."""

    file: Path
    kind: str
    way: str

    def __str__(self) -> str:
        return f"{self.file} ({self.way})"


def kind_of(path: Path) -> str:
    """A path with its digests, numbers and identifiers generalised: files of one kind are read by
    the same code.

    >>> kind_of(Path("runs/0f3a5c7791de/pictures/step_00000004/image12.png"))
    'runs/#/pictures/step_#/image#.png'
    """
    return re.sub(
        r"(?<![^/])[0-9a-f]{2}(?=/)|(?<![A-Za-z0-9])[0-9a-f]{8,64}(?![A-Za-z0-9])|[0-9]+",
        "#",
        path.as_posix(),
    )


def kinds_in(root: Path) -> dict[str, list[Path]]:
    """All files below ``root``, by kind, as paths relative to it; locks
    are empty and say nothing.
    """
    kinds: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != ".lock":
            kinds.setdefault(kind_of(path.relative_to(root)), []).append(path.relative_to(root))
    return kinds


def choose_damages(root: Path, number: int, rng: random.Random) -> list[Damage]:
    """``number`` damages of files below ``root``: every kind in turn, its file and the way by
    chance.
    """
    kinds = kinds_in(root)
    if number < len(kinds):
        raise ValueError(
            f"{root} has {len(kinds)} kinds of file, so {number} damages leave some out."
        )
    order = list(kinds)
    rng.shuffle(order)
    left: dict[str, list[str]] = {}
    damages = []
    for turn in range(number):
        kind = order[turn % len(order)]
        file = rng.choice(kinds[kind])
        content = (root / file).read_bytes()
        while True:
            # All ways once before one comes again.
            ways = left.setdefault(kind, []) or left[kind]
            if not ways:
                ways.extend(rng.sample(list(WAYS), len(WAYS)))
            way = ways.pop()
            if WAYS[way] is None or _changes(content, way):
                break
        damages.append(Damage(file, kind, way))
    return damages


def _changes(content: bytes, way: str) -> bool:
    change, rng = WAYS[way], random.Random(0)  # noqa: S311 - repeatable on purpose
    return way in _OF_NAMES or (change is not None and change(content, rng) not in (None, content))


def damage(path: Path, way: str, rng: random.Random) -> None:
    """Damage one file.

    The damaged content is a new file: hard links of the old one keep their content.
    """
    content = path.read_bytes()
    path.unlink()
    if way == "deleted":
        return
    if way == "a folder in its place":
        path.mkdir()
        return
    change = WAYS[way]
    if change is None:
        path.write_bytes(content)
        path.chmod(0)
        return
    changed = change(content, rng)
    path.write_bytes(content if changed is None else changed)


def remove_tree(path: Path) -> None:
    """Delete a folder whose files may be unreadable."""
    shutil.rmtree(path, ignore_errors=True)


def _flip(content: bytes, rng: random.Random) -> bytes | None:
    if not content:
        return None
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes | None:
    return content[: rng.randrange(1, len(content))] if len(content) > 1 else None


def _replace(content: bytes, rng: random.Random) -> bytes | None:
    if len(content) < 16:
        return None
    place = rng.randrange(len(content) - 8)
    return content[:place] + rng.randbytes(8) + content[place + 8 :]


def _not_utf8(content: bytes, rng: random.Random) -> bytes | None:
    if not _is_text(content):
        return None
    place = rng.randrange(len(content))
    return content[:place] + b"\xff\xfe\x80" + content[place:]


def _digit(content: bytes, rng: random.Random) -> bytes | None:
    places = (
        [match.start() for match in re.finditer(rb"[0-9]", content)] if _is_text(content) else []
    )
    if not places:
        return None
    place = rng.choice(places)
    other = rng.choice([digit for digit in b"0123456789" if digit != content[place]])
    return content[:place] + bytes([other]) + content[place + 1 :]


def _key(content: bytes, rng: random.Random) -> bytes | None:
    places = (
        [match.start(1) for match in re.finditer(rb'"([^"\\\n]+)"\s*:', content)]
        if _is_text(content)
        else []
    )
    if not places:
        return None
    place = rng.choice(places)
    return (
        content[:place]
        + (b"q" if content[place : place + 1] != b"q" else b"z")
        + content[place + 1 :]
    )


def _line(content: bytes, rng: random.Random) -> bytes | None:
    lines = content.splitlines(keepends=True) if _is_text(content) else []
    if len(lines) < 2:
        return None
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def _is_text(content: bytes) -> bool:
    try:
        return (bool(content) and content.decode("utf-8").isprintable()) or (
            b"\n" in content and b"\0" not in content
        )
    except UnicodeDecodeError:
        return False


WAYS: dict[str, Change | None] = {
    "a flipped bit": _flip,
    "cut": _cut,
    "eight bytes replaced": _replace,
    "emptied": lambda content, _: b"" if content else None,
    "bytes that are no UTF-8": _not_utf8,
    "[] as content": lambda content, _: b"[]" if _is_text(content) else None,
    "nested brackets as content": lambda content, _: b"[" * 100_000 if _is_text(content) else None,
    "zeros as content": lambda content, _: bytes(len(content)) if content else None,
    "a changed digit": _digit,
    "a changed key": _key,
    "a line lost": _line,
    "deleted": lambda content, _: b"",
    "a folder in its place": lambda content, _: b"",
} | ({} if IS_ROOT else {"unreadable": None})
