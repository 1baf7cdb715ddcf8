"""Fixtures of tests that fetch: a hub on loopback, and caches in a folder of the test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.storage.loopback_hub import Hub, loopback_hub
from vitp_pipeline.storage.downloads import cache


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the Hub, and empty caches."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(cache, "_used", {})
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    with loopback_hub() as server:
        take_for_hub(server.url, monkeypatch)
        yield server


def take_for_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does for a new process."""
    for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(constants.ENDPOINT, url))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process is: names have not been used yet."""
    monkeypatch.setattr(cache, "_used", {})
