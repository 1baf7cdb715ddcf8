"""Runs on a real S3 server on this machine: every stage, killed, at once, and refused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pipeline.conftest import STAGES, Project, snapshot
from tests.pipeline.store_server import BUCKET, NEEDS_SERVER, downloaded, uploaded
from vitp_pipeline.cli import main as cli
from vitp_pipeline.errors import UserError
from vitp_pipeline.runtime.output import with_aliases

pytestmark = [pytest.mark.xdist_group("store"), NEEDS_SERVER]


def _stage(environment: dict[str, str], project: Project, stage: str, url: str, shard: str | None = None) -> None:
    os.environ.update(environment)
    settings = {"checkpoint_minutes": 0.001} if stage == "train-classifier" else {}
    try:
        project.run(stage, url, shard, **settings)
    except UserError as error:
        print(with_aliases(error), file=sys.stderr)
        os._exit(error.exit_code)


def start(processes, *arguments):
    environment = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "VITP_"))}
    process = processes.Process(target=_stage, args=(environment, *arguments))
    process.start()
    return process


def result(processes, *arguments) -> int:
    process = start(processes, *arguments)
    process.join(240)
    return process.exitcode


def vitp(monkeypatch: pytest.MonkeyPatch, capsys, *words: str) -> tuple[int, str, str]:
    """The program as a new process would run it: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["vitp", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
@pytest.mark.kill
def test_all_stages(s3, project: Project, finished: Path, tmp_path: Path, processes, monkeypatch, capsys) -> None:
    """A process a stage, as on a cluster; then every command that reads a run."""
    url = f"s3://{BUCKET}/a/whole"
    for stage in STAGES:
        assert result(processes, project, stage, url) == 0
    assert snapshot(downloaded(s3, "a/whole", tmp_path / "run")) == snapshot(finished)

    words = (str(project.recipe), "--data-root", str(project.data), "--out", url, "--alpha", "0,0.4,1", "--json", "-")
    code, there, _ = vitp(monkeypatch, capsys, "evaluate", *words)
    local = (*words[:4], str(finished), *words[5:])
    assert code == 0 and _figures(there) == _figures(vitp(monkeypatch, capsys, "evaluate", *local)[1])
    code, out, _ = vitp(monkeypatch, capsys, "status", url, "--json")
    assert code == 0 and out.count('"shards_done": 1') == 4 and f'"folder": "{url}/proposals"' in out
    code, _, err = vitp(monkeypatch, capsys, "verify", url)
    assert code == 0 and "15 parts, all intact" in err
    assert vitp(monkeypatch, capsys, "gc", url)[:2] == (0, "")
    if find_spec("plotly"):
        code, _, err = vitp(monkeypatch, capsys, "report", url)
        assert code == 0 and f"{url}/report.html: " in err
        assert b"<html" in s3.get_object(Bucket=BUCKET, Key="a/whole/report.html")["Body"].read()
    picture = project.data / "images/val/000000.png"
    code, _, err = vitp(
        monkeypatch, capsys, "predict", str(picture), "--recipe", "demo", "--run", url, "--out", str(tmp_path / "found")
    )
    assert code == 0 and list((tmp_path / "found/semantic").rglob("*.png"))

    key = next(k for k in _keys(s3, "a/whole/class_scores/") if "/part-0001-" in k)
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"damaged")
    code, out, _ = vitp(monkeypatch, capsys, "verify", url)
    assert code == 6 and out.startswith(f"s3://{BUCKET}/{key}: ")
    assert vitp(monkeypatch, capsys, "verify", url, "--repair")[0] == 0
    assert result(processes, project, "evaluate", url) == 5  # the scores are not whole
    assert result(processes, project, "classify", url) == 0
    shutil.rmtree(tmp_path / "run")
    assert snapshot(downloaded(s3, "a/whole", tmp_path / "run")).items() >= snapshot(finished).items()


def _figures(text: str) -> str:
    """The JSON of an evaluation without its provenance."""
    import json

    return json.dumps({k: v for k, v in json.loads(text).items() if k != "provenance"}, sort_keys=True)


def _keys(s3, prefix: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("stage", ["generate-proposals", "train-classifier", "evaluate"])
def test_kill_and_run_again(stage: str, s3, project: Project, finished: Path, tmp_path: Path, processes) -> None:
    """Killed -9 when so many objects of the stage are on the server; the last run ends with the same bytes."""
    prefix, rng = f"killed/{stage}", random.Random(stage)
    folders = ("proposals/", "classifier/", "class_scores/", "evaluation/")
    own = folders[STAGES.index(stage)]
    uploaded(s3, finished, prefix, *folders[: STAGES.index(stage)])
    kills = 0
    for count in (3, 9):
        process = start(processes, project, stage, f"s3://{BUCKET}/{prefix}")
        while process.is_alive() and len(_keys(s3, f"{prefix}/{own}")) < count:
            time.sleep(0.01)
        process.join(rng.uniform(0, 0.1))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    assert kills
    assert result(processes, project, stage, f"s3://{BUCKET}/{prefix}") == 0
    made = snapshot(downloaded(s3, prefix, tmp_path / "run"))
    assert {k: v for k, v in made.items() if k.startswith(own)} == {
        k: v for k, v in snapshot(finished).items() if k.startswith(own)
    }


@pytest.mark.slow
@pytest.mark.kill
def test_two_tasks_at_once(s3, project: Project, finished: Path, tmp_path: Path, processes) -> None:
    """On one shard the second ends with code 9, or comes when all is done; on two of a new run both work."""
    both = [start(processes, project, STAGES[0], f"s3://{BUCKET}/twice") for _ in range(2)]
    for process in both:
        process.join(240)
    assert sorted(process.exitcode for process in both) in ([0, 0], [0, 9])
    assert {k: v for k, v in snapshot(finished).items() if k.startswith("proposals/")} == snapshot(
        downloaded(s3, "twice", tmp_path / "twice")
    )
    halves = [start(processes, project, STAGES[0], f"s3://{BUCKET}/halves", f"{shard}/2") for shard in range(2)]
    for process in halves:
        process.join(240)
    assert [process.exitcode for process in halves] == [0, 0]
    assert len([key for key in _keys(s3, "halves/") if key.endswith("done.json")]) == 2


def test_what_is_wrong_is_one_line(s3, endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refused(url: str) -> tuple[int, str]:
        code, _, err = vitp(monkeypatch, capsys, "status", url)
        assert err.count("\n") == 1
        return code, err

    code, err = refused("s3://no-such-bucket/run")
    assert code == 8 and err.startswith("vitp: s3://no-such-bucket/run: no such bucket")
    code, err = refused(f"s3://{BUCKET}/nothing")
    assert code == 3 and err.startswith(f"vitp: s3://{BUCKET}/nothing: not a run directory")
    try:
        _require_credentials(endpoint, "0")
        code, err = refused(f"s3://{BUCKET}/a/whole")
        assert code == 8 and "refuses" in err and "AWS_ACCESS_KEY_ID" in err
    finally:
        _require_credentials(endpoint, "Infinity")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        code, err = refused(f"s3://{BUCKET}/a/whole")
        assert code == 8 and "credentials" in err
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        code, err = refused(f"s3://{BUCKET}/a/whole")
        assert code == 8 and "does not answer" in err and "AWS_ENDPOINT_URL" in err
    code, _, err = vitp(
        monkeypatch,
        capsys,
        *("submit", "demo", "--data-root", ".", "--out", f"s3://{BUCKET}/new", "--engine", "slurm", "--shards", "2"),
    )
    assert code == 2 and f"s3://{BUCKET}/new: --engine slurm keeps scripts" in err


def _require_credentials(endpoint: str, after: str) -> None:
    """moto checks keys once so many requests have come; none of the test's is known to it."""
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", after.encode(), plain, method="POST")
    urllib.request.urlopen(request).read()


def test_submission_to_kubernetes_names_the_url(s3, project: Project, tmp_path: Path, monkeypatch, capsys) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text('image = "vitp:latest"\n', encoding="utf-8")
    words = ("submit", "demo", "--data-root", "/data", "--out", f"s3://{BUCKET}/pods/run", "--engine", "k8s")
    code, out, _ = vitp(monkeypatch, capsys, *words, "--shards", "2", "--profile", str(profile))
    assert code == 0 and f"--out s3://{BUCKET}/pods/run --shard /2" in out and "vitp-run: run\n" in out
