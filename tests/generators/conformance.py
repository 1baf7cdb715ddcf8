"""What every generator must do, as a class of tests. Inherit it and say how to make yours:

class TestMine(GeneratorConformance):
    def make(self, folder, seed=0):
        return Mine(seed=seed)
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets.making import semantic_spec, write_png
from tests.local_runs import create_or_check
from vitp_pipeline.config.choices import PROTOCOLS
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import ClassInfo, Dataset
from vitp_pipeline.errors import InputError
from vitp_pipeline.execution.runner import WorkBudget
from vitp_pipeline.generators.base import Generator, Proposals
from vitp_pipeline.generators.views import ViewPlan, propose, propose_views
from vitp_pipeline.stages.generate_proposals import ProposalMaker

SIZES = ((50, 75), (75, 50), (64, 64), (33, 97))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random blocks of 8 pixels: something that survives a resize."""
    rng = np.random.default_rng([height, width, seed])
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


class GeneratorConformance:
    """Tests of a generator with random weights, which must take any image of 30 to 100 pixels a side."""

    def make(self, folder: Path, seed: int = 0) -> Generator:
        """A generator, small and fast; `folder` is an empty place for its files."""
        raise NotImplementedError

    def poison(self, generator: Generator) -> None:
        """Makes the network answer with NaN."""
        for parameter in generator._model.parameters():
            parameter.data.fill_(float("nan"))

    @pytest.fixture(scope="class")
    def generator(self, tmp_path_factory: pytest.TempPathFactory) -> Generator:
        return self.make(tmp_path_factory.mktemp("generator"))

    def test_it_says_what_it_is(self, generator: Generator) -> None:
        assert isinstance(generator, Generator)
        assert generator.protocol in PROTOCOLS
        assert generator.describe and "\n" not in generator.describe
        if generator.classes is not None:
            assert isinstance(generator.classes, tuple) and all(isinstance(name, str) for name in generator.classes)

    def test_shapes_and_types(self, generator: Generator) -> None:
        found = [propose(generator, [picture(*size)])[0] for size in SIZES]
        queries, columns = found[0].class_logits.shape
        assert generator.classes is None or columns == len(generator.classes) + 1
        for size, proposals in zip(SIZES, found, strict=True):
            view = proposals.view
            assert view.original == size and view.whole
            assert view.resized == generator.resize(picture(*size)).shape[:2]
            assert all(0 < r <= p for r, p in zip(view.resized, view.padded, strict=True))
            assert proposals.mask_logits.shape == (queries, *view.mask)
            assert proposals.class_logits.shape == (queries, columns)
            for logits in (proposals.mask_logits, proposals.class_logits):
                assert logits.dtype == torch.float32 and not logits.requires_grad
                assert torch.isfinite(logits).all()

    def test_logits_depend_on_the_image(self, generator: Generator) -> None:
        a, b = (propose(generator, [picture(64, 64, seed)])[0] for seed in (1, 2))
        assert not torch.equal(a.mask_logits, b.mask_logits)

    @pytest.mark.parametrize("at", [(0.2, 0.3), (0.7, 0.15), (0.5, 0.8)])
    @pytest.mark.parametrize("size", SIZES)
    def test_a_point_finds_its_way_into_the_frame_and_back(
        self, generator: Generator, size: tuple[int, int], at: tuple[float, float]
    ) -> None:
        """A bright square in the dark lies in the frame where the sizes say, to half a pixel of the coarser grid."""
        image = np.zeros((*size, 3), np.uint8)
        top, left = (round(share * (length - 9)) for share, length in zip(at, size, strict=True))
        image[top : top + 9, left : left + 9] = 200
        frame = np.asarray(generator.resize(image), np.float64).mean(2)
        frame = np.abs(frame - frame[-1, -1])
        for axis, start in enumerate((top, left)):
            weights = frame.sum(1 - axis)
            center = (weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum()
            coarser = size[axis] / frame.shape[axis]
            assert abs(center * coarser - (start + 4.5)) <= 0.5 * max(1, coarser)

    def test_the_scale_multiplies_the_generators_own_size(self, generator: Generator) -> None:
        whole, half = (generator.resize(picture(60, 90), scale).shape[:2] for scale in (1.0, 0.5))
        assert all(abs(h - w / 2) <= 1 for h, w in zip(half, whole, strict=True))

    def test_several_views_of_an_image(self, generator: Generator) -> None:
        """Two sizes, each plain and flipped; the first is what `propose` gives."""
        image = picture(60, 90)
        views = list(propose_views(generator, image, ViewPlan((1.0, 0.5), flip=True), batch_size=2))
        assert [v.view.flip for v in views] == [False, True, False, True]
        assert [v.view.resized for v in views] == [generator.resize(image, s).shape[:2] for s in (1.0, 1.0, 0.5, 0.5)]
        torch.testing.assert_close(views[0].mask_logits, propose(generator, [image])[0].mask_logits, atol=1e-4, rtol=0)
        assert not torch.equal(views[0].mask_logits, views[1].mask_logits)

    def test_frames_may_be_flipped_and_cut(self, generator: Generator) -> None:
        frame = generator.resize(picture(64, 96))
        half = frame.shape[1] // 2
        whole, flipped, cut = generator.forward([frame, frame[:, ::-1], frame[:, :half]])
        assert flipped.mask_logits.shape == whole.mask_logits.shape
        assert not torch.equal(flipped.mask_logits, whole.mask_logits)
        assert cut.padded[0] >= frame.shape[0] and cut.padded[1] >= half

    def test_the_same_again(self, generator: Generator, tmp_path: Path) -> None:
        """Bit for bit: asked twice, and built twice. Nothing outside is changed."""
        image = picture(50, 75)
        before, kept = torch.random.get_rng_state(), image.copy()
        first, again = (propose(generator, [image])[0] for _ in range(2))
        rebuilt = propose(self.make(tmp_path), [image])[0]
        for other in (again, rebuilt):
            assert torch.equal(first.mask_logits, other.mask_logits)
            assert torch.equal(first.class_logits, other.class_logits)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert np.array_equal(image, kept)

    def test_proposals_do_not_depend_on_the_batch(self, generator: Generator) -> None:
        """Images of one size and of others, in one call and alone: the same, and in order."""
        images = [picture(50, 75, 1), picture(75, 50, 2), picture(50, 75, 3), picture(33, 97, 4)]
        for image, together in zip(images, propose(generator, images), strict=True):
            alone = propose(generator, [image])[0]
            assert together.view == alone.view
            torch.testing.assert_close(together.mask_logits, alone.mask_logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(together.class_logits, alone.class_logits, atol=1e-4, rtol=0)
        assert propose(generator, []) == []

    def test_nothing_larger_than_its_masks_is_kept(self, generator: Generator) -> None:
        """The memory behind the logits of a batch is that of the logits: no layers before, nothing upsampled."""
        found = propose(generator, [picture(64, 64, seed) for seed in range(3)])
        tensors = list(itertools.chain.from_iterable((p.mask_logits, p.class_logits) for p in found))
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        assert sum(storages.values()) <= sum(4 * tensor.numel() for tensor in tensors)
        view = found[0].view
        assert np.prod(view.mask) <= np.prod(view.padded) / 4

    @pytest.mark.parametrize("image", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8)])
    def test_what_is_no_rgb_image_is_refused(self, generator: Generator, image: np.ndarray) -> None:
        with pytest.raises(InputError, match="RGB uint8"):
            propose(generator, [image])
        with pytest.raises(InputError, match="RGB uint8"):
            propose(generator, [np.zeros((40, 40, 3), np.float32)])

    def test_the_stage_takes_it_and_refuses_nan(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        generator = self.make(tmp_path / "files")
        found = propose(generator, [picture(50, 75)])[0]
        assert [row["error"] for row in stage_rows(tmp_path / "good", generator, found)] == [None, None]
        self.poison(generator)
        for row in stage_rows(tmp_path / "bad", generator, found):
            assert row["status"] == "failed" and "not finite" in row["error"]


def stage_rows(folder: Path, generator: Generator, like: Proposals) -> list[dict]:
    """Index rows that stage one writes of two images, for a data set with the generator's classes."""
    count = like.class_logits.shape[1] - 1
    names = generator.classes or [f"class {k}" for k in range(count)]
    classes = tuple(ClassInfo(name, k + 1, False, (0, 0, 0)) for k, name in enumerate(names))
    for number in range(2):
        write_png(folder / "data" / "images" / f"a{number}.png", picture(50, 75, number))
        write_png(folder / "data" / "labels" / f"a{number}.png", np.ones((50, 75), np.uint8))
    dataset = Dataset(semantic_spec(classes=classes), folder / "data", "train")
    images = tuple(sample.image_id for sample in dataset.samples)
    run = create_or_check(folder / "proposals", {"stage": "proposals"}, images, 1, 2)
    maker = ProposalMaker(run, dataset, generator, ProposalSettings("x", batch_size=2))
    return maker.make(0, 0, images, run.folder / "made.zarr.zip", WorkBudget()).to_pylist()
