"""Every network of the pipeline on a GPU that is not there: fakes with torch's rules, and the CPU's results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.classifier.making import tiny_model
from tests.devices.fakes import devices_of, on_fake_gpu
from tests.devices.pretend import DeviceMismatchError, pretended_gpu
from vitp_pipeline.classifier.inference import image_logits
from vitp_pipeline.classifier.mask_prompt import make_classifier, mask_logits
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.generators.base import Generator
from vitp_pipeline.generators.ops.dcnv3 import DCNv3, dcnv3
from vitp_pipeline.generators.ops.deformable_attention import multi_scale_deformable_attn
from vitp_pipeline.generators.ops.internimage import InternImage
from vitp_pipeline.generators.ops.neighborhood_attention import _tiles, dilated_attention
from vitp_pipeline.generators.views import propose

GRID = 4 * 6
CLASSIFIERS: dict[str, dict[str, Any]] = {
    **{token: {"point_token": token} for token in ("linear", "patch", "rotary", "sampled")},
    "read-only": {"point_token": "patch", "attention": "read-only"},
    "two numbers, mlp": {"point_dim": 2, "head": "mlp"},
    "two layers": {"feature_layers": (1, 3)},
    "batch norm": {"norm": "batch", "feature_layers": (2, 3)},
    "registers": {"backbone": "vit_small_patch14_reg4_dinov2"},
    "dinov3": {"backbone": "vit_small_patch16_dinov3", "point_token": "rotary"},
    "dinov3, linear": {"backbone": "vit_small_patch16_dinov3"},
    "eva": {"backbone": "eva02_tiny_patch14_224", "point_token": "rotary"},
    "mixed": {"backbone": "vit_small_patch16_rope_mixed_ape_224", "point_token": "rotary"},
    "mixed, sampled": {"backbone": "vit_small_patch16_rope_mixed_ape_224", "point_token": "sampled"},
}
PROMPTED: dict[str, dict[str, Any]] = {
    "attention": {},
    "maft": {"mask_form": "maft", "depth": 2, "maft_layers": 2},
}


def classifier(name: str) -> PointViT:
    return tiny_model(**CLASSIFIERS[name])


def released() -> PointViT:
    """With positions as released weights have them, which are resampled at every forward."""
    args = json.dumps({"embed_dim": 32, "depth": 2, "num_heads": 2})
    return tiny_model(
        backbone="vit_small_patch14_dinov2", backbone_args=args, image_size=(28, 42), pos_embed="offset", point_dim=2
    )


def masked(form: str) -> PointViT:
    torch.manual_seed(0)
    args = json.dumps({"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8})
    config = ModelConfig("vit_tiny_patch16_224", ("a", "b", "c"), (32, 48), args, prompt="mask")
    return make_classifier(ModelConfig(**{**vars(config), **PROMPTED[form]})).eval()


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def padding() -> Tensor:
    return torch.arange(5) < torch.tensor([[5], [3]])


# ---- fakes: torch's own rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_of_fakes(name: str) -> None:
    numbers = CLASSIFIERS[name].get("point_dim", 4)
    for valid in (None, padding()):
        logits = on_fake_gpu(classifier(name), draw(2, 3, 32, 48), draw(2, 5, numbers), valid)
        assert logits.shape == (2, 5, 3) and devices_of(logits) == {"cuda:0"}


def test_a_released_classifier_of_fakes() -> None:
    assert devices_of(on_fake_gpu(released(), draw(2, 3, 28, 42), draw(2, 5, 2), padding())) == {"cuda:0"}


@pytest.mark.parametrize("form", PROMPTED)
def test_a_mask_prompted_classifier_of_fakes(form: str) -> None:
    logits = on_fake_gpu(masked(form), draw(2, 3, 32, 48), draw(2, 5, GRID))
    assert logits.shape == (2, 5, 3) and devices_of(logits) == {"cuda:0"}


def test_in_training_padding_is_no_part_of_a_batch_norm() -> None:
    """Its points are chosen by value, of which fakes have none: here the pretended GPU alone."""
    model = classifier("batch norm").train()
    here = model(draw(2, 3, 32, 48), draw(2, 5, 2), padding())
    model = classifier("batch norm").train()
    with pretended_gpu() as device, torch.no_grad():
        there = model.to(device)(*(given.to(device) for given in (draw(2, 3, 32, 48), draw(2, 5, 2), padding())))
        torch.testing.assert_close(there.cpu(), here.detach(), atol=1e-5, rtol=1e-5)


def test_a_tensor_of_the_cpu_in_the_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of a mutant: the mask of padded points stays on the CPU."""

    def left_behind(self: PointViT, total: int, count: int, valid: Tensor | None, device: torch.device) -> Tensor:
        return (torch.arange(total) >= count)[None, None, None]

    monkeypatch.setattr(PointViT, "_attention_mask", left_behind)
    with pytest.raises(RuntimeError, match=r"cuda:0.*cpu|cpu.*cuda:0|device"):
        on_fake_gpu(classifier("patch"), draw(2, 3, 32, 48), draw(2, 5, 4))
    with pytest.raises(DeviceMismatchError), pretended_gpu() as device, torch.no_grad():
        classifier("patch").to(device)(draw(2, 3, 32, 48).to(device), draw(2, 5, 4).to(device))


OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "dcnv3": (dcnv3, (draw(2, 6, 5, 8), draw(2, 6, 5, 36), draw(2, 6, 5, 18), 2)),
    "dcnv3 with stride": (dcnv3, (draw(1, 6, 6, 8), draw(1, 3, 3, 36), draw(1, 3, 3, 18), 2, 3, 2)),
    "deformable attention": (
        lambda value, places, weights, sizes: multi_scale_deformable_attn(value, sizes(), places, weights),
        (draw(2, 24, 3, 4), draw(2, 6, 3, 2, 2, 2), draw(2, 6, 3, 2, 2), lambda: torch.tensor([(4, 5), (2, 2)])),
    ),
    "neighborhood attention": (dilated_attention, (*(draw(1, 12, 10, 2, 4) for _ in range(3)), draw(2, 5, 5), 3, 2)),
}


@pytest.fixture(autouse=True)
def tiles_are_not_kept() -> Any:
    """Those that were made of fakes would be used again on real tensors."""
    _tiles.cache_clear()
    yield
    _tiles.cache_clear()


@pytest.mark.parametrize(
    "name", [name for name in OPERATORS if name not in ("deformable attention", "neighborhood attention")]
)
def test_an_operator_of_fakes(name: str) -> None:
    """Not those that read sizes from a tensor, or make tiles by value."""
    function, given = OPERATORS[name]
    assert devices_of(on_fake_gpu(function, *given)) == {"cuda:0"}


@pytest.mark.parametrize("center", [False, True])
def test_dcnv3_layer_of_fakes(center: bool) -> None:
    assert devices_of(on_fake_gpu(DCNv3(8, 2, center_feature_scale=center).eval(), draw(2, 6, 5, 8))) == {"cuda:0"}


def internimage(**changes: Any) -> InternImage:
    sizes: dict[str, Any] = {"channels": 16, "groups": (2, 4, 8, 16), "depths": (1, 1, 3, 1), "drop_path_rate": 0.0}
    torch.manual_seed(0)
    return InternImage(**{**sizes, **changes}).eval()


HUGE = {
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "level2_post_norm": True,
    "level2_post_norm_block_ids": (0, 2),
    "res_post_norm": True,
}


@pytest.mark.parametrize("settings", [{"layer_scale": 1.0}, HUGE], ids=["T", "H"])
def test_internimage_of_fakes(settings: dict[str, Any]) -> None:
    maps = on_fake_gpu(internimage(**settings), draw(1, 3, 32, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 8, 16), (32, 4, 8), (64, 2, 4), (128, 1, 2)]
    assert devices_of(maps) == {"cuda:0"}


# ---- the pretended GPU: the CPU's results ----------------------------------------------------------------------------


def compared(module: nn.Module | Callable[..., Any], *given: Any) -> None:
    """Call a module or function on the CPU and on the pretended GPU: results agree to float32 rounding."""
    with torch.no_grad():
        here = module(*given)
        with pretended_gpu() as device:
            if isinstance(module, nn.Module):
                module = module.to(device)
            there = module(*(each.to(device) if isinstance(each, Tensor) else each for each in given))
            assert devices_of(there) == {"cuda:0"}
            here, there = (x if isinstance(x, list | tuple) else [x] for x in (here, there))
            for one, other in zip(here, there, strict=True):
                torch.testing.assert_close(other.cpu(), one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator(name: str) -> None:
    compared(OPERATORS[name][0], *OPERATORS[name][1])


@pytest.mark.parametrize("settings", [{"layer_scale": 1.0}, HUGE], ids=["T", "H"])
def test_internimage(settings: dict[str, Any]) -> None:
    compared(internimage(**settings), draw(1, 3, 32, 64))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["linear", "patch", "dinov3", "mixed", "two numbers, mlp"])
def test_logits_of_points(name: str, precision: str) -> None:
    """Different numbers of points, flipped as well, and in chunks; under autocast the point layer stays in float32."""
    model, pixels = classifier(name), (draw(2, 3, 32, 48) * 127 + 128).to(torch.uint8)
    points = [draw(5, 2), draw(3, 2)]
    logits = [image_logits(model, pixels, points, True, precision, chunk, ("a", "b")) for chunk in (0, 2)]
    with pretended_gpu() as device:
        there, given = model.to(device), [p.to(device) for p in points]
        for chunk, expected in zip((0, 2), logits, strict=True):
            found = image_logits(there, pixels.to(device), given, True, precision, chunk, ("a", "b"))
            for one, other in zip(expected, found, strict=True):
                slack = 1e-4 if precision == "float32" else 0.1 * float(one.abs().max())
                torch.testing.assert_close(other.cpu(), one, atol=slack, rtol=0)


@pytest.mark.parametrize("form", PROMPTED)
def test_logits_of_masks(form: str) -> None:
    model, pixels, coverage = masked(form), (draw(2, 3, 32, 48) * 127 + 128).to(torch.uint8), draw(2, 5, GRID).abs()
    here = mask_logits(model, pixels, coverage, flip=True, precision="float32")
    with pretended_gpu() as device:
        there = mask_logits(model.to(device), pixels.to(device), coverage.to(device), True, "float32")
        torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def proposed(generator: Generator) -> list[list[np.ndarray]]:
    found = propose(generator, [picture(50, 75), picture(75, 50)])
    return [[p.mask_logits.cpu().numpy(), p.class_logits.cpu().numpy()] for p in found]


def same_proposals(make: Callable[[str], Generator]) -> None:
    first = make("cpu")
    here, weights = proposed(first), first._model.state_dict()  # type: ignore[attr-defined]
    with pretended_gpu() as device:
        generator = make(str(device))
        model: nn.Module = generator._model  # type: ignore[attr-defined]
        model.load_state_dict(weights)  # random numbers may be drawn otherwise
        assert devices_of(list(model.parameters())) == {"cuda:0"}
        for one, other in zip(here, proposed(generator), strict=True):
            for expected, got in zip(one, other, strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    "kind", ["oneformer", "oneformer on dinat", "mask2former", "maskformer", "eomt", "eomt_dinov3"]
)
def test_generators_of_transformers(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.generators.huggingface.test_adapter import DINAT, write_config
    from vitp_pipeline.generators.huggingface.adapter import TransformersGenerator

    kind, _, dinat = kind.partition(" on ")
    config = write_config(tmp_path, kind, **({"backbone_config": DINAT} if dinat else {}))
    same_proposals(lambda device: TransformersGenerator(config, device, seed=1))


def test_rf_detr(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.generators.huggingface.test_rf_detr import make
    from vitp_pipeline.generators.huggingface.folder import open_pretrained
    from vitp_pipeline.generators.huggingface.rf_detr import RfDetrGenerator

    make(tmp_path)
    same_proposals(lambda device: RfDetrGenerator(open_pretrained(tmp_path / "config.json"), device, 0))


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_segment_anything(kind: str, tmp_path: Path) -> None:
    """Prompts, crops, filters and non-maximum suppression with it."""
    pytest.importorskip("transformers")
    from tests.generators.huggingface.sam_making import ALL, write_config
    from vitp_pipeline.generators.huggingface.folder import open_pretrained
    from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid
    from vitp_pipeline.generators.huggingface.segment_anything import SegmentAnythingGenerator

    model, grid = open_pretrained(write_config(tmp_path, kind)), PromptGrid(points_per_side=2, **ALL)
    same_proposals(lambda device: SegmentAnythingGenerator(model, device, 1, grid))


@pytest.mark.parametrize("library", ["mmseg", "mmdet"])
def test_generators_of_openmmlab(library: str, tmp_path: Path) -> None:
    from tests.generators.openmmlab.test_adapter import tiny_config
    from tests.generators.test_conformance import MMDET
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

    (tmp_path / "tiny.py").write_text(tiny_config() if library == "mmseg" else MMDET)
    same_proposals(lambda device: OpenMMLabGenerator(tmp_path / "tiny.py", None, device, seed=1))
