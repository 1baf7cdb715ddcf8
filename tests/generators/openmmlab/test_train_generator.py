"""tools/train_generator.py: it learns, continues where it was stopped, and writes what the adapter reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine import Config

from vitp_pipeline.datasets import IGNORE, Dataset, load_manifest
from vitp_pipeline.demo.scenes import draw_scenes
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator
from vitp_pipeline.generators.views import propose

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[3] / "tools")
    import train_generator
    from generator_config import generator_config

SMALL = ["--backbone", "test_efficientnet", "--queries", "5", "--channels", "32", "--crop", "64", "96", "--batch", "2"]
SHARED: dict[str, dict[str, Any]] = {  # what is not a default
    "ccp": {"crop": (320, 224)},
    "camvid": {"crop": (224, 320), "ignore": 11},
    "coco-sample": {"crop": (320, 320), "queries": 60, "channels": 96},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, "train", 3, seed=0)
    return folder


def run(scenes: Path, out: Path, iterations: int, *more: str, init: str = "random") -> None:
    words = ["demo", "--data-root", str(scenes), "--out", str(out), "--init", init, "--iterations", str(iterations)]
    train_generator.main([*words, *SMALL, "--save-every", "1", *more])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_adapter_reads_what_was_trained(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "g", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.pth", "g.py"]
    generator = OpenMMLabGenerator(tmp_path / "g.py", tmp_path / "g.pth")
    data = Dataset(load_manifest("demo"), scenes, "train")
    assert generator.classes == data.spec.class_names and generator.num_queries == 5
    image = data.read_image(data.samples[0])
    (proposals,) = propose(generator, [image])
    assert proposals.class_logits.shape == (5, 13) and torch.isfinite(proposals.mask_logits).all()


@pytest.mark.slow
def test_a_stopped_training_continues_to_the_same_weights(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenes, tmp_path / "whole", 3)
    train, norms = train_generator.train, "backbone.timm_model.bn1"

    def stopped(model: Any, *given: Any) -> Iterator[int]:
        for done in train(model, *given):
            yield done
            if done == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(train_generator, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, tmp_path / "g", 3)
    monkeypatch.setattr(train_generator, "train", train)
    with pytest.raises(SystemExit, match="--resume"):
        run(scenes, tmp_path / "g", 3)
    with pytest.raises(SystemExit, match="other settings"):
        run(scenes, tmp_path / "g", 3, "--resume", "--seed", "1")
    early = torch.load(tmp_path / "g.resume.pth", weights_only=True)
    run(scenes, tmp_path / "g", 3, "--resume")
    found = weights(tmp_path / "g.pth")
    assert early["done"] == 2 and not (tmp_path / "g.resume.pth").exists()
    assert same(found, weights(tmp_path / "whole.pth")) and not same(found, early["model"])
    frozen = [name for name in found if name.startswith(norms)]
    assert len(frozen) == 5 and all(torch.equal(found[name], early["model"][name]) for name in frozen)
    moved = [
        name for name in found if name.startswith("backbone.") and not torch.equal(found[name], early["model"][name])
    ]
    assert moved


def test_a_training_starts_from_another_generator(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but tensors of other shapes, here the queries."""
    run(scenes, tmp_path / "one", 1)
    run(
        scenes,
        tmp_path / "two",
        1,
        "--queries",
        "4",
        "--rate",
        "0",
        "--backbone-rate",
        "0",
        init=str(tmp_path / "one.pth"),
    )
    one, two = weights(tmp_path / "one.pth"), weights(tmp_path / "two.pth")
    other = {name for name in one if one[name].shape != two[name].shape}
    assert other == {"decode_head.query_embed.weight", "decode_head.query_feat.weight"}
    assert same({n: v for n, v in one.items() if n not in other}, {n: v for n, v in two.items() if n not in other})
    assert f"random: {', '.join(sorted(other))}" in capsys.readouterr().out


def test_training_crops_keep_labels_on_their_pixels() -> None:
    """Every label has its own gray level, so crops can be compared with themselves."""
    labels = np.full((90, 120), IGNORE, np.int16)
    labels[20:60, 30:80], labels[50:85, 10:50] = 3, 7
    gray = np.select([labels == 3, labels == 7], [100, 200], 20).astype(np.uint8)
    image = np.stack([gray, gray // 2, gray // 4], -1)
    flipped = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pixels, truth = train_generator.training_crop(image, labels, (64, 80), (0.8, 1.2), rng)
        assert pixels.shape[1:] == truth.shape[1:] and pixels.dtype == torch.uint8
        assert pixels.shape[1] <= 64 and pixels.shape[2] <= 80 and set(truth.unique().tolist()) <= {3, 7, 255}
        red, blue = pixels[2].float(), pixels[0].float()  # BGR
        assert (red - 4 * blue).abs().max() <= 16
        levels = [float(red[truth[0] == value].median()) for value in (255, 3, 7) if (truth == value).any()]
        assert levels == sorted(levels) and len(levels) >= 2
        inside = (red > 2.5 * levels[0]) == (truth[0] != 255)
        assert inside.float().mean() > 0.97
        flipped.add(bool((truth[0] == 7).float().mean(0).argmax() > (truth[0] == 3).float().mean(0).argmax()))
    assert flipped == {False, True}


def test_every_image_is_used_once_an_epoch() -> None:
    for epoch in range(3):
        assert sorted(train_generator.order(0, epoch, 7)) == list(range(7))
    assert train_generator.order(0, 0, 7).tolist() != train_generator.order(0, 1, 7).tolist()


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inside) for key, inside in value.items()}
    return [plain(inside) for inside in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", SHARED)
def test_configs_of_the_real_generators(shared: Path, name: str) -> None:
    """The real weights fit into the model, every tensor, and their config is this one."""
    stem = shared / f"weights/mask2former-efficientnet_lite0-{name}"
    theirs = Config.fromfile(f"{stem}.py").to_dict()
    meta = theirs["dataset_meta"]
    config = generator_config(
        list(meta["classes"]), meta["palette"], "tf_efficientnet_lite0", [24, 40, 112, 320], **SHARED[name]
    )
    assert plain(config) == plain(theirs)
    train_generator.build(config).load_state_dict(weights(stem.with_name(f"{stem.name}.pth")), strict=True)
