"""Remote files by name, against a hub on this machine: broken connections, changed files, no network, two at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.storage.fetching import forget, hub, take_for_hub  # noqa: F401 (a fixture)
from tests.storage.loopback_hub import COMMITS, Hub
from vitp_pipeline.errors import InputError, StorageError, UsageError, UserError
from vitp_pipeline.storage.downloads import fetch as fetching
from vitp_pipeline.storage.downloads.cache import cache_folder, converted, note_path, read_note, used_files
from vitp_pipeline.storage.downloads.fetch import ASK_AGAIN, fetch
from vitp_pipeline.storage.downloads.names import is_remote, names_repository, parse_remote

WEIGHTS = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
REPO = "owner/repo"
KINDS = ("hub", "web")
each_kind = pytest.mark.parametrize("kind", KINDS)


def name_on(server: Hub, kind: str, content: bytes = WEIGHTS, file: str = "model.pth") -> str:
    """Put a file on the server; return its name."""
    server.files[f"{REPO}/{file}" if kind == "hub" else f"files/{file}"] = content
    return f"hf:{REPO}/{file}" if kind == "hub" else f"{server.url}/files/{file}"


def remains(folder: Path) -> list[str]:
    """Files in both caches but locks and the libraries' marks."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(p.name for p in found if p.suffix != ".lock" and "refs" not in p.parts and p.name != "CACHEDIR.TAG")


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_are_taken_apart() -> None:
    file = parse_remote(f"hf:o/r/sub/m.pth@v1#sha256={DIGEST.upper()}")
    assert (file.name, file.file, file.repo) == ("hf:o/r/sub/m.pth@v1", "m.pth", "o/r")
    assert (file.path, file.revision, file.sha256) == ("sub/m.pth", "v1", DIGEST)
    assert parse_remote("hf:o/r/m.pth@refs/pr/1").revision == "refs/pr/1"
    assert parse_remote(f"hf:o/r/m.pth@{COMMITS['v1']}").is_fixed and not file.is_fixed
    web = parse_remote("https://example.org/a%20b/m%201.pth?x=1")
    assert (web.on, web.file, web.url) == ("web", "m 1.pth", "https://example.org/a%20b/m%201.pth?x=1")
    assert parse_remote("http://localhost:80/m.pth").on == parse_remote("http://[::1]/m.pth").on == "web"
    assert [is_remote(text) for text in ("hf:o/r", "HTTPS://h/f", "a.pth", "s3://b/f", "./hf:o/r/f")] == 2 * [
        True
    ] + 3 * [False]
    assert [names_repository(t) for t in ("hf:o/r", "hf:o/r@a/b", "hf:o/r/f", "o/r")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hf:owner/repo", "names no file of the repository"),
        ("hf:owner", "names no file of the repository"),
        ("hf:owner/repo/../../etc/passwd", "not a name of a file"),
        ("hf:owner//f.pth", "not a name of a file"),
        ("hf:owner/repo/f.pth@", "not a name of a file"),
        ("hf:owner/repo/f.pth#sha256=123", "no SHA-256"),
        ("hf:owner/repo/f.pth#main", "no SHA-256"),
        ("https://example.org/", "names no file"),
        ("https:///f.pth", "names no file"),
        ("https://example.org/a/..", "names no file"),
        ("https://example.org/a%2F%2E%2E", "names no file"),
        ("https://[/f.pth", "not an address"),
        ("https://me:secret@example.org/f.pth", "password"),
        ("http://example.org/f.pth", "Use https://"),
        ("http://127.0.0.1.example.org/f.pth", "Use https://"),
    ],
)
def test_what_is_no_name(text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as refused:
        parse_remote(text)
    assert "secret" not in str(refused.value)


# ---- fetching -------------------------------------------------------------------------------------------------------


@each_kind
def test_a_file_is_fetched_once(
    hub: Hub,  # noqa: F811
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = name_on(hub, kind)
    path = fetch(name)
    assert path.read_bytes() == WEIGHTS and path.name == "model.pth" and used_files() == {name: DIGEST}
    said = capsys.readouterr().err
    assert f"SHA-256 {DIGEST}" in said and f"{name}#sha256={DIGEST}" in said
    requests = len(hub.asked)
    for again in (False, True):
        if again:
            forget(monkeypatch)
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert fetch(name) == fetch(f"{name}#sha256={DIGEST}") == path
    assert len(hub.asked) == requests, "the cache needs no network"
    assert capsys.readouterr().err == ""


def test_revisions_are_files_of_their_own(hub: Hub) -> None:  # noqa: F811
    name = name_on(hub, "hub")
    hub.files[f"{REPO}/model.pth@v1"] = b"old"
    assert fetch(f"{name}@v1").read_bytes() == fetch(f"{name}@{COMMITS['v1']}").read_bytes() == b"old"
    assert fetch(name).read_bytes() == WEIGHTS


@each_kind
def test_a_cut_connection_is_continued(hub: Hub, kind: str) -> None:  # noqa: F811
    name = name_on(hub, kind)
    hub.cuts = 2
    assert fetch(name).read_bytes() == WEIGHTS and hub.downloads() == 3


@each_kind
def test_a_broken_download_leaves_nothing(
    hub: Hub,  # noqa: F811
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = name_on(hub, kind)
    hub.cuts = 99
    with pytest.raises(InputError, match=r"cannot be fetched \(.*Run the same command again") as refused:
        fetch(name)
    assert "\n" not in str(refused.value) and remains(tmp_path) == [] and used_files() == {}
    assert capsys.readouterr().err.splitlines() == [f"fetching {name}"]
    hub.cuts = 0
    assert fetch(name).read_bytes() == WEIGHTS


@each_kind
def test_another_digest_than_the_name_says_is_refused(hub: Hub, kind: str, tmp_path: Path) -> None:  # noqa: F811
    name, wrong = name_on(hub, kind), "0" * 64
    with pytest.raises(InputError, match=rf"has SHA-256 {DIGEST}, its name says {wrong}"):
        fetch(f"{name}#sha256={wrong}")
    assert read_note(name) is None
    assert kind == "hub" or remains(tmp_path) == []
    assert fetch(f"{name}#sha256={DIGEST}").read_bytes() == WEIGHTS
    with pytest.raises(InputError, match="its name says"):
        fetch(f"{name}#sha256={wrong}")


@each_kind
def test_the_papers_table_is_held_against_its_files(
    hub: Hub,  # noqa: F811
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = name_on(hub, kind)
    monkeypatch.setattr(fetching, "published_digest", {name: "1" * 64}.get)
    with pytest.raises(InputError, match=r"rows\.toml says 1{64}"):
        fetch(name)


@each_kind
def test_a_changed_file_is_told_and_not_taken(
    hub: Hub,  # noqa: F811
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = name_on(hub, kind)
    path = fetch(name)
    name_on(hub, kind, b"changed")
    hub.asked.clear()
    forget(monkeypatch)
    assert fetch(name).read_bytes() == WEIGHTS and not hub.asked, "asked on the same day"
    before = note_path(name).stat().st_mtime - ASK_AGAIN - 60
    os.utime(note_path(name), (before, before))
    capsys.readouterr()
    forget(monkeypatch)
    assert fetch(name) == path and path.read_bytes() == WEIGHTS and hub.downloads() == 0
    said = capsys.readouterr().err
    assert said.startswith(f"{name} has changed since it was fetched on ") and str(note_path(name)) in said
    forget(monkeypatch)
    assert fetch(name) == path and capsys.readouterr().err == "", "told once a day"
    note_path(name).unlink()
    forget(monkeypatch)
    assert fetch(name).read_bytes() == b"changed"


@each_kind
def test_a_file_that_was_lost_and_has_changed_is_refused(
    hub: Hub,  # noqa: F811
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, new = name_on(hub, kind), hashlib.sha256(b"changed").hexdigest()
    fetch(name).unlink()
    name_on(hub, kind, b"changed")
    for _ in range(2):
        forget(monkeypatch)
        with pytest.raises(InputError, match=rf"is another file now, of SHA-256 {new}.*{DIGEST}.*{name}#sha256={new}"):
            fetch(name)
    assert fetch(f"{name}#sha256={new}").read_bytes() == b"changed"
    forget(monkeypatch)
    assert fetch(name).read_bytes() == b"changed", "it is accepted now"


@each_kind
def test_a_damaged_file_is_fetched_again(
    hub: Hub,  # noqa: F811
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = name_on(hub, kind)
    path = fetch(name)
    path.resolve().write_bytes(WEIGHTS[:-1] + b"x")
    forget(monkeypatch)
    assert fetch(name).read_bytes() == WEIGHTS
    assert "again: the cached file is damaged" in capsys.readouterr().err
    note_path(name).write_text("{}")
    forget(monkeypatch)
    assert fetch(name).read_bytes() == WEIGHTS, "a damaged note is as none"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hf:absent/repo/model.pth", r"no repository absent/repo, or it is private.*hf auth login"),
        ("hf:owner/repo/absent.pth", r"owner/repo has no file absent\.pth.*/tree/main"),
        ("hf:owner/repo/model.pth@absent", r"owner/repo has no revision absent"),
        ("hf:shut/repo/model.pth", r"shut/repo asks for permission.*Accept its terms"),
        ("URL/files/absent.pth", r"no such file on the server\. Correct the address"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path, text: str, fault: str) -> None:  # noqa: F811
    name_on(hub, "hub")
    hub.files["shut/repo/model.pth"], hub.gated = WEIGHTS, {"shut/repo"}
    with pytest.raises(InputError, match=fault):
        fetch(text.replace("URL", hub.url))
    assert remains(tmp_path) == []


@each_kind
def test_without_a_network(hub: Hub, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    name = name_on(hub, kind)
    with monkeypatch.context() as change:
        change.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match=r"not fetched yet, and HF_HUB_OFFLINE forbids the network.*give"):
            fetch(name)
    hub.status = 500
    with pytest.raises(InputError, match="answers with 500"):
        fetch(name)
    hub.status = 200
    if kind == "web":
        with pytest.raises(InputError, match=r"cannot be fetched.*with a network"):
            fetch("http://127.0.0.1:9/model.pth")
    else:
        take_for_hub("http://127.0.0.1:9", monkeypatch)
        with pytest.raises(InputError, match=r"cannot be fetched.*hf download owner/repo model\.pth"):
            fetch(name)


def test_a_cache_that_cannot_be_written_is_said(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    name = name_on(hub, "web")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"Set VITP_CACHE to a folder that can be written"):
        fetch(name)


# ---- several at once ------------------------------------------------------------------------------------------------


@each_kind
def test_two_threads_fetch_once(hub: Hub, kind: str) -> None:  # noqa: F811
    name, hub.holding = name_on(hub, kind), threading.Event()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(fetch, name) for _ in range(3)]
        hub.holding.set()
        assert {future.result().read_bytes() for future in waiting} == {WEIGHTS}
    assert hub.downloads() == 1


@each_kind
def test_two_processes_fetch_once_and_one_that_is_killed_harms_nobody(hub: Hub, kind: str, tmp_path: Path) -> None:  # noqa: F811
    name, hub.holding = name_on(hub, kind), threading.Event()
    program = f"from vitp_pipeline.storage.downloads.fetch import fetch; print(fetch({name!r}))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub")}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)

    first = start()
    while not hub.downloads():
        assert first.poll() is None
    others = [start(), start()]
    first.kill()
    first.wait()
    hub.holding.set()
    paths = {process.communicate(timeout=60)[0].strip() for process in others}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == WEIGHTS
    assert hub.downloads() == 2 and [process.returncode for process in others] == [0, 0]


# ---- what is made of them -------------------------------------------------------------------------------------------


def test_a_conversion_is_made_once_and_whole(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"made")

    def fail(path: Path) -> None:
        raise InputError("no such layout")

    source = tmp_path / "model.pth"
    with pytest.raises(UserError, match="no such layout"):
        converted(source, DIGEST, "m.safetensors", [1], fail)
    first = converted(source, DIGEST, "m.safetensors", [1], make)
    assert converted(source, DIGEST, "m.safetensors", [1], make) == first and len(made) == 1
    others = {converted(source, *changed, make) for changed in (("0" * 64, "m", [1]), (DIGEST, "m", [2]))}
    assert len(others) == 2 and len(made) == 3 and all(path.is_relative_to(cache_folder()) for path in made)
