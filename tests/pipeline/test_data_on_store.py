"""Images and labels on a real S3 server on this machine: what is made of them is what local files give."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.pipeline.conftest import STAGES, Project, snapshot
from tests.pipeline.store_server import BUCKET, NEEDS_SERVER, uploaded
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.decoding.remote import data_path
from vitp_pipeline.errors import InputError, StorageError
from vitp_pipeline.runtime.output import with_aliases

pytestmark = [pytest.mark.xdist_group("store"), NEEDS_SERVER]


@pytest.fixture(scope="module")
def remote(s3, project: Project) -> Project:
    uploaded(s3, project.data, "scenes")
    return dataclasses.replace(project, data=data_path(f"s3://{BUCKET}/scenes"))


def test_all_stages_give_the_bytes_of_local_files(remote: Project, finished: Path, tmp_path: Path) -> None:
    """The classifier is the one trained on local files: training reads the same pixels in the same way."""
    shutil.copytree(finished / "classifier", tmp_path / "run/classifier")
    for stage in ("generate-proposals", "classify", "evaluate"):
        remote.run(stage, tmp_path / "run")
    assert snapshot(tmp_path / "run") == snapshot(finished)


def test_a_classifier_trains_on_it(remote: Project, project: Project, tmp_path: Path) -> None:
    for name, where in (("there", remote), ("here", project)):
        where.run(STAGES[1], tmp_path / name, epochs=1)
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")


def test_archives_on_a_store(s3, remote: Project, project: Project, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        for path in sorted(p for p in project.data.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(project.data))
    s3.upload_file(str(tmp_path / "scenes.zip"), BUCKET, "packed/scenes.zip")
    spec, here = load_recipe(project.recipe).manifest, None
    for root in (project.data, data_path(f"s3://{BUCKET}/packed"), data_path(f"s3://{BUCKET}/packed/scenes.zip")):
        dataset = Dataset(spec, root, "val")
        with dataset.reading_ahead(dataset.image_ids), dataset.reading_ahead(dataset.image_ids, labels=True):
            read = [(dataset.read_image(s).tobytes(), dataset.read_semantic(s).tobytes()) for s in dataset.samples]
        here = here or read
        assert read == here and len(read) == 9


def test_what_is_missing_is_said_with_the_url(s3, remote: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_recipe(remote.recipe).manifest
    with pytest.raises(InputError) as told:
        Dataset(spec, data_path(f"s3://{BUCKET}/nothing"), "val")
    assert with_aliases(told.value.message).startswith(f"s3://{BUCKET}/nothing/")
    dataset = Dataset(spec, remote.data, "val")
    key = dataset.samples[0].image.relative_to(remote.data).as_posix()
    s3.delete_object(Bucket=BUCKET, Key=f"scenes/{key}")
    with dataset.reading_ahead(dataset.image_ids), pytest.raises(InputError, match="does not exist"):
        dataset.read_image(dataset.samples[0])


def test_a_store_that_refuses_is_no_fault_of_an_image(s3, remote: Project, tmp_path: Path) -> None:
    """The stage ends, so that no image counts as failed."""
    with pytest.raises(StorageError, match=r"no such bucket|refuses|does not answer"):
        Dataset(load_recipe(remote.recipe).manifest, data_path("s3://no-such-bucket/x"), "val")
