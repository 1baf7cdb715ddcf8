"""Escape text for terminals, logs and batch scripts: characters that they would act on are written out.

File names, ids and texts from data may hold any character: ESC moves the cursor, a newline forges a line of a log,
U+202E turns a name around, half of a surrogate pair (a byte of a name that is not UTF-8) cannot be encoded at all.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from vitp_pipeline.figure import plain

ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what acts or cannot be seen: controls, formats (bidi overrides), surrogates, line breaks."""
LONGEST = 4000
"""Characters of a line; of a longer one the middle is left out."""


def escape(text: object, longest: int | None = LONGEST) -> str:
    r"""Escape text to one printable line: ESC becomes `\x1b`, a newline `\n`, U+202E `\u202e`.

    Args:
        longest: the middle of longer text is left out; None = no limit.
    """
    line = str(text)
    if longest is not None and len(line) > longest:
        half = longest // 2
        line = f"{line[:half]} … {len(line) - 2 * half:,} characters … {line[-half:]}"
    return line if line.isprintable() else line.translate(_VISIBLE)


def escape_lines(text: str) -> str:
    """Escape text of several lines, keeping its newlines."""
    return "\n".join(escape(line, None) for line in text.split("\n"))


def to_json(content: Any, **options: Any) -> str:
    r"""Format JSON that is safe to print and readable: `\u202e`, but `ü`; NaN, which JSON has not, becomes null.
    `options` are those of `json.dumps`.
    """
    text = json.dumps(plain(content), ensure_ascii=False, **options)
    return text if text.isprintable() else text.translate(_IN_JSON)


def shell_word(text: str) -> str:
    r"""Quote text as one word of a Bash script, safe to print: `$'a\x1bb'`."""
    if not any(map(acts, text)):
        return shlex.quote(text)
    return f"$'{''.join(_in_quotes(character) for character in text)}'"


def shell_words(words: Iterable[str]) -> str:
    """Quote words as a Bash command line."""
    return " ".join(map(shell_word, words))


def acts(character: str) -> bool:
    """Tell whether a terminal would act on a character, or show nothing of it."""
    return not character.isprintable() and unicodedata.category(character) in ACTING


def is_text(text: str) -> bool:
    """Tell whether text can be encoded: names of files that are not UTF-8 have halves of surrogate pairs."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


CONTROLS = re.compile(r"\x1b\[(?:[0-9;]*[mKAJH]|\?25[lh])")
"""What rich and typer send to a terminal: colors, lines erased, the cursor up, hidden and shown."""


def escape_stream(text: str, terminal: bool) -> str:
    """Escape what any code writes to a standard stream, but newlines, tabs, returns, and a terminal's colors."""
    if text.isprintable():
        return text
    kept = CONTROLS.findall(text) if terminal else []
    pieces = CONTROLS.split(text) if terminal else [text]
    safe = [piece.translate(_VISIBLE_LINES) for piece in pieces]
    return safe[0] + "".join(control + piece for control, piece in zip(kept, safe[1:], strict=True))


class _Written(dict[int, int | str]):
    """A table for `str.translate`, filled as characters are met: those that act are written by `write`."""

    def __init__(self, write: Callable[[str], str], kept: str = "") -> None:
        super().__init__((ord(character), character) for character in kept)
        self._write = write

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        self[code] = self._write(character) if acts(character) else code
        return self[code]


def _by_escapes(character: str) -> str:
    return character.encode("unicode_escape").decode()


_VISIBLE = _Written(_by_escapes)
_VISIBLE_LINES = _Written(_by_escapes, kept="\n\t\r")
_IN_JSON = _Written(lambda character: json.dumps(character)[1:-1], kept="\n")


def _in_quotes(character: str) -> str:
    """As it is written between `$'` and `'`."""
    if acts(character):
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return f"\\{character}" if character in "\\'" else character
