"""A real S3 server on this machine, and what the tests do with it from outside: fixtures of `conftest`."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [package for package in ("s3fs", "moto", "flask_cors") if find_spec(package) is None]
NEEDS_SERVER = pytest.mark.skipif(
    bool(MISSING), reason=f"needs s3fs and moto[server]: {', '.join(MISSING)} not installed"
)
BUCKET = "runs"


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """The address of the server; its only bucket is `BUCKET`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.skip("moto's server does not start")


@pytest.fixture(scope="module")
def s3(endpoint: str, tmp_path_factory: pytest.TempPathFactory):
    """boto's own client, which knows nothing of vitp; the environment names server and credentials."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("VITP_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture(scope="module")
def processes(s3):
    """Processes forked from one that has imported the heavy packages."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.preload", "s3fs"])
    return context


def downloaded(s3, prefix: str, folder: Path) -> Path:
    """What is on the server, as files."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
        for entry in page.get("Contents", []):
            path = folder / entry["Key"].removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(BUCKET, entry["Key"], str(path))
    return folder


def uploaded(s3, folder: Path, prefix: str, *stages: str) -> None:
    """Puts the files of a folder on the server, those whose path begins so."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = path.relative_to(folder).as_posix()
        if key.startswith(stages or ("",)):
            s3.upload_file(str(path), BUCKET, f"{prefix}/{key}")
