"""Whatever text holds, what is printed is one line that a terminal, a log or a shell does not act on."""

from __future__ import annotations

import json
import os
import subprocess
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.runtime.escaping import LONGEST, escape, escape_stream, shell_word, to_json

ANY = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\x1b\x9b\u202e\u2066\u2028\n\r\0\\'\"$` "))
"""Any text, halves of surrogate pairs among it."""


def is_harmless(text: str) -> bool:
    """Told by the categories of Unicode's own tables."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("Übung α 日本\u3000語 …−×.png", "Übung α 日本\u3000語 …−×.png"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("a\nvitp: all is well", "a\\nvitp: all is well"),
        ("a\r\tb\0", "a\\r\\tb\\x00"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("\u2066a\u2069\ufeff", "\\u2066a\\u2069\\ufeff"),
        ("a\u2028b\u0085c", "a\\u2028b\\x85c"),
        (os.fsdecode(b"a\xff.png"), "a\\udcff.png"),
        ("\U000e0041", "\\U000e0041"),
        ("[red]a[/red] [/] :smile:", "[red]a[/red] [/] :smile:"),
        ("\x7f", "\\x7f"),
    ],
)
def test_what_acts_is_written_out(text: str, shown: str) -> None:
    assert escape(text) == shown
    assert json.loads(to_json([text])) == [text] and is_harmless(to_json([text]))


@given(ANY)
def test_no_text_acts(text: str) -> None:
    assert is_harmless(escape(text)) and is_harmless(to_json({text: text}).replace("\n", ""))
    assert json.loads(to_json({text: text}, indent=1)) == {text: text}
    assert is_harmless(escape_stream(text, terminal=False).translate({ord(c): None for c in "\n\t\r"}))
    if is_harmless(text):
        assert escape(text, None) == text


def test_a_long_line_is_cut_in_its_middle() -> None:
    line = escape("a" * 10**6 + "end")
    assert len(line) < LONGEST + 50 and line.startswith("aaa") and line.endswith("end") and "characters" in line
    assert len(escape("a" * 10**6, None)) == 10**6


def test_of_a_terminal_colors_are_left() -> None:
    text = "\x1b[1;31mred\x1b[0m\x1b[2K\x1b[1A\x1b]0;title\x07\x1b[6n\n"
    assert escape_stream(text, terminal=True) == "\x1b[1;31mred\x1b[0m\x1b[2K\x1b[1A\\x1b]0;title\\x07\\x1b[6n\n"
    assert "\x1b" not in escape_stream(text, terminal=False)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\x1b\n'\\\"$`!* \udcff\udc80"))


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=40))
def test_bash_reads_words_as_they_are(words: list[str]) -> None:
    script = "printf '%s\\0' " + " ".join(map(shell_word, words))
    assert is_harmless(script)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]] == words
