"""Sources of a predictor's masks: a generator, or another tool's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.datasets.spec import check_classes
from vitp_pipeline.errors import InputError
from vitp_pipeline.generators.base import is_class_agnostic
from vitp_pipeline.generators.views import propose_views
from vitp_pipeline.stages.convert_masks import refuse_views
from vitp_pipeline.stages.generate_proposals import generator_failure, make_record, view_plan

if TYPE_CHECKING:
    from vitp_pipeline.generators.base import Generator
    from vitp_pipeline.inference.foreign_masks import ForeignMasks


class GeneratedProposals:
    """Proposals of a generator, in one or several views of an image.

    Args:
        other: where the classes of `spec` come from, for messages; "" is a manifest.
    Raises:
        IncompatibleError: the generator has other classes.
    """

    def __init__(self, generator: Generator, settings: ProposalSettings, spec: DatasetSpec, other: str) -> None:
        if generator.classes is not None:
            check_classes(generator.classes, "the generator", spec, other)
        self.generator, self.settings, self.spec = generator, settings, spec
        self._plan = view_plan(settings, generator)
        self.one_whole = self._plan.one_whole
        self._managed = False  # whether the generator has worked on any image

    def propose(self, image: np.ndarray, name: str) -> list[ProposalRecord]:
        """Run the generator on (H, W, 3) uint8; a record for each view.

        Raises:
            InputError: it fails on this image.
            Exception: its own, until it has processed one image.
        """
        try:
            found = list(propose_views(self.generator, image, self._plan, self.settings.batch_size))
        except (RuntimeError, ValueError, MemoryError) as error:
            if not self._managed:
                raise
            raise InputError(f"{name}: {generator_failure(error)}") from error
        self._managed = True
        protocol, agnostic = self.generator.protocol, is_class_agnostic(self.generator)
        return [
            make_record(p, protocol, self.settings, self.spec, name, name, n, agnostic) for n, p in enumerate(found)
        ]


class ImportedProposals:
    """Proposals from another tool's masks, which span the image whole.

    Raises:
        UsageError: the settings ask for several views.
    """

    one_whole = True

    def __init__(self, masks: ForeignMasks, settings: ProposalSettings) -> None:
        refuse_views(settings)
        self.masks, self.settings = masks, settings

    def propose(self, image: np.ndarray, name: str) -> list[ProposalRecord]:
        """Read the masks of an image (H, W, 3). Raises InputError as `ForeignMasks.record`."""
        return [self.masks.record(image, name, self.settings)]
