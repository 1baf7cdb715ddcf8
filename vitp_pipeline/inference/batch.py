"""`vitp predict`: run both stages on your own images; write a file per image and kind of result.

OUT/classes.json                    meaning of the numbers in the other files
OUT/semantic/NAME.png               label values, with the classes' colors as palette
OUT/panoptic/NAME.png               ids of segments, R + 256·G + 65536·B; 0 is nothing
OUT/overlays/TASK/NAME.jpg          drawn over the image
OUT/results/NAME.json               segments, masks, scores before and after; written last: the image is done

`shards` runs the same over the shards of an array job.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.datasets import IGNORE, DatasetSpec
from vitp_pipeline.datasets.images import read_image_file
from vitp_pipeline.decoding.archives import reading_ahead
from vitp_pipeline.decoding.remote import absolute, data_path, name_of
from vitp_pipeline.errors import CorruptError, IncompatibleError, InputError, PartialError, partly_failed
from vitp_pipeline.execution.prefetch import Prefetcher
from vitp_pipeline.inference.blank_maps import BlankMap, blank_map, report_blank_maps
from vitp_pipeline.inference.image_files import Picture
from vitp_pipeline.runtime.escaping import is_text
from vitp_pipeline.runtime.progress import counted, progress, say
from vitp_pipeline.storage.atomic_files import as_json, write_whole
from vitp_pipeline.storage.fingerprint import file_digest, fingerprint
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import read_sealed, write_sealed
from vitp_pipeline.storage.temporaries import NAME_BYTES

if TYPE_CHECKING:
    from vitp_pipeline.inference.foreign_masks import ForeignMasks
    from vitp_pipeline.inference.overlay import Region
    from vitp_pipeline.inference.predictor import ClassifiedMask, Predictor, Segmentation

OVERLAYS = ("jpg", "png", "none")
SHOWN = 10
"""Records that are named; of more, the number."""
READ_AHEAD = 2
"""Images that are read and decoded while another one is worked on."""
DRAWN_FROM = 0.3
"""Instances of a lower score are listed, not drawn."""


@dataclass(frozen=True)
class PredictJob:
    """Outputs of `predict`: where they go, and the settings that determine them.

    Attributes:
        store: of the results, a folder or an object store.
        identity: of the networks and settings; with the same one, an image's results are the same.
        shown: what people want to know of them, for the JSON files.
        overlay: one of `OVERLAYS`.
        masks: of another tool, if there is no generator. Those of an image determine its results.
    """

    store: RunStore
    identity: dict[str, Any]
    tasks: tuple[str, ...]
    shown: dict[str, Any] = field(default_factory=dict)
    overlay: str = "jpg"
    masks: ForeignMasks | None = None

    @property
    def out(self) -> Path:
        return self.store.folder

    @property
    def fingerprint(self) -> str:
        return fingerprint({**self.identity, "tasks": list(self.tasks), "overlay": self.overlay})

    def origin(self, picture: Picture, content: bytes) -> dict[str, str]:
        """Return digests of what an image's results are made from. Raises InputError when it has no masks.

        Args:
            content: of the image file.
        """
        known = {"sha256": hashlib.sha256(content).hexdigest()}
        return known if self.masks is None else {**known, "masks_sha256": self.masks.digest(picture)}

    def result(self, picture: Picture) -> Path:
        return self.out / "results" / f"{picture.name}.json"

    def files(self, picture: Picture) -> list[Path]:
        """All that is written of an image, the result last."""
        maps = [self.out / task / f"{picture.name}.png" for task in ("semantic", "panoptic") if task in self.tasks]
        drawn = () if self.overlay == "none" else self.tasks
        sheets = [self.out / "overlays" / task / f"{picture.name}.{self.overlay}" for task in drawn]
        return [*maps, *sheets, self.result(picture)]


@dataclass
class Predicted:
    """Outcome of `predict`, and its folder.

    Attributes:
        made, cached: images whose results were written, now or before.
        failed: (image file, reason) of those that could not be used.
        images: the image file of each result, and the files that were written of it.
        unusable: why records in a file of masks were left out.
        blank: images whose panoptic map is nearly blank, by `object_threshold`; of those made now.
    """

    folder: Path
    fingerprint: str
    made: int = 0
    cached: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    seconds: float = 0.0
    images: list[dict[str, Any]] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    blank: list[BlankMap] = field(default_factory=list)
    object_threshold: float = 0.0

    def report(self) -> None:
        """Print the outcome. Raises PartialError when images, or records of masks, could not be used."""
        for reason in self.unusable[:SHOWN]:
            say(f"  skipped: {reason}")
        if (more := len(self.unusable) - SHOWN) > 0:
            say(f"  skipped: {more} more")
        report_blank_maps(self.blank, self.made, self.object_threshold)
        self._report_images()
        if self.unusable:
            records = counted(len(self.unusable), "record")
            raise PartialError(f"predict: {records} of unknown images skipped, the rest is done", "Correct the file")

    def _report_images(self) -> None:
        if not self.made and not self.failed:
            say(f"predict: nothing to do, {counted(self.cached, 'image')} {'is' if self.cached == 1 else 'are'} done")
            return
        kept = f", {self.cached} were done before" if self.cached else ""
        took = f" in {self.seconds:.0f} s, loading the networks included" if self.made else ""
        say(f"predict: {counted(self.made, 'image')}{took}{kept}: {self.folder}")
        if self.failed:
            of = self.made + self.cached + len(self.failed)
            raise partly_failed("predict", len(self.failed), of, "See the reasons above; the same command retries them")


def predict(
    pictures: Sequence[Picture], build: Callable[[], Predictor], job: PredictJob, overwrite: bool = False
) -> Predicted:
    """Write the results of every image without any. An image that cannot be used is reported in one line.

    Args:
        build: makes the predictor; called only when there is something to do.
        overwrite: process images with results, too.
    Raises:
        IncompatibleError: `job.out` holds results of other networks or settings.
    """
    began = time.monotonic()
    waiting = list(pictures) if overwrite else [p for p in pictures if not is_finished(job, p)]
    done = Predicted(job.out, job.fingerprint, cached=len(pictures) - len(waiting))
    done.unusable = job.masks.source.unusable if job.masks else []
    if waiting:
        _make_all(waiting, build(), job, done)
        done.seconds = time.monotonic() - began
    unusable = {path for path, _ in done.failed}
    done.images = [{"image": p.path, "files": job.files(p)} for p in pictures if p.path not in unusable]
    return done


def _make_all(waiting: Sequence[Picture], predictor: Predictor, job: PredictJob, done: Predicted) -> None:
    begin(predictor, job)
    done.object_threshold = predictor.segmenter.rule.object_threshold
    with progress("predict", len(waiting)) as bar:
        for picture, made in make_each(predictor, waiting, job, done.blank.append):
            if isinstance(made, InputError):
                done.failed.append((picture.path, made.message))
                say(f"failed: {made.message}")
            else:
                done.made += 1
            bar.advance()


def begin(predictor: Predictor, job: PredictJob) -> None:
    """Write what holds for all images. Raises UsageError for a task that the predictor cannot do."""
    predictor.check_tasks(job.tasks)
    job.store.write(job.out / "classes.json", as_json(class_list(predictor.spec)))


def make_each(
    predictor: Predictor,
    pictures: Sequence[Picture],
    job: PredictJob,
    tell: Callable[[BlankMap], None] = lambda blank: None,
) -> Iterator[tuple[Picture, dict[str, str] | InputError]]:
    """Write the results of images, one after another; yield each, with the SHA-256 of its files by their paths below
    the results, or the reason why it cannot be used.

    Args:
        tell: called with every panoptic map that is nearly blank.
    """
    with (
        reading_ahead(picture.path for picture in pictures),
        Prefetcher(lambda picture: _read(picture, job), pictures, READ_AHEAD, READ_AHEAD) as prefetcher,
    ):
        for picture, found in prefetcher:
            try:
                made = _make(predictor, picture, *found.result(), job, tell)
            except InputError as error:
                yield picture, error
            else:
                yield picture, made


def is_finished(job: PredictJob, picture: Picture) -> bool:
    """Tell if the image's results exist, made from this file. Raises IncompatibleError for another job's, and for
    those of another image of the same name.
    """
    path = job.result(picture)
    if _is_too_long(job, picture) or not job.store.exists(path):
        return False
    try:
        known = read_sealed(job.store.fetch(path))
    except CorruptError as error:
        say(f"{error.message}; it is made again")
        return False
    if known.get("fingerprint") != job.fingerprint:
        raise IncompatibleError(
            f"{path}: made with other settings or networks", "Choose another --out, or give --overwrite"
        )
    try:
        content = read_image_file(picture.path)
        if known.get("sha256") == hashlib.sha256(content).hexdigest():
            return all(known.get(name) == digest for name, digest in job.origin(picture, content).items())
    except InputError:  # it fails when it is made again
        return False
    if absolute(other := data_path(str(known.get("image")))) != absolute(picture.path):
        raise IncompatibleError(
            f"{path}: holds the results of {other}, which {picture.path} would replace",
            "Choose another --out, name both images in one command, or give --overwrite",
        )
    return False


def _is_too_long(job: PredictJob, picture: Picture) -> bool:
    return any(len(os.fsencode(file.name)) > NAME_BYTES for file in job.files(picture))


def _read(picture: Picture, job: PredictJob) -> tuple[bytes, np.ndarray]:
    """Read an image file: its bytes and (H, W, 3) pixels. Raises InputError."""
    from vitp_pipeline.inference.predictor import read_picture

    if not is_text(str(picture.path)):
        raise InputError(f"{picture.path}: its name is not UTF-8", "Rename it")
    if _is_too_long(job, picture):
        raise InputError(f"{picture.path}: its name is too long for its result files", "Rename it")
    content = read_image_file(picture.path)
    return content, read_picture(picture.path, content)


def _make(
    predictor: Predictor,
    picture: Picture,
    content: bytes,
    image: np.ndarray,
    job: PredictJob,
    tell: Callable[[BlankMap], None],
) -> dict[str, str]:
    from vitp_pipeline.interop.png_files import rgb_of_ids, write_labels, write_png

    origin = job.origin(picture, content)
    found = predictor.segment(image, job.tasks, picture.name)
    spec = predictor.spec
    if found.labels is not None:
        write_labels(job.out / "semantic" / f"{picture.name}.png", spec, found.labels, colored=True)
    if found.ids is not None:
        write_png(job.out / "panoptic" / f"{picture.name}.png", rgb_of_ids(found.ids))
    if job.overlay != "none":
        for task in job.tasks:
            _write_overlay(image, regions(found, spec, task), job.out / "overlays" / task / picture.name, job.overlay)
    about = {"image": name_of(picture.path), **origin, "fingerprint": job.fingerprint, **job.shown}
    write_sealed(job.result(picture), {**about, "size": list(image.shape[:2]), **as_dict(found, spec)})
    digests = {}
    for file in job.files(picture):  # the result last: then the image is done
        digests[file.relative_to(job.out).as_posix()] = file_digest(file)
        job.store.publish(file)
        job.store.release(file)
    if (blank := blank_map(picture.path, found, predictor.segmenter.rule.object_threshold)) is not None:
        tell(blank)
    return digests


def _write_overlay(image: np.ndarray, shown: Iterable[Region], path: Path, kind: str) -> None:
    from vitp_pipeline.inference.overlay import draw_regions

    sheet = draw_regions(image, shown)
    name, options = ("JPEG", {"quality": 88}) if kind == "jpg" else ("PNG", {})
    content = io.BytesIO()
    sheet.save(content, name, **options)
    write_whole(path.with_name(f"{path.name}.{kind}"), content.getbuffer())


def regions(found: Segmentation, spec: DatasetSpec, task: str) -> Iterator[Region]:
    """Yield the regions of a task's results to draw; a class that fusion changed is followed by the generator's."""
    from vitp_pipeline.decoding.rle import decode_mask
    from vitp_pipeline.inference.overlay import Region

    classes = spec.classes
    if task == "semantic" and found.labels is not None:
        for k in np.setdiff1d(found.labels, [IGNORE]).tolist():
            yield Region(np.equal(found.labels, k), classes[k].color, classes[k].name)
    elif task == "instance" and found.instances is not None:
        drawn = [i for i in reversed(found.instances) if i.score >= DRAWN_FROM]
        for i in drawn:
            info = classes[i.category]
            yield Region(decode_mask(i.mask), info.color, f"{info.name} {i.score:.2f}", info.name)
    elif found.ids is not None:
        masks = {m.query: m for m in found.masks}
        for s in found.segments or ():
            info, best = classes[s.category], _most_confident(masks, s.masks)
            before = best.generator.category if best.generator else s.category
            name = info.name if before == s.category else f"{info.name} (was {classes[before].name})"
            yield Region(np.equal(found.ids, s.id), info.color, name, info.name, info.thing)


def _most_confident(masks: dict[int, ClassifiedMask], queries: Sequence[int]) -> ClassifiedMask:
    return max((masks[q] for q in queries), key=lambda mask: mask.fused.score)


def class_list(spec: DatasetSpec) -> list[dict[str, Any]]:
    """List the classes for JSON: `label` is the value in label PNGs."""
    return [{"name": c.name, "label": c.label, "thing": c.thing, "color": list(c.color)} for c in spec.classes]


def as_dict(found: Segmentation, spec: DatasetSpec) -> dict[str, Any]:
    """Convert the results for JSON. Points are [row, col]; boxes [x, y, width, height]; scores lie in [0, 1]."""
    names, masks = spec.class_names, {m.query: m for m in found.masks}

    def classified(mask: ClassifiedMask) -> dict[str, Any]:
        of = {"generator": mask.generator, "classifier": mask.classifier}
        if mask.generator:  # else fused is the classifier's
            of["fused"] = mask.fused
        said = {n: {"class": names[name.category], "score": _short(name.score)} for n, name in of.items() if name}
        return {"point": list(mask.point), **said}

    content: dict[str, Any] = {
        "masks": [{"query": m.query, "objectness": _short(m.objectness), **classified(m)} for m in found.masks]
    }
    if found.labels is not None:
        counts = np.bincount(found.labels[found.labels != IGNORE], minlength=len(names))
        content["semantic"] = [
            {"class": names[k], "label": spec.classes[k].label, "pixels": int(counts[k])}
            for k in np.flatnonzero(counts).tolist()
        ]
    if found.segments is not None and found.ids is not None:
        content["panoptic"] = [
            {
                "id": s.id,
                "class": names[s.category],
                "label": spec.classes[s.category].label,
                "thing": spec.classes[s.category].thing,
                "score": _short(s.score),
                "pixels": int(np.count_nonzero(found.ids == s.id)),
                "masks": list(s.masks),
                **classified(_most_confident(masks, s.masks)),
            }
            for s in found.segments
        ]
    if found.instances is not None:
        content["instance"] = [
            {
                "class": names[i.category],
                "label": spec.classes[i.category].label,
                "score": _short(i.score),
                "segmentation": {"size": list(i.mask["size"]), "counts": i.mask["counts"].decode("ascii")},
            }
            for i in found.instances
        ]
    return content


def _short(value: float) -> float:
    return round(value, 5)
