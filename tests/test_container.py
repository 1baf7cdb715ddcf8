"""The Dockerfile as text; `make image-check` builds it."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(f"{name} ")]


def in_context(name: str) -> bool:
    """Whether .dockerignore lets a path in; the last rule that fits it or a folder it lies in counts."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    paths = [Path(name), *list(Path(name).parents)[:-1]]
    found = True
    for rule in rules:
        pattern = rule.lstrip("!").removeprefix("**/")
        if any(fnmatch.fnmatch(p.as_posix(), pattern) or fnmatch.fnmatch(p.name, pattern) for p in paths):
            found = rule.startswith("!")
    return found


def test_what_is_copied_is_there_and_in_the_context() -> None:
    copied = [word for line in instructions("COPY") for word in line.split()[:-1] if not word.startswith("--")]
    assert {"requirements.lock", "pyproject.toml", "."} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name == "." or in_context(name), name


def test_the_context_is_what_the_wheel_is_made_of_and_little_more() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = about["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in (*wheel["packages"], *wheel["force-include"], about["project"]["readme"], "LICENSE"):
        assert in_context(f"{name}/a.toml" if (ROOT / name).is_dir() else name), name
    for name in (".git/HEAD", ".venv/bin/python", "runs/camvid/a", "tests/test_container.py", "docs/index.md", ".env"):
        assert not in_context(name), name
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        size = sum(
            (ROOT / f).stat().st_size for f in listed.stdout.splitlines() if (ROOT / f).is_file() and in_context(f)
        )
        assert size < 20e6


def test_it_runs_as_a_user_without_rights_and_begins_with_the_demo() -> None:
    assert instructions("USER") == ["1000:1000"]
    after = DOCKERFILE.partition("\nUSER ")[2]
    assert "RUN" not in after and "COPY" not in after
    assert instructions("ENTRYPOINT") == ['["vitp-entry"]'] and instructions("CMD") == ['["demo"]']


def test_versions_are_pinned() -> None:
    (base,) = [line.removeprefix("BASE=") for line in instructions("ARG") if line.startswith("BASE=")]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    for line in instructions("RUN"):
        for words in re.findall(r"pip install ([^&;|]+)", line):
            assert re.search(r"requirements\.lock|\$torch|--no-index|build\.lock", words), words
    build = (ROOT / "container/build.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in build if not line.startswith("#"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f'image.version="{version}"' in DOCKERFILE


@pytest.mark.parametrize(
    ("words", "expected"), [(("demo",), "vitp demo"), ((), "vitp"), (("bash", "-c", "echo run"), "run")]
)
def test_the_entry_point(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    (tmp_path / "vitp").write_text('#!/bin/sh\necho vitp "$@"\n')
    (tmp_path / "vitp").chmod(0o755)
    entry = ROOT / "container/entry.sh"
    done = subprocess.run(
        ["sh", entry, *words], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected
