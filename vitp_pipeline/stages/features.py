"""Store the features of a frozen backbone: RUN/features/FINGERPRINT, made by the runner as any stage, needed by none.

The first command that uses them stores them, `train-classifier` those of the training split and `classify` those of the
proposals' images; later ones read them, whatever their head, seed, fold, policy, chunk or temperature. `feature_cache`
limits their size. Where they cannot be stored, a line says why, and the results are the same.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.features import DIMENSIONS, FeatureStore, array_of_image, feature_schema
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun, open_run
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import CorruptError, InputError, LockedError, StorageError, UserError
from vitp_pipeline.execution.prefetch import Prefetcher, WriteQueue
from vitp_pipeline.execution.runner import WorkBudget, forget_part, run_parts
from vitp_pipeline.geometry import Size, size_of
from vitp_pipeline.runtime.progress import counted, say
from vitp_pipeline.storage.fingerprint import fingerprint
from vitp_pipeline.storage.run_store import RunStore

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.classifier.features.patch_features import PatchEncoder

FORMAT = 1
"""Changes with the way from an image's file to its features."""
PART_BYTES, MOST_IMAGES = 2**28, 1000
"""Bytes of a part of features before compression, and most images of one."""
READERS, READ_AHEAD, WRITE_BEHIND = 2, 4, 2
"""Threads that read images; images read ahead; images not yet written."""


class Features:
    """The stored features of a list of images, in the shards of the stage that uses them.

    Args:
        store: of the run.
        encoder: of the frozen backbone, on its device.
        images: ids, in order. shards: how many share them.
        mirrored: whether mirror images are used, too.
        limit: `feature_cache`, GB of the features of all the images.
    """

    def __init__(
        self,
        store: RunStore,
        dataset: Dataset,
        encoder: PatchEncoder,
        images: Sequence[str],
        shards: int,
        mirrored: bool,
        limit: float,
    ) -> None:
        from vitp_pipeline.classifier.features.patch_features import BYTES, features_shape

        self.store, self.dataset, self.encoder = store, dataset, encoder
        self.images, self.shards, self.limit = images, shards, limit
        self.image_bytes = int(np.prod(features_shape(encoder.model))) * BYTES
        self.kinds = (False, True) if mirrored else (False,)

    @cached_property
    def identities(self) -> dict[bool, dict[str, Any]]:
        """Collect what decides the features, by kind: of the images (False) and of their mirror images (True)."""
        from vitp_pipeline.classifier.features.patch_features import features_identity

        about = {
            "stage": "features",
            "format": FORMAT,
            "split": self.dataset.split,
            "orientation": self.dataset.spec.orientation,
            "features": features_identity(self.encoder.model, self.encoder.precision),
            "images": fingerprint({"ids": list(self.images)}),
            "shards": self.shards,
        }
        return {kind: {**about, "mirrored": kind} for kind in self.kinds}

    @property
    def bytes(self) -> int:
        """Bytes of all features, before compression."""
        return self.image_bytes * len(self.images) * len(self.kinds)

    @property
    def allowed(self) -> bool:
        """Tell if `feature_cache` is that large."""
        return self.bytes <= self.limit * 1e9

    def make(self, shards: Sequence[int]) -> None:
        """Store what is missing in some shards, if there is room; say so where nothing is stored.

        Raises:
            StoppedError: a signal asked this task to end.
        """
        size = f"{self.bytes / 1e9:.1f} GB"
        if not self.limit:
            return
        if not self.allowed:
            images = counted(len(self.images), "image")
            say(f"features: not stored, those of {images} take {size} and feature_cache = {self.limit:g}")
            return
        if all(self._finished(mirrored, shards) for mirrored in self.kinds):
            return
        if (free := _free(self.store.folder)) < 2 * self.bytes:
            say(f"features: not stored, they take {size} of {free / 1e9:.1f} GB that are free")
            return
        for mirrored in self.kinds:
            try:
                self._make(mirrored, shards)
            except LockedError as error:
                say(f"features: {error.message}; those that it has not stored yet are computed here, too")
            except StorageError as error:
                say(f"features: not stored ({error.message})")
                self._drop(mirrored)
                return

    def opened(self) -> dict[bool, FeatureStore]:
        """Open what is there, of the images (False) and of their mirror images (True)."""
        found: dict[bool, FeatureStore] = {}
        for mirrored in self.kinds if self.allowed else ():
            with contextlib.suppress(CorruptError):  # `make` has said so
                if is_begun(self.store, folder := self._folder(mirrored)):
                    found[mirrored] = FeatureStore(open_run(self.store, folder))
        return found

    def _finished(self, mirrored: bool, shards: Sequence[int]) -> bool:
        """Tell if the features of one kind are there; what cannot be read is removed."""
        try:
            if not is_begun(self.store, folder := self._folder(mirrored)):
                return False
            run = open_run(self.store, folder)
            return all(run.finished(shard) for shard in shards)
        except CorruptError as error:
            self._lose(mirrored, error)
            return False

    def _folder(self, mirrored: bool) -> Path:
        return self.store.folder / "features" / fingerprint(self.identities[mirrored])[:12]

    def _make(self, mirrored: bool, shards: Sequence[int], again: bool = True) -> None:
        part_size = max(1, min(MOST_IMAGES, PART_BYTES // self.image_bytes))
        try:
            identity = self.identities[mirrored]
            run = create_or_check(self.store, self._folder(mirrored), identity, self.images, self.shards, part_size)
            maker = FeatureMaker(run, self.dataset, self.encoder, mirrored)
            run_parts(run, shards, lambda: maker, "mirrored features" if mirrored else "features")
        except CorruptError as error:
            self._lose(mirrored, error)
            if again:
                self._make(mirrored, shards, again=False)

    def _lose(self, mirrored: bool, error: CorruptError) -> None:
        say(f"{error.message}; its features are computed again")
        self._drop(mirrored)

    def _drop(self, mirrored: bool) -> None:
        """Remove the features of one kind, except where a task works."""
        folder = self._folder(mirrored)
        places = [*(folder / "shards" / name for name in self.store.folders(folder / "shards")), folder / "log", folder]
        for place in places:
            if not self.store.is_locked(place / "lock"):
                for name in self.store.list(place):
                    self.store.remove(place / name)


def forget_damaged(stored: Mapping[bool, FeatureStore]) -> None:
    """Remove the parts that could not be read, so that the next command stores them again."""
    for store in stored.values():
        for shard, part in sorted(store.damaged):
            with contextlib.suppress(UserError):  # another task is at work, or the disk refuses: it stays damaged
                forget_part(store.run, shard, part)


def _free(folder: Path) -> int:
    """Return the free bytes of the disk that a run lies on, or will."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


class FeatureMaker:
    """Make parts of features: read images, one forward each, store."""

    def __init__(self, run: StageRun, dataset: Dataset, encoder: PatchEncoder, mirrored: bool) -> None:
        self.run, self.dataset, self.encoder, self.mirrored = run, dataset, encoder, mirrored

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        writer, rows = ArrayWriter(arrays, self.run.about(shard, part)), []
        try:
            writes: WriteQueue[None] = WriteQueue(WRITE_BEHIND)
            with Prefetcher(self._read, images, READ_AHEAD, READERS) as prefetcher, writes:
                for image_id, read in prefetcher:
                    rows.append(self._row(image_id, read, writer, writes))
                    budget.advance(1)
                    if budget.over():
                        break
                writes.finish()
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return pa.Table.from_pylist(rows, schema=feature_schema(self.run.fingerprint))

    def _read(self, image_id: str) -> tuple[np.ndarray, Size, str]:
        from vitp_pipeline.classifier.features.source import file_sha256, pixels_of

        sample = self.dataset.sample(image_id)
        digest, picture = file_sha256(sample), self.dataset.read_image(sample)
        return pixels_of(picture, self.encoder.model.image_size, self.mirrored), size_of(picture), digest

    def _row(
        self,
        image_id: str,
        read: Future[tuple[np.ndarray, Size, str]],
        writer: ArrayWriter,
        queue: WriteQueue[None],
    ) -> dict[str, Any]:
        try:
            pixels, (height, width), digest = read.result()
        except InputError as error:
            return {"image_id": image_id, "status": "failed", "error": error.message}
        queue.add(writer.add, array_of_image(image_id), self.encoder(pixels), DIMENSIONS)
        return {"image_id": image_id, "status": "ok", "height": height, "width": width, "file_sha256": digest}
