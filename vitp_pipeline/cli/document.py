"""`--json`: print a command's result as one document on standard output, and nothing else there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

from vitp_pipeline.errors import UserError
from vitp_pipeline.runtime.output import results_apart, show_json


class Document:
    """Result of a command as it ends. Made by `documented()`."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}

    def give(self, done: Any = None, **more: Any) -> None:
        """Add the fields of a dataclass and further named values, with paths as people write them."""
        fields = asdict(done) if is_dataclass(done) and not isinstance(done, type) else {}
        self.content |= fields | more


@contextmanager
def documented(wanted: bool) -> Iterator[Document]:
    """Print a document, if `wanted`, when the block ends, also when it ends with a UserError after results were given.

    A command that fails before it has done anything gives nothing, so nothing is printed. What the block, or a library
    that it calls, prints meanwhile goes to standard error.
    """
    document = Document()
    if not wanted:
        yield document
        return
    try:
        with results_apart():
            yield document
    except UserError:
        if document.content:
            _print(document.content)
        raise
    _print(document.content)


def _print(content: dict[str, Any]) -> None:
    show_json(content, indent=2, default=str)
