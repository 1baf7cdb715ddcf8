"""The presets of a whole recipe against the authors' evaluation, written anew from its description with torch alone.

A generator draws its logits; views, points, the classifier's picture, chunks, fusion and the averaged class scores must
be theirs to 1e-5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.classifier.making import tiny_model
from vitp_pipeline.classifier.inference import fill_chunks
from vitp_pipeline.classifier.mask_classifier import MaskClassifier
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_view
from vitp_pipeline.config.recipe import Recipe, load_preset, load_recipe
from vitp_pipeline.config.settings import TABLES, ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.errors import IncompatibleError, InputError, UsageError
from vitp_pipeline.generators.base import Output
from vitp_pipeline.generators.views import ViewPlan, propose_views
from vitp_pipeline.geometry import View, normalize_cells
from vitp_pipeline.inference.predictor import plain_spec
from vitp_pipeline.inference.proposers import GeneratedProposals
from vitp_pipeline.postprocess.points import max_points
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.shipped import shipped
from vitp_pipeline.validation.keys import keys_of

QUERIES, CLASSES, ALPHA = 7, ("sky", "road", "car"), 0.4
SHORT, LONG = 52, 200
MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class Drawn:
    """Draws the logits of every frame, and keeps them with the frame."""

    classes, describe = CLASSES, "draws"

    def __init__(self, protocol: str, stretches: bool) -> None:
        self.protocol, self.stretches = protocol, stretches
        self.random = torch.Generator().manual_seed(5)
        self.kept: list[tuple[np.ndarray, Tensor, Tensor]] = []

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """The shorter side to the test size; then, for InternImage, up to multiples of 32."""
        height, width = image.shape[:2]
        factor = int(SHORT * scale + 0.5) / min(height, width)
        size = [int(height * factor + 0.5), int(width * factor + 0.5)]
        if self.stretches:
            size = [-(-side // 32) * 32 for side in size]
        return resized(image, *size)

    resize_again = resize

    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        outputs = []
        for frame in frames:
            padded = tuple(-(-side // 32) * 32 for side in frame.shape[:2])
            # smooth, so that a mask has a maximum, and the maximum is often at the border
            coarse = 6 * torch.randn(1, QUERIES, 3, 4, generator=self.random)
            masks = F.interpolate(coarse, [side // 4 for side in padded], mode="bicubic")[0].contiguous()
            classes = 2 * torch.randn(QUERIES, len(CLASSES) + 1, generator=self.random)
            self.kept.append((frame, masks, classes))
            outputs.append(Output(masks, classes, padded))
        return outputs


def official_fused(y: Tensor, c: Tensor, divided: bool) -> Tensor:
    """(Q, K) of their softmax(log(p + 1e-8)); OneFormer's code divides by the sum, InternImage's does not."""
    void = y.softmax(1)[:, -1:]
    g = y[:, :-1].softmax(1) ** (1 - ALPHA) * c.softmax(1) ** ALPHA
    p = (1 - void) * (g / g.sum(1, keepdim=True) if divided else g)
    return torch.cat([p, void], 1).add(1e-8).log().softmax(1)[:, :-1]


def official_logits(model: PointViT, picture: Tensor, points: Tensor, chunk: int, name: str) -> Tensor:
    """Their chunks of N points, the last one filled up; what with is random, and here taken from ours."""
    filling = fill_chunks(points, chunk, name).flatten(0, 1)[len(points) :]
    rows = torch.cat([points, filling]).view(-1, chunk, 2)
    return torch.cat([model(picture[None], row[None])[0] for row in rows])[: len(points)]


def oneformer(image: np.ndarray, model: PointViT, drawn: Drawn, scales: Sequence[float], chunk: int) -> Tensor:
    """Their averaged class scores, (K, H0, W0); the drawn logits in the order of the views."""
    height, width = image.shape[:2]
    first = resized(image, *(int(side * SHORT / min(height, width) + 0.5) for side in (height, width)))
    total, number = torch.zeros(len(CLASSES), height, width), 0
    for scale, flip in itertools.product(scales, (False, True)):
        factor = int(SHORT * scale + 0.5) / min(first.shape[:2])
        frame = resized(first, *(int(side * factor + 0.5) for side in first.shape[:2]))
        frame = frame[:, ::-1].copy() if flip else frame
        seen, masks, classes = drawn.kept[number]
        assert (seen == frame).all()
        rows, cols = frame.shape[:2]
        tensor = (torch.from_numpy(frame).permute(2, 0, 1).float() - MEAN) / STD
        tensor = F.pad(tensor, (0, -cols % 32, 0, -rows % 32))
        up = F.interpolate(masks[None], tensor.shape[1:], mode="bilinear")[:, :, :rows, :cols]
        up = F.interpolate(up, (height, width), mode="bilinear")[0]
        row, col = torch.unravel_index(up.flatten(1).argmax(1), (height, width))
        points = torch.stack([row / height, col / width], 1) * 2 - 1
        picture = F.interpolate(tensor[None], model.image_size, mode="bilinear", antialias=True)[0]
        logits = official_logits(model, picture, points, chunk, f"img@{number}" if number else "img")
        scores = torch.einsum("qc,qhw->chw", official_fused(classes, logits, True), up.sigmoid())
        total += scores.flip(-1) if flip else scores
        number += 1
    assert number == len(drawn.kept)
    return total / number


def internimage(
    image: np.ndarray, model: PointViT, drawn: Drawn, scales: Sequence[float], chunk: int, window: tuple[int, int]
) -> Tensor:
    """Their averaged class scores of sliding windows, a window's own size from one to the next, (K, H0, W0)."""
    height, width = image.shape[:2]
    whole = torch.from_numpy(resized(image, *model.image_size).copy()).permute(2, 0, 1).float() / 255
    picture = (whole - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    total, number, frames = torch.zeros(len(CLASSES), height, width), 0, 0
    for scale, flip in itertools.product(scales, (False, True)):
        frame = drawn.resize(image, scale)
        frame = frame[:, ::-1] if flip else frame
        rows, cols = frame.shape[:2]
        summed, count = torch.zeros(len(CLASSES), rows, cols), torch.zeros(rows, cols)
        places = [
            [min(i * w, n - w) for i in range(math.ceil(n / w))] for n, w in zip((rows, cols), window, strict=True)
        ]
        for top, left in itertools.product(*places):
            seen, masks, classes = drawn.kept[number]
            box = slice(top, top + window[0]), slice(left, left + window[1])
            assert (seen == frame[box]).all()
            _, h4, w4 = masks.shape
            cell = masks.flatten(1).argmax(1)
            points = torch.stack([cell // w4 / h4, cell % w4 / w4], 1) * 2 - 1
            logits = official_logits(model, picture, points, chunk, f"img@{number}" if number else "img")
            scores = torch.einsum("qc,qhw->chw", official_fused(classes, logits, False), masks.sigmoid())
            summed[:, *box] += F.interpolate(scores[None], window, mode="bilinear")[0]
            count[box] += 1
            number += 1
        scores = F.interpolate((summed / count)[None], (height, width), mode="bilinear")[0].softmax(0)
        total += scores.flip(-1) if flip else scores
        frames += 1
    assert number == len(drawn.kept)
    return total / frames


def ours(image: np.ndarray, model: PointViT, drawn: Drawn, recipe: Path, changes: dict) -> Tensor:
    """Ours, by the settings of a recipe and keys over them."""
    loaded, spec = load_recipe(recipe), plain_spec(CLASSES, "drawn")
    generate, classify, evaluate = (
        loaded.stage(kind, **{key: value for key, value in changes.items() if key in keys_of(kind)})
        for kind in (ProposalSettings, ClassifySettings, EvaluateSettings)
    )
    segmenter = Segmenter(evaluate, spec.things)
    classifier = MaskClassifier(model, classify, spec)
    pictures, average = classifier.pictures(image), None
    for record in GeneratedProposals(drawn, generate, spec, "").propose(image, "img"):
        (logits,) = classifier.scores([classifier.prompted(record)], [pictures(record.view)])
        view = segmenter.score(record, logits, [ALPHA])
        average = average or segmenter.running_average(view)
        average.add(*view.scored)
    return average.scores()[0]


CASES = {
    "official-oneformer": ("d2", False, "scales = [0.75, 1.0, 1.5]\nflip = true\n[classify]\nchunk = 5\n"),
    "official-internimage": (
        "mmseg1",
        True,
        "scales = [1.0, 1.25]\nflip = true\nwindow = [32, 64]\nstride = [32, 64]\n[classify]\nchunk = 5\n",
    ),
}
IMAGE = np.random.default_rng(3).integers(0, 256, (61, 83, 3), dtype=np.uint8)
IMAGE = resized(IMAGE[::8, ::8], 61, 83)


def both(name: str, folder: Path, **changes: object) -> tuple[Tensor, Tensor]:
    protocol, stretches, keys = CASES[name]
    recipe = folder / "r.toml"
    recipe.write_text(f'preset = "{name}"\nmanifest = "camvid"\n[generate-proposals]\nconfig = "x.py"\n{keys}')
    model, drawn = tiny_model(1), Drawn(protocol, stretches)
    model.mean.copy_(MEAN / 255), model.std.copy_(STD / 255)  # as DINOv2 has them
    with torch.inference_mode():
        found = ours(IMAGE, model, drawn, recipe, changes)
        if name == "official-oneformer":
            return found, oneformer(IMAGE, model, drawn, (0.75, 1.0, 1.5), 5)
        return found, internimage(IMAGE, model, drawn, (1.0, 1.25), 5, (32, 64))


@pytest.mark.parametrize("name", CASES)
def test_class_scores_are_those_of_the_authors(name: str, tmp_path: Path) -> None:
    found, theirs = both(name, tmp_path)
    assert theirs.std() > 0.01
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "key", "default"),
    [
        ("official-oneformer", "max_at", "image"),
        ("official-oneformer", "masks", "bounded"),
        ("official-oneformer", "frame", "image"),
        ("official-oneformer", "chunk", 0),
        ("official-oneformer", "formula", "raw"),
        ("official-oneformer", "protocol", "mmseg1"),
        ("official-internimage", "max_at", "image"),
        ("official-internimage", "masks", "bounded"),
        ("official-internimage", "frame", "image"),
        ("official-internimage", "chunk", 0),
        ("official-internimage", "formula", "renormalized"),
        ("official-internimage", "protocol", "mmseg1"),
    ],
)
def test_every_key_is_needed(name: str, key: str, default: object, tmp_path: Path) -> None:
    found, theirs = both(name, tmp_path, **{key: default})
    assert (found - theirs).abs().max() > 3e-5


def test_frames_are_resized_from_the_first_frame() -> None:
    """And the classifier's picture of a view, which knows the size between, is the generator's tensor."""
    drawn = Drawn("d2", False)
    plan = ViewPlan((0.75, 1.5), True, rescaled=True)
    views = [found.view for found in propose_views(drawn, IMAGE, plan)]
    between = drawn.resize(IMAGE)
    assert [view.through for view in views] == [between.shape[:2]] * 4
    for (frame, _, _), view, scale in zip(drawn.kept, views, (0.75, 0.75, 1.5, 1.5), strict=True):
        expected = drawn.resize(between, scale)
        assert (frame == (expected[:, ::-1] if view.flip else expected)).all()
        direct = drawn.resize(IMAGE, scale)
        assert direct.shape != expected.shape or (expected != direct).any()
        tensor = F.pad((torch.from_numpy(frame.copy()).permute(2, 0, 1) - MEAN) / STD, (0, 3, 0, 5))
        view = View(view.original, view.resized, tuple(tensor.shape[1:]), (8, 8), flip=view.flip, through=view.through)
        picture = (torch.from_numpy(prepare_view(IMAGE, view, (32, 48))) - MEAN) / STD
        theirs = F.interpolate(tensor[None], (32, 48), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(picture, theirs, atol=1e-5, rtol=0)


def test_a_generator_that_resizes_once_is_refused() -> None:
    once = SimpleNamespace(resize=Drawn("d2", False).resize)
    with pytest.raises(UsageError, match="resizes no frame again"):
        list(propose_views(once, IMAGE, ViewPlan(rescaled=True)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_cell_is_found_again_from_its_pixel(data: st.DataObject) -> None:
    """Where a cell is wider than a pixel of the original, whatever the window and whether it is flipped."""
    mask = np.array([data.draw(st.integers(1, 9)) for _ in "yx"])
    window = 4 * mask
    start = np.array([data.draw(st.integers(0, 9)) for _ in "yx"])
    whole = start + window + [data.draw(st.integers(0, 9)) for _ in "yx"]
    original = np.array([data.draw(st.integers(max(1, int(n) // 4 + 1), 3 * int(n))) for n in whole])
    original = np.minimum(original, 4 * whole)
    if (4 * original <= whole).any():
        return
    flip = data.draw(st.booleans())
    view = View(
        *(tuple(map(int, s)) for s in (original, whole, window, mask)), (*map(int, start), *map(int, window)), flip
    )
    row, col = (data.draw(st.integers(0, int(n) - 1)) for n in mask)
    logits = torch.zeros(1, *map(int, mask))
    logits[0, row, col] = 1
    found = normalize_cells(max_points(logits, view, "mmseg0", "mask"), view)
    assert found.tolist() == [np.float32([2 * row / mask[0] - 1, 2 * col / mask[1] - 1]).tolist()]


def test_padding_is_no_part_of_the_cells() -> None:
    view = View((12, 16), (12, 16), (16, 16), (4, 4))
    assert normalize_cells(np.array([9, 13]), view).tolist() == np.float32([2 * 8 / 12 - 1, 0.5]).tolist()


def test_equal_pixels_of_a_flipped_view() -> None:
    """The first of the image as it was seen is the last of a row of the upright image."""
    logits = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    found = {
        (at, flip): max_points(logits, View((1, 8), (1, 8), (1, 8), (1, 4), flip=flip), "d2", at).tolist()
        for at in ("image", "view")
        for flip in (False, True)
    }
    assert found == {
        ("image", False): [[0, 0]],
        ("view", False): [[0, 0]],
        ("image", True): [[0, 5]],
        ("view", True): [[0, 7]],
    }


def test_mask_prompts_have_no_other_frame() -> None:
    with pytest.raises(IncompatibleError, match="prompted with masks, which have no frame = 'view'"):
        MaskClassifier(tiny_model(prompt="mask"), ClassifySettings(frame="view"), plain_spec(CLASSES, "drawn"))


def test_presets_of_a_recipe_come_behind_its_keys(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"

    def written(first: str, then: str = "") -> Recipe:
        recipe.write_text(f'{first}manifest = "camvid"\n[generate-proposals]\nconfig = "x.py"\n{then}')
        return load_recipe(recipe)

    own = written('preset = "official-oneformer"\n', 'preset = "views-multiscale"\nmasks = "compact"\n')
    generate = own.stage(ProposalSettings, flip=False)
    assert (generate.max_at, generate.masks, len(generate.scales), generate.flip) == ("view", "compact", 6, False)
    assert own.stage(ClassifySettings, chunk=7).chunk == 7 and own.stage(ClassifySettings).frame == "view"
    with pytest.raises(InputError, match=r"official.*official-oneformer"):
        written('preset = "official"\n')
    with pytest.raises(UsageError, match='preset = "views-multiscale", which is none of a whole recipe: unknown key'):
        written('preset = "views-multiscale"\n')
    (tmp_path / "own.toml").write_text("[evaluate]\nalhpa = 1\n")
    with pytest.raises(UsageError, match=r"\[evaluate\] has no key 'alhpa'"):
        written(f'preset = "{tmp_path / "own.toml"}"\n')
    (tmp_path / "own.toml").write_text("[evaluate]\nalpha = 7\n")
    with pytest.raises(UsageError, match="alpha = 7"):
        written(f'preset = "{tmp_path / "own.toml"}"\n').stage(EvaluateSettings)


@pytest.mark.parametrize("path", sorted(shipped("stages/paper").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_paper_agree_with_the_preset_of_their_code(path: Path, tmp_path: Path) -> None:
    """One line above turns each into the authors' evaluation; nothing in it says otherwise but the number of points.

    Table 6 has another generator, and no code of theirs.
    """
    if path.stem in ("rows", "objects365-boxes") or "swin-l" in path.stem:
        return
    plain = load_recipe(path)
    name = "official-internimage" if plain.stage(EvaluateSettings).formula == "raw" else "official-oneformer"
    copy = tmp_path / path.name
    copy.write_text(f'preset = "{name}"\n{path.read_text(encoding="utf-8")}', encoding="utf-8")
    recipe, preset = load_recipe(copy), load_preset(name)
    for kind in (ProposalSettings, ClassifySettings, EvaluateSettings):
        table = next(n for n, k in TABLES.items() if k is kind)
        found = recipe.stage(kind)
        differing = {key for key, value in preset[table].items() if getattr(found, key) != value}
        assert differing <= {"chunk"}, (table, differing)
