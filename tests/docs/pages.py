"""What stands in the pages: README.md and all of docs/, cut into fenced blocks, commands and spans of code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
SHELL = ("sh", "bash", "console")
PROGRAMS = ("vitp", "python", "torchrun", "pip", "pytest", "make", "ruff", "dot", "cp", "mkdir", "source")
"""First words of commands whose arguments are looked at."""

FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
JOINED = re.compile(r"[;|&]{2}|[;|]")


@dataclass(frozen=True)
class Block:
    """A fenced block, its lines less their common indentation."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line of a shell block, its continuation lines joined. `words` is empty where it is more than one command."""

    page: str
    line: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    found, text = [], read(page)
    for match in FENCE.finditer(text):
        indent, language, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, "\n".join(lines) + "\n"))
    return found


def commands(page: str) -> list[Command]:
    """Of all shell blocks; a comment that is a command, too."""
    found = []
    for block in blocks(page):
        if block.language in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                line = re.sub(rf"^#\s+(?={'|'.join(PROGRAMS)}\b)", "", line.strip())
                if line and not line.startswith("#"):
                    found.append(Command(page, line, _words(line)))
    return found


def spans(page: str) -> list[str]:
    """Spans of code outside the blocks that are commands: more than a program's name, nothing left out by `…`."""
    text = FENCE.sub("", read(page))
    found = [" ".join(span.split()) for span in SPAN.findall(text)]
    return [span for span in found if re.match(rf"({'|'.join(PROGRAMS)}) \S", span)]


def _words(line: str) -> tuple[str, ...]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words = list(lexer)
    if any(JOINED.fullmatch(word) for word in words):
        return ()
    if ">" in words:  # its output goes to a file
        words = words[: words.index(">")]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return tuple(word for word in words if word != "&")
