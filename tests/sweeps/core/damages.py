"""What a bad disk, a full disk or an editor make of a file of JSON."""

import re
from collections.abc import Callable
from pathlib import Path


def _flipped(position: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        damaged = bytearray(content)
        damaged[position] ^= 1
        return bytes(damaged)

    return flip


def _next_digit(digit: re.Match[bytes]) -> bytes:
    return b"%d" % (int(digit[0]) + 1)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped first byte": _flipped(0),
    "a flipped last brace": _flipped(-2),
    "a changed digit": lambda content: re.sub(
        rb"([0-8])(?=[^0-9]*$|[0-9]*,)", _next_digit, content, count=1
    ),
    "a changed name of a key": lambda content: re.sub(
        rb'"([a-z])(\w+": ?)', rb'"X\2', content, count=1
    ),
    "a changed name of the last key": lambda content: re.sub(
        rb'(.*)"([a-z])(\w+": ?)', rb'\1"X\3', content, count=1, flags=re.DOTALL
    ),
    "a list": lambda _: b"[]\n",
    "another object": lambda _: b'{"format_version": 1}\n',
    "a number": lambda _: b"3\n",
    "null bytes": lambda content: b"\0" * len(content),
    "null bytes at its end": lambda content: (
        content[: len(content) // 2] + b"\0" * (len(content) // 2)
    ),
    "nested brackets": lambda _: b"[" * 100_000,
    "nested brackets in a field": lambda content: content.replace(b":", b":" + b"[" * 100_000, 1),
    "no UTF-8": lambda content: content[:5] + b"\xff" + content[6:],
    "a missing end": lambda content: content[:-30],
    "a missing half": lambda content: content[: len(content) // 2],
    "nothing": lambda _: b"",
}


def damage(path: Path, name: str) -> None:
    """Damage a file; it is a new file then, since run folders and snapshots share files by hard
    links.
    """
    content = path.read_bytes()
    damaged = DAMAGES[name](content)
    assert damaged != content
    path.unlink()
    path.write_bytes(damaged)
