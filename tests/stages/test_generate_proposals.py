"""Stage one with a generator that looks for colors: overlapping changes no byte, and nothing of it is lost."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.datasets.making import NAMES, semantic_spec, write_semantic
from tests.execution.test_runner import content
from tests.generators.test_views import ColorGenerator
from tests.local_runs import create_or_check
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import InputError, StoppedError, StorageError
from vitp_pipeline.execution import runner
from vitp_pipeline.execution.runner import run_parts
from vitp_pipeline.stages import generate_proposals
from vitp_pipeline.stages.generate_proposals import READ_AHEAD, READERS, ProposalMaker

COUNT = 9


class Colors(ColorGenerator):
    """Its two queries among the classes of the toy data set; fails on every image that is 28 pixels high if `thin`."""

    classes = NAMES

    def __init__(self, thin: bool = False) -> None:
        super().__init__()
        self.thin, self.resized = thin, 0

    def resize(self, image, scale=1.0):
        if self.thin and image.shape[0] == 28:
            raise RuntimeError("too thin")
        self.resized += 1
        return super().resize(image, scale)

    def forward(self, frames):
        done = sum(self.sizes)
        assert self.resized <= done + (READ_AHEAD + 1) * len(frames) + READERS
        outputs = super().forward(frames)
        for output in outputs:
            object.__setattr__(output, "class_logits", output.class_logits[:, [0, 1, 1, 2]])
        return outputs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_semantic(tmp_path / "data", COUNT)
    return tmp_path / "data"


def made(folder: Path, data: Path, generator: ColorGenerator | None = None, **changes) -> StageRun:
    dataset = Dataset(semantic_spec(), data, "train")
    images = tuple(sample.image_id for sample in dataset.samples)
    changes = {"part_size": 5, "batch_size": 2, **changes}
    settings = ProposalSettings("x", points=("max", "random"), **changes)
    run = create_or_check(folder, {"stage": "proposals"}, images, 1, settings.part_size)
    run_parts(run, [0], lambda: ProposalMaker(run, dataset, generator or Colors(), settings), "proposals")
    return run


class AtOnce:
    """`Prefetcher` and `WriteQueue` without threads."""

    def __init__(self, *arguments) -> None:
        self.arguments, self.results = arguments, []

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_) -> None:
        pass

    def __iter__(self):
        read, items, *_ = self.arguments
        for item in items:
            future = Future()
            try:
                future.set_result(read(item))
            except InputError as error:
                future.set_exception(error)
            yield item, future

    def add(self, work, *arguments) -> None:
        self.results.append(work(*arguments))

    def finish(self) -> list:
        return self.results


@pytest.mark.parametrize("changes", [{}, {"batch_size": 1}, {"flip": True, "scales": (0.5, 1.0)}])
@pytest.mark.parametrize("thin", [False, True])
def test_overlapping_changes_no_byte(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, thin: bool
) -> None:
    (data / "images" / "a4.png").write_bytes(b"torn")
    overlapped = content(made(tmp_path / "overlapped", data, Colors(thin), **changes))
    monkeypatch.setattr(generate_proposals, "Prefetcher", AtOnce)
    monkeypatch.setattr(generate_proposals, "WriteQueue", AtOnce)
    assert content(made(tmp_path / "plain", data, Colors(thin), **changes)) == overlapped
    failed = [image_id for image_id, _ in json.loads(overlapped["shards/00000/done.json"])["failed"]]
    assert failed == (["a0", "a3", "a4", "a6"] if thin else ["a4"])


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_stop_in_the_middle_loses_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = content(made(tmp_path / "whole", data))
    asked = iter([False] * after)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "stop_wanted", lambda: next(asked, True))
        with pytest.raises(StoppedError):
            made(tmp_path / "stopped", data)
    seen = Colors()
    assert content(made(tmp_path / "stopped", data, seen)) == whole
    assert sum(seen.sizes) == COUNT - {1: 2, 2: 4, 4: 5}[after]  # what was finished is not made again


def test_what_cannot_be_written_is_said_and_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(writer, record):
        if len(written) == 3:
            raise StorageError("the disk is full", "Free some space")
        written.append(record.image_id)
        return write(writer, record)

    write = generate_proposals.write_record
    monkeypatch.setattr(generate_proposals, "write_record", full)
    with pytest.raises(StorageError, match="full"):
        made(tmp_path / "run", data, batch_size=1)
    assert written == ["a0", "a1", "a2"]
    assert [p.name for p in (tmp_path / "run/shards/00000").iterdir()] == ["lock"]


def test_a_generator_that_resizes_nothing_is_no_fault_of_the_images(tmp_path: Path, data: Path) -> None:
    class Broken(Colors):
        def resize(self, image, scale=1.0):
            raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator"):
        made(tmp_path / "run", data, Broken())
