"""Seeded damage to files: bits, lengths, numbers, the structure of JSON, paths, links, kinds of files.

Every function takes a generator and gives the same damage for the same one.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Random = random.Random
NUMBERS = (0, -1, 1, 2, 255, 256, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
           0.5, -0.5, 1e-300, 1e38, 1e300, float("nan"), float("inf"), float("-inf"))  # fmt: skip
TEXTS = ("", " ", "\x00", "a\x00b", "\ud800", "x" * 5000, "../" * 40, ".", "..", "/", "CON", "%s%n", "\u202e",
         "<script>alert(1)</script>", "${HOME}", "~", "-1", "1e400", "null", "\n\r\t")  # fmt: skip
DEEP = 20_000


def outside_paths(outside: Path) -> tuple[str, ...]:
    """Ways to name a file outside of the folder that is read; ``outside`` lies beside that folder."""
    name = f"{outside.name}/secret"
    return (f"../{name}", str(outside / "secret"), f"model/../../{name}", f"./../{name}", f"..\\{outside.name}\\secret",
            f"file://{outside}/secret", f"../{name}\x00.json", "/dev/zero", "/proc/self/environ")  # fmt: skip


def of_bytes(content: bytes, random: Random) -> bytes:
    """One to three damages to any bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(BYTES)(content, random)
    return content


def _flipped(content: bytes, random: Random) -> bytes:
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8)) if found else 0):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _inserted(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.choice((1, 2, 7, 64, 4096))) + content[at:]


def _removed(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at + random.randrange(1, 65) :]


def _doubled(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    part = content[start : start + random.randrange(1, 512)]
    return content[:start] + part * random.choice((2, 3, 50)) + content[start:]


def _number(content: bytes, random: Random) -> bytes:
    """An integer of one to eight bytes overwritten by an extreme one, near the beginning more often than elsewhere."""
    size = random.choice((1, 2, 4, 8))
    if len(content) < size:
        return content
    at = random.randrange(min(len(content) - size, random.choice((16, 64, 256, len(content)))) + 1)
    value = random.choice((0, 1, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    value &= 2 ** (8 * size) - 1
    return content[:at] + value.to_bytes(size, random.choice(("little", "big"))) + content[at + size :]


def _float(content: bytes, random: Random) -> bytes:
    if len(content) < 4:
        return content
    at = random.randrange(len(content) - 3)
    return (
        content[:at] + struct.pack("<f", random.choice((float("nan"), float("inf"), -1e38, 1e-40))) + content[at + 4 :]
    )


def _blank(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    size = min(random.choice((4, 32, 256)), len(content) - at)
    return content[:at] + bytes([random.choice((0, 255, 32))]) * size + content[at + size :]


def _longer(content: bytes, random: Random) -> bytes:
    return content + bytes([random.choice((0, 32, 65))]) * random.choice((1, 4096, 1_000_000))


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped, _flipped, _cut, _inserted, _removed, _doubled, _number, _number, _float, _blank, _longer,
)  # fmt: skip


def of_json(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """JSON of another structure, or with other values; now and then its bytes alone are damaged."""
    choice = random.random()
    if choice < 0.25:
        return of_bytes(content, random)
    if choice < 0.28:
        return random.choice((b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP, b"null", b"[]", b"0", b'"x"',
                              b"\xff\xfe{\x00}\x00", b"{}", b""))  # fmt: skip
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # a line that was damaged before
        return of_bytes(content, random)
    for _ in range(random.choice((1, 1, 2, 4))):
        value = of_value(value, random, paths)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.1:
        text = _key_twice(text, random)
    return text.encode("utf-8", "surrogatepass")


def of_value(value: Any, random: Random, paths: tuple[str, ...]) -> Any:
    """A value of JSON with one node changed."""
    places = list(_places(value))
    if not places:
        return _other(value, random, paths)
    holder, key = random.choice(places)
    if isinstance(holder, dict):
        _in_mapping_(holder, key, random, paths)
    else:
        _in_list_(holder, key, random, paths)
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _in_mapping_(holder: dict[str, Any], key: str, random: Random, paths: tuple[str, ...]) -> None:
    choice = random.random()
    if choice < 0.15:
        del holder[key]
    elif choice < 0.25:
        holder[random.choice((*TEXTS, *paths))] = holder.pop(key)
    elif choice < 0.3:
        holder[random.choice(("extra", *holder))] = random.choice((None, 1, "x", [], {}))
    else:
        holder[key] = _other(holder[key], random, paths)


def _in_list_(holder: list[Any], place: int, random: Random, paths: tuple[str, ...]) -> None:
    choice = random.random()
    if choice < 0.15:
        del holder[place]
    elif choice < 0.3:
        holder.insert(place, holder[place])
    elif choice < 0.35:
        holder.extend([holder[place]] * 1000)
    else:
        holder[place] = _other(holder[place], random, paths)


def _other(value: Any, random: Random, paths: tuple[str, ...]) -> Any:
    """What stands in the place of a value: most often one of its kind."""
    if random.random() < 0.25:
        return random.choice((None, True, 0, -1, "x", [], {}, [value], {"a": value}, [[[[value]]]]))
    if isinstance(value, str):
        return random.choice((*TEXTS, *paths, *paths, value * 2, value[::-1], value.upper()))
    if isinstance(value, (int, float)):
        return random.choice((*NUMBERS, -value, value + 1, value - 1, value * 1000))
    return random.choice((None, [], {}, "", 0, [value] * 3))


def _key_twice(text: str, random: Random) -> str:
    """The text with a key of one of its objects standing twice, if it has one."""
    at = [place for place, letter in enumerate(text) if letter == "{"]
    if not at:
        return text
    place = random.choice(at)
    key = text[place + 1 :].split('"')[1:2]
    return f'{text[: place + 1]}"{key[0] if key else "a"}":{random.choice(("0", "null", "[]"))},{text[place + 1 :]}'


def of_lines(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """JSON lines with one or two of them damaged."""
    lines = content.splitlines()
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(lines))
        lines[place] = random.choice((line(lines[place], random, paths), of_bytes(lines[place], random), b"",
                                      lines[random.randrange(len(lines))]))  # fmt: skip
    return b"\n".join(lines) + random.choice((b"\n", b"", b"\r\n", b"\x00"))


def line(line: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """A line of JSON that may be damaged already."""
    try:
        return of_json(line, random, paths)
    except ValueError:
        return of_bytes(line, random)


def of_table(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """A table with one or two fields replaced, columns lost or added, quotes left open."""
    for _ in range(random.choice((1, 1, 2))):
        if random.random() < 0.3:
            content = of_bytes(content, random)
            continue
        lines = content.split(b"\n")
        place = random.randrange(len(lines))
        mark = b"\t" if b"\t" in content else b","
        fields = lines[place].split(mark)
        new = random.choice([*(str(number) for number in NUMBERS), *TEXTS, *paths, '"', '"a', "=1+1"])
        at = random.randrange(len(fields))
        fields[at : at + random.choice((0, 1, 1, 1, 2))] = [new.encode("utf-8", "surrogatepass")]
        lines[place] = mark.join(fields)
        content = b"\n".join(lines)
    return content


def special(file: Path, random: Random, outside: Path) -> None:
    """Something else in the place of a file: a link, a folder, a pipe, nothing."""
    file.unlink()
    choice = random.randrange(8)
    if choice == 0:
        file.mkdir()
    elif choice == 1:
        os.mkfifo(file)
    elif choice == 2:
        file.symlink_to(file.name)
    elif choice == 3:
        file.symlink_to("/dev/zero")
    elif choice in (4, 5):
        file.symlink_to(random.choice((f"../{outside.name}/secret", str(outside / "secret"))))
    elif choice == 6:
        file.symlink_to("nothing")
