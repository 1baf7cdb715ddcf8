"""Names of files, runs, classes and images may be anything: whatever is printed of them is harmless, and they stay."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.making import work
from tests.datasets import making
from tests.local_runs import create_or_check
from tests.runtime.test_escaping import is_harmless
from vitp_pipeline.cli.main import main
from vitp_pipeline.runtime.escaping import escape

NAMES = [
    "[red]x[",
    "[bold]y[-bold]",
    "[link=file:x]z",
    ":smile:",
    "e\x1b[31msc",
    "title\x1b]0;owned\x07",
    "new\nvitp: all is well",
    "return\rvitp",
    "bidi\u202egnp.txt",
    "c1\x9b2J",
    "line\u2028break",
    "zero\u200bwidth",
    " blanks ",
    "q'\"$`\\",
    "l" * 200,
]

MANIFEST = """
name = {name}
classes = [{{ name = {name}, label = 0, thing = false }}, {{ name = "other", label = 1, thing = false }}]
[labels]
kind = "semantic-png"
[splits.val]
images = "images/*.png"
labels = "labels/{{stem}}.png"
"""


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command line that says nothing a terminal would act on: (exit code, what it says, as one text)."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "400")
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert is_harmless((out + err).replace("\n", "")) and "Traceback" not in err
        return code, out + err

    return run


@pytest.mark.parametrize("name", NAMES)
def test_of_a_dataset(name: str, tmp_path: Path, vitp) -> None:
    data = tmp_path / "data"
    for stem in (name, "good"):
        making.write_png(data / f"images/{stem}.png", np.zeros((4, 6, 3), np.uint8))
        making.write_png(data / f"labels/{stem}.png", np.zeros((4, 6), np.uint8))
    (data / f"images/{name}.png").write_bytes(b"")
    manifest = tmp_path / "m.toml"
    manifest.write_text(MANIFEST.format(name=json.dumps(name, ensure_ascii=True).replace("\\u007f", "\x7f")))
    words = ("check-dataset", manifest, "--data-root", data, "--split", "val")
    code, said = vitp(*words)
    assert code == 3 and said.count(escape(name)) >= 3  # the class, the broken file, the manifest
    code, said = vitp(*words, "--json", "--quiet")
    report = json.JSONDecoder().raw_decode(said)[0]
    assert report["manifest"] == name and {entry["image_id"] for entry in report["splits"][0]["broken"]} == {name}


@pytest.mark.parametrize("name", NAMES)
def test_of_a_run(name: str, tmp_path: Path, vitp) -> None:
    folder = tmp_path / f"runs {name}"
    run = create_or_check(folder / "proposals", {"stage": "proposals"}, ("i1", name), 2)
    work(run, bad=[name])
    assert escape(name) in vitp("status", folder)[1]
    code, said = vitp("status", folder, "--json")
    assert name in json.loads(said)[0]["folder"]
    (run.shard_folder(0) / "part-0000.parquet").write_bytes(b"")
    code, said = vitp("verify", folder)
    assert code == 6 and escape(name) in said
    (folder / "a.json.0123abcd-17-12345.tmp").touch()
    os.utime(folder / "a.json.0123abcd-17-12345.tmp", (1, 1))
    code, said = vitp("gc", folder)
    assert code == 0 and escape(name) in said


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"bad\xff"), "\udc80"])
def test_of_what_is_not_there(name: str, tmp_path: Path, vitp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([name], ["status", name], ["status", "x", f"--{name}"], ["evaluate", f"{name}.toml"], ["gc", name]):
        code, said = vitp(*words)
        assert code in (2, 3) and said.count("\n") == 1 and said.startswith("vitp: ")
