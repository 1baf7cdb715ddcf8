"""A generator tried on a few images of a split: how long stage one takes an image, and how much it stores of it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset, DatasetSpec
from vitp_pipeline.datasets.samples import Sample
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.runtime.output import results_apart

if TYPE_CHECKING:
    import torch

MEASURED, FLOPS = "measured", "flops"
HOWS = (MEASURED, FLOPS)


@dataclass(frozen=True)
class Trial:
    """What a generator did on a few images of a split, or would have to do.

    Attributes:
        how: MEASURED: run as stage one runs it, weights and all; FLOPS: operations of its forwards, counted.
        generator, device: for people.
        images: how many it was tried on.
        queries, views, cells: Q, views of an image, numbers in one mask of one view; means over the images.
        start: seconds until the generator was there, libraries and weights; only of the first split that asks.
        seconds: an image: measured, or operations divided by the speed.
        stored: bytes an image on disk, masks left out, rounded and compressed; None where nothing was stored.
        flops, speed: operations an image, and those a second that a matrix product reaches here; None if measured.
    """

    how: str
    generator: str
    device: str
    images: int
    queries: int
    views: float
    cells: float
    start: float
    seconds: float
    stored: float | None = None
    flops: float | None = None
    speed: float | None = None


class TrialGenerator:
    """A generator that is there to be tried, built once for all splits.

    Args:
        recipe: whose settings count; None = only `settings` do.
        settings: [generate-proposals].
        how: MEASURED, with its weights; or FLOPS, with random ones.
    Raises:
        UsageError: nothing says which generator.
        UserError: it is not found, cannot be built, or has other classes than the manifest.
    """

    def __init__(
        self, recipe: Recipe | None, settings: ProposalSettings, spec: DatasetSpec, data_root: Path, how: str
    ) -> None:
        from vitp_pipeline.generators.registry import find_source
        from vitp_pipeline.stages.generate_proposals import load_generator, view_plan

        if not settings.config:
            raise UsageError(
                f"--time {how}: of which generator?", "Name a recipe with [generate-proposals], or give --config"
            )

        def locate(text: str) -> Path:
            if recipe is not None:
                return recipe.find_file(text, data_root)
            path = Path(text).expanduser()
            if not path.is_file():
                raise InputError(f"{path}: no such file")
            return path

        began = time.perf_counter()
        source = find_source(settings, locate, with_weights=how == MEASURED)
        with results_apart():  # some backbones print that they have no weights
            self.generator = load_generator(source, settings, spec)
        self.start = time.perf_counter() - began
        self.name, self.settings, self.how = source.name, settings, how
        self.plan = view_plan(settings, self.generator)

    def tried(self, dataset: Dataset, samples: Sequence[Sample]) -> Trial:
        """Tries these images of a split.

        Raises:
            InputError: the generator manages none of them.
            Exception: the generator's own, where it manages no image at all.
        """
        return self._measured(dataset, samples) if self.how == MEASURED else self._counted(dataset, samples)

    def _measured(self, dataset: Dataset, samples: Sequence[Sample]) -> Trial:
        """Reads, proposes, chooses points and stores as stage one does, into a folder that is then removed. The first
        image is seen once more before, so that what happens only once is not counted.
        """
        from vitp_pipeline.artifacts.parts import write_index
        from vitp_pipeline.execution.runner import Turn
        from vitp_pipeline.stages.generate_proposals import ProposalMaker

        images = [sample.image_id for sample in samples]
        with tempfile.TemporaryDirectory() as folder:
            index, arrays = Path(folder) / "part.parquet", Path(folder) / "part.zarr.zip"
            run = StageRun(Path(folder), {"stage": "trial"}, tuple(images), 1, len(images))
            maker = ProposalMaker(run, dataset, self.generator, self.settings)
            maker.make(0, 0, images[:1], arrays, Turn())
            began = time.perf_counter()
            table = maker.make(0, 0, images, arrays, Turn())
            write_index(index, table)
            seconds, size = time.perf_counter() - began, index.stat().st_size + arrays.stat().st_size
        rows = table.select(["image_id", "status", "error", "mask", "points_max"]).to_pylist()
        made = [row for row in rows if row["status"] == "ok"]
        if not made:
            raise InputError(f"{dataset.split}: the generator was tried in vain ({rows[0]['error']})")
        count = len({row["image_id"] for row in made})
        return Trial(
            MEASURED,
            self.name,
            self._device,
            count,
            len(made[0]["points_max"]),
            len(made) / count,
            sum(math.prod(row["mask"]) for row in made) / len(made),
            self.start,
            seconds / count,
            stored=size / count,
        )

    def _counted(self, dataset: Dataset, samples: Sequence[Sample]) -> Trial:
        """Operations of all forwards; the networks run for real, with random weights."""
        from vitp_pipeline.diagnostics.flops import count_flops, product_speed
        from vitp_pipeline.generators.views import propose_views

        flops, views = 0, []
        for sample in samples:
            picture = dataset.read_image(sample)

            def forward(picture: Any = picture) -> None:
                for found in propose_views(self.generator, picture, self.plan):
                    views.append(tuple(found.mask_logits.shape))

            flops += count_flops(forward)
        each, speed = flops / len(samples), product_speed(self._torch_device)
        return Trial(
            FLOPS,
            self.name,
            self._device,
            len(samples),
            views[0][0],
            len(views) / len(samples),
            sum(h * w for _, h, w in views) / len(views),
            self.start,
            each / speed,
            flops=each,
            speed=speed,
        )

    @property
    def _torch_device(self) -> torch.device:
        from vitp_pipeline.runtime.devices import choose_device

        return choose_device(self.settings.device)

    @property
    def _device(self) -> str:
        import torch

        device = self._torch_device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        threads = torch.get_num_threads()
        return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
