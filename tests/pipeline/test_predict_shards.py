"""`vitp predict` over shards, killed and on an S3 server: the bytes of one process on local files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project
from tests.pipeline.store_server import BUCKET, NEEDS_SERVER, downloaded, uploaded
from tests.pipeline.test_predict import TASKS, setup
from vitp_pipeline.cli import main as cli
from vitp_pipeline.decoding.remote import data_path
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.inference.batch import predict
from vitp_pipeline.inference.image_files import find_pictures
from vitp_pipeline.inference.shards import begin_shards, goes_in_shards
from vitp_pipeline.runs.status import run_status
from vitp_pipeline.storage.layout import PREDICT


def files(out: Path, without_images: bool = False) -> dict[str, bytes]:
    """The results, without the bookkeeping of shards.

    Args:
        without_images: leave out what the JSON files say of the place of their images, and their seals.
    """
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if name.startswith((f"{PREDICT}/", "digests.json", "jobs/")):
            continue
        content = path.read_bytes()
        if without_images and name.startswith("results/"):
            said = json.loads(content)
            content = json.dumps({k: v for k, v in said.items() if k not in ("image", "seal")}).encode()
        found[name] = content
    return found


@pytest.fixture(scope="module")
def whole(project: Project, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without shards."""
    out = tmp_path_factory.mktemp("whole") / "out"
    predict(find_pictures([project.data / "images/val"], out), *setup(project, finished, out))
    return out


def run_shard(project: Project, finished: Path, images: str, out: str, shard: str, retry_failed: bool = False):
    from vitp_pipeline.storage.open_store import open_store

    store, choice = open_store(out), choose_shard(shard, {})
    build, job = setup(project, finished, store)
    sharded = begin_shards(find_pictures([data_path(images)], store.folder), job, choice)
    return sharded.shards(choice.within(sharded.run.shards), build, retry_failed)


def _task(environment: dict[str, str], *arguments) -> None:
    os.environ.update(environment)
    run_shard(*arguments)


def start(processes, *arguments):
    environment = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "VITP_"))}
    process = processes.Process(target=_task, args=(environment, *arguments))
    process.start()
    return process


@pytest.mark.slow
def test_shards_give_the_bytes_of_one_command(project, finished, whole: Path, tmp_path: Path) -> None:
    images, out = str(project.data / "images/val"), tmp_path / "out"
    first = run_shard(project, finished, images, str(out), "1/2")
    assert (first.made, first.cached, first.failed) == (5, 0, [])
    assert run_shard(project, finished, images, str(out), "0/2").made == 4
    assert files(out) == files(whole)
    again = run_shard(project, finished, images, str(out), "/2")
    assert (again.made, again.cached) == (0, 9)
    (entry,) = run_status(out)
    assert (entry["stage"], entry["images"], entry["shards_done"], entry["shards"]) == (PREDICT, 9, 2, 2)
    with pytest.raises(UsageError, match="this run has 2 shards, not 3"):
        run_shard(project, finished, images, str(out), "0/3")
    (first_image, *_) = sorted((project.data / "images/val").iterdir())
    with pytest.raises(IncompatibleError, match="made for other images"):
        run_shard(project, finished, str(first_image), str(out), "/2")
    with pytest.raises(UsageError, match="of how many"):
        run_shard(project, finished, images, str(tmp_path / "new"), "0")


@pytest.mark.slow
def test_what_is_damaged_is_found_and_made_again(project, finished, whole: Path, tmp_path: Path, monkeypatch) -> None:
    images, out = str(project.data / "images/val"), tmp_path / "out"
    run_shard(project, finished, images, str(out), "/2")
    mask = sorted((out / "semantic").iterdir())[3]
    mask.write_bytes(b"damaged")
    for words, code in ((("verify", out), 6), (("verify", out, "--repair"), 0)):
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        with pytest.raises(SystemExit) if code else _nothing() as stop:
            cli.main()
        assert not code or stop.value.code == code
    assert not mask.exists()
    assert run_shard(project, finished, images, str(out), "/2").made == 4  # the rows of the part; one image anew
    assert files(out) == files(whole)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.slow
def test_an_image_that_fails_fails_alone(project, finished, whole: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(project.data / "images/val", images)
    torn = sorted(images.iterdir())[2]
    good = torn.read_bytes()
    torn.write_bytes(good[:200])
    outcome = run_shard(project, finished, str(images), str(out), "/2")
    assert [name for name, _ in outcome.failed] == [torn.stem] and outcome.made == 9
    torn.write_bytes(good)
    assert run_shard(project, finished, str(images), str(out), "/2").failed
    assert run_shard(project, finished, str(images), str(out), "/2", retry_failed=True).failed == []
    assert files(out, without_images=True) == files(whole, without_images=True)


@pytest.mark.slow
def test_an_archive_is_a_folder(project, finished, whole: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted((project.data / "images/val").iterdir()):
            archive.write(path, path.name)
        archive.writestr("readme.txt", "")
    found = run_shard(project, finished, str(tmp_path / "photos.zip"), str(tmp_path / "out"), "/1")
    assert found.made == 9
    assert files(tmp_path / "out", without_images=True) == files(whole, without_images=True)


def test_shards_are_for_those_who_ask(finished, tmp_path: Path) -> None:
    from vitp_pipeline.storage.open_store import open_store

    assert not goes_in_shards(open_store(tmp_path), None) and goes_in_shards(open_store(tmp_path), "/2")
    assert goes_in_shards(open_store("memory://found"), None)


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.xdist_group("store")
@NEEDS_SERVER
def test_killed_on_a_store(s3, project, finished, whole: Path, tmp_path: Path, processes) -> None:
    """Images and results on S3; killed -9 when so many images are done."""
    uploaded(s3, project.data / "images/val", "photos")
    images, url = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/found"
    kills = 0
    for count in (1, 4):
        process = start(processes, project, finished, images, url, "/2")
        while process.is_alive() and len(_keys(s3, "found/results/")) < count:
            time.sleep(0.01)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    assert kills and len(_keys(s3, "found/results/")) < 9
    process = start(processes, project, finished, images, url, "/2")
    process.join(240)
    assert process.exitcode == 0
    made = downloaded(s3, "found", tmp_path / "out")
    assert files(made, without_images=True) == files(whole, without_images=True)
    said = json.loads(next((made / "results").iterdir()).read_text())
    assert said["image"].startswith(f"{images}/")
    assert {entry["shards_done"] for entry in run_status(url)} == {2}


def _keys(s3, prefix: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def vitp(monkeypatch: pytest.MonkeyPatch, capfd, *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, capfd.readouterr().out


@pytest.mark.slow
def test_submitted(project, finished, whole: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """As jobs on this machine, and as scripts of the others."""
    words = ["predict", project.data / "images/val", "--recipe", project.recipe, "--run", finished, "--overlays", "png"]
    words += [flag for task in TASKS for flag in ("--task", task)]
    here = [*words, "--out", tmp_path / "out", "--shards", "2"]
    code, said = vitp(monkeypatch, capfd, *here, "--engine", "local", "--dry-run")
    assert code == 0 and said.startswith("predict, shards 0-1: vitp predict ") and not (tmp_path / "out").exists()
    code, said = vitp(monkeypatch, capfd, *here, "--engine", "slurm", "--dry-run")
    assert code == 0 and "--array=0-1" in said and f"--out {tmp_path / 'out'}" in said and "--shard /2" in said
    code, said = vitp(monkeypatch, capfd, *here, "--engine", "local", "-j", "1", "--json")
    assert code == 0 and [task["code"] for task in json.loads(said)["tasks"]] == [0, 0]
    assert files(tmp_path / "out") == files(whole)
    assert vitp(monkeypatch, capfd, *here, "--engine", "local") == (0, "")
    (tmp_path / "profile.toml").write_text('image = "vitp:latest"\n', encoding="utf-8")
    ends = ["--engine", "k8s", "--shards", "5", "--profile", tmp_path / "profile.toml"]
    code, said = vitp(monkeypatch, capfd, "predict", "photos", "--recipe", "camvid", "--out", "found", *ends)
    assert code == 0 and "vitp predict photos --out found --recipe camvid --overlays jpg --shard /5" in said
    assert vitp(monkeypatch, capfd, *words, "--out", tmp_path, "--shards", "5")[0] == 2  # without an engine
