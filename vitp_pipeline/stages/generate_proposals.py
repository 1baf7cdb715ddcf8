"""Stage one: generate masks with a frozen generator, and choose points from its full-precision logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.mask_codec import store_masks
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.proposals import (
    ProposalRecord,
    agnostic_identity,
    failed_row,
    has_random_weights,
    schema,
    write_record,
)
from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun
from vitp_pipeline.config.generate_proposals import MasksOfView
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset, DatasetSpec
from vitp_pipeline.datasets.spec import check_classes
from vitp_pipeline.errors import IncompatibleError, InputError, UsageError, UserError
from vitp_pipeline.execution.prefetch import Prefetcher, WriteQueue
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.generators.base import is_class_agnostic, spread_objectness
from vitp_pipeline.generators.registry import Source, find_source
from vitp_pipeline.postprocess.point_policies import choose_points
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.runtime.signals import interruptible
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.open_store import Run, open_store

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from vitp_pipeline.generators.base import Generator, Proposals
    from vitp_pipeline.generators.views import Frame, ViewPlan


def generate_proposals(
    recipe: Recipe,
    settings: ProposalSettings,
    data_root: Path,
    out: Run,
    shard: ShardChoice,
    retry_failed: bool = False,
) -> Outcome:
    """Run the generator over a split and write RUN/proposals.

    Raises:
        UserError: any of its kinds; see `vitp_pipeline.errors`.
    """
    store = open_store(out)
    folder = store.folder / "proposals"
    begun = is_begun(store, folder)
    dataset = Dataset(recipe.manifest, data_root, settings.split, settings.limit or None)
    if settings.window:
        view_plan(settings, None)  # refused before the run is made
    source, digests = find_source(settings, lambda text: recipe.find_file(text, data_root)), Digests(store)
    identity = {
        "stage": "proposals",
        "manifest": recipe.manifest.identity(),
        "generator": source.identity(digests),
        "settings": identity_of(settings),
        **agnostic_identity(is_class_agnostic(source)),
    }
    if has_random_weights(identity):
        say(f"generate-proposals: {source.name} has random weights, as the recipe asks")
    generator: Generator | None = None
    if not begun:
        shard.for_new_run()
        if not shard.planned:  # a plan loads no weights; a run that holds nothing is begun anew
            with interruptible("nothing is made yet"):  # what does not fit is refused before the run is made
                digests.prove()
                generator = load_generator(source, settings, recipe.manifest)
    images = dataset.image_ids
    run = create_or_check(store, folder, identity, images, shard.count, settings.part_size, generator=source.name)

    def build() -> ProposalMaker:
        digests.prove()
        return ProposalMaker(run, dataset, generator or load_generator(source, settings, recipe.manifest), settings)

    return run_parts(run, shard.within(run.shards), build, "proposals", retry_failed)


def load_generator(source: Source, settings: ProposalSettings, manifest: DatasetSpec) -> Generator:
    """Build the generator and compare its class list with the manifest's.

    Raises:
        IncompatibleError: names, order or number of classes differ; its masks have class scores, or have none, other
            than the source said.
    """
    from vitp_pipeline.runtime.devices import choose_device

    generator = source.build(choose_device(settings.device))
    if is_class_agnostic(generator) != is_class_agnostic(source):
        raise IncompatibleError(
            f"generator {source.name}: its class_agnostic is not that of its class",
            "Set it in the body of the class: class_agnostic = True",
        )
    if generator.classes is not None:
        check_classes(generator.classes, f"generator {source.name}", manifest)
    return generator


def view_plan(settings: ProposalSettings, generator: Generator | None) -> ViewPlan:
    """Return the views of the settings; window keys that they lack come from the generator's own `slide`, if any.

    Raises:
        UsageError: there are no such views.
    """
    from vitp_pipeline.generators.views import ViewPlan

    window, stride = settings.window, settings.stride
    own = getattr(generator, "slide", None)
    if not window and own:
        window, stride = own[0], stride or own[1]
    if stride and not window:
        raise UsageError("a stride without a window", "Give window, too, in [generate-proposals]")
    rescaled = settings.scaled_from == "frame"
    if not any(window):
        return ViewPlan(settings.scales, settings.flip, rescaled=rescaled)
    height, width = window
    down, right = stride or (max(1, height // 2), max(1, width // 2))
    return ViewPlan(settings.scales, settings.flip, (height, width), (down, right), rescaled)


READERS = 2
"""Threads that read and resize images."""
READ_AHEAD = 2
"""Batches read ahead of the one that the generator works on."""
WRITE_BEHIND = 4
"""Images whose points are not yet chosen, or whose masks are not yet compressed and written."""


class ProposalMaker:
    """Make parts of proposals: read images, run the generator, choose points, store.

    Other threads read ahead and write behind; content and order of the output do not depend on them.
    """

    def __init__(self, run: StageRun, dataset: Dataset, generator: Generator, settings: ProposalSettings) -> None:
        self.run, self.dataset, self.generator, self.settings = run, dataset, generator, settings
        self.managed = False  # whether the generator has worked on any image
        self.plan = view_plan(settings, generator)
        plan = None if self.plan.one_whole else asdict(self.plan)
        self.schema = schema(run.fingerprint, dataset.spec.class_names, plan, settings.points, self.plan.rescaled)

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        about = {"fingerprint": self.run.fingerprint, "shard": shard, "part": part}
        size, wanted = self.settings.batch_size, set(images)
        whole = self.run.parts(shard)[part]
        # cut over the whole part, so batches do not depend on which images were finished before
        batches = [whole[start : start + size] for start in range(0, len(whole), size)]
        batches = [batch for batch in batches if not wanted.isdisjoint(batch)]
        shown = [image for batch in batches for image in batch]
        writer = ArrayWriter(arrays, about)
        try:
            writes: WriteQueue[pa.Table] = WriteQueue(WRITE_BEHIND)
            prefetcher = Prefetcher(self._read, shown, READ_AHEAD * size, READERS)
            with self.dataset.reading_ahead(shown), prefetcher, writes:
                read = iter(prefetcher)
                for batch in batches:
                    self._batch([next(read) for _ in batch], wanted, writer, writes)
                    budget.advance(len(wanted.intersection(batch)))
                    if budget.over():
                        break
                rows = writes.finish()
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return pa.concat_tables([self.schema.empty_table(), *rows]).combine_chunks()

    def _read(self, image_id: str) -> np.ndarray | Frame | Exception:
        """Read an image as the generator's input, or why there is none; of several views, the image itself.

        Raises:
            InputError: it cannot be read.
        """
        from vitp_pipeline.generators.views import frame_of

        picture = self.dataset.read_image(self.dataset.sample(image_id))
        if not self.plan.one_whole:
            return picture
        try:
            return frame_of(self.generator, picture, self.plan)
        except UserError:
            raise
        except Exception as error:  # libraries raise various exceptions on an image that is too thin or too large
            return error

    def _batch(
        self,
        images: Sequence[tuple[str, Future[np.ndarray | Frame | Exception]]],
        wanted: Collection[str],
        writer: ArrayWriter,
        queue: WriteQueue[pa.Table],
    ) -> None:
        """Rows of a batch's wanted images, in order; one that cannot be read, or whose logits are not finite, fails
        alone.

        One view of each is made in one forward; several views are made and stored image by image.
        """
        pictures: dict[str, np.ndarray] = {}
        frames: dict[str, Frame | Exception] = {}
        reasons: dict[str, str] = {}
        for image_id, found in images:
            try:
                read = found.result()
                if isinstance(read, np.ndarray):
                    pictures[image_id] = read
                else:
                    frames[image_id] = read
            except InputError as error:
                reasons[image_id] = error.message
        proposals, broken = self._propose(frames)
        reasons |= broken
        for image_id, _ in images:
            if image_id not in wanted:
                continue
            sample = self.dataset.sample(image_id)
            file_name = sample.image.relative_to(self.dataset.root).as_posix()
            if image_id in proposals:
                queue.add(self._row, self._choose_and_write, writer, image_id, file_name, proposals[image_id])
                continue
            try:
                if image_id in reasons:
                    raise InputError(reasons[image_id])
                records = list(self.records(image_id, pictures[image_id]))
            except InputError as error:
                queue.add(self._row, failed_row, image_id, file_name, error.message)
            else:
                for record in records:
                    queue.add(self._row, write_record, writer, record)

    def _row(self, make: Callable[..., dict[str, Any]], *arguments: object) -> pa.Table:
        """Make a table of the result of `make`: thousands of points are a tenth of the size there."""
        import pyarrow as pa

        return pa.Table.from_pylist([make(*arguments)], schema=self.schema)

    def _choose_and_write(self, writer: ArrayWriter, image_id: str, file_name: str, found: Proposals) -> dict[str, Any]:
        """Choose points and write the proposals of an image, while the generator works on the next."""
        try:
            record = self._record(image_id, file_name, found)
        except InputError as error:
            return failed_row(image_id, file_name, error.message)
        return write_record(writer, record)

    def records(self, image_id: str, picture: np.ndarray) -> Iterator[ProposalRecord]:
        """Yield the proposals of every view of an image, computed lazily.

        Raises:
            InputError: the generator fails on the image, or its output is not finite.
            Exception: the generator's own, where it fails on every image.
        """
        from vitp_pipeline.generators.views import propose_views

        file_name = self.dataset.sample(image_id).image.relative_to(self.dataset.root).as_posix()
        views = propose_views(self.generator, picture, self.plan, self.settings.batch_size)
        number = 0
        while True:
            try:
                found = next(views)
            except StopIteration:
                break
            except UserError:
                raise
            except Exception as error:  # libraries raise various exceptions on an image that is too thin or too large
                if not self._works():
                    raise
                raise InputError(generator_failure(error)) from error
            yield self._record(image_id, file_name, found, number)
            number += 1
        self.managed = True

    def _propose(self, images: dict[str, Frame | Exception]) -> tuple[dict[str, Proposals], dict[str, str]]:
        """Proposals by image id, and reasons of images on which the generator itself fails (too large, too thin …).

        Raises:
            Exception: the generator's own, where it fails on every image.
        """
        from vitp_pipeline.generators.views import propose_frames

        if not images:
            return {}, {}
        try:
            frames: list[Frame] = []
            for frame in images.values():
                if isinstance(frame, Exception):
                    raise frame
                frames.append(frame)
            found = dict(zip(images, propose_frames(self.generator, frames), strict=True))
        except UserError:
            raise
        except Exception as error:
            if len(images) == 1:
                if not self._works():
                    raise
                return {}, {next(iter(images)): generator_failure(error)}
            halves = [self._propose({image_id: frame}) for image_id, frame in images.items()]
            return {k: v for ok, _ in halves for k, v in ok.items()}, {k: v for _, no in halves for k, v in no.items()}
        self.managed = True
        return found, {}

    def _works(self) -> bool:
        """True if the generator succeeds on any image, if need be a gray one: then a failure is due to its image."""
        from vitp_pipeline.generators.views import propose

        if not self.managed:
            with contextlib.suppress(Exception):
                propose(self.generator, [np.full((240, 320, 3), 127, np.uint8)], self.plan.scales[0])
                self.managed = True
        return self.managed

    def _record(self, image_id: str, file_name: str, found: Proposals, number: int = 0) -> ProposalRecord:
        return make_record(
            found,
            self.generator.protocol,
            self.settings,
            self.dataset.spec,
            image_id,
            file_name,
            number,
            is_class_agnostic(self.generator),
        )


def make_record(
    found: Proposals,
    protocol: str,
    settings: ProposalSettings,
    spec: DatasetSpec,
    image_id: str,
    file_name: str,
    number: int = 0,
    class_agnostic: bool = False,
) -> ProposalRecord:
    """Make the record of a view's proposals: points chosen from all masks, and the masks to
    store.

    Args:
        number: which of the image's views it is.
        class_agnostic: whether class logits are (Q, 2), object and no object, rather than (Q, K + 1).
    Raises:
        IncompatibleError: the generator scores another number of classes.
        InputError: its output is not finite.
    """
    import torch

    from vitp_pipeline.postprocess.upsample import source_reach

    masks, logits = found.mask_logits.float(), found.class_logits.float()
    if class_agnostic and logits.shape[1] == 2:
        logits = spread_objectness(logits, len(spec.classes))
    if logits.shape[1] != len(spec.classes) + 1:
        raise IncompatibleError(
            f"the generator scores {logits.shape[1] - 1} classes, {spec.name!r} has {len(spec.classes)}",
            "Use the manifest that the generator was trained with",
        )
    if not (_finite(masks) and _finite(logits)):
        raise InputError(f"{file_name}: the generator's output is not finite")
    name = f"{image_id}@{number}" if number else image_id  # other pixels are drawn in every view
    points = choose_points(MasksOfView(masks, found.view, protocol, name), settings)
    objectness = 1 - torch.softmax(logits.double(), dim=1)[:, -1].cpu().numpy()
    stored = store_masks(masks, objectness, settings.codec, source_reach(found.view))
    return ProposalRecord(
        image_id,
        file_name,
        found.view,
        protocol,
        stored.kept,
        stored.dropped_mass,
        points,
        logits.cpu().numpy(),
        stored.masks,
        number=number,
        loss=stored.loss,
    )


def _finite(values: torch.Tensor) -> bool:
    """True if all values are finite. Checking the extremes takes a twentieth of the time: NaN propagates to both."""
    import torch

    return not values.numel() or all(torch.isfinite(torch.stack(torch.aminmax(values))).tolist())


def generator_failure(error: Exception) -> str:
    return f"the generator fails on it ({' '.join(str(error).split())[:200]})"
