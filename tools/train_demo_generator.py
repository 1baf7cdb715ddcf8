#!/usr/bin/env python
"""Train the generator of `vitp demo` on drawn scenes, on a CPU, and print how good its masks and its names are.

    python tools/train_demo_generator.py --out vitp_pipeline/demo/generator.safetensors

The paper starts from generators that draw good masks and name them badly. Here that comes about honestly: nothing is
corrupted, the generator is simply small, and it sees the scenes at half their size (the config's test pipeline),
where the fine textures that tell the classes of one group apart are blurred and aliased while shapes and colours
are not. It is the trade that a real generator makes for speed.

mmsegmentation trains Mask2Former with one mask per class; the targets here are one mask per segment, so that
touching things of one class become masks of their own and the panoptic stages have something to do.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from safetensors.torch import save_file
from torch import Tensor, nn

from vitp_pipeline.demo import scenes
from vitp_pipeline.generators.mmcv_ops import prepare_mmcv
from vitp_pipeline.generators.openmmlab import OpenMMLabGenerator

CONFIG = Path(scenes.__file__).with_name("generator_config.py")


class Sample:
    """What the trainer needs of a drawn scene.

    small: uint8 (3, h, w), as the test pipeline makes it. labels: class index of each segment, int64 (N,).
    masks: the share of each cell of `small` that a segment covers, float32 (N, h, w).
    """

    def __init__(self, scene: scenes.Scene, scale: tuple[int, int]) -> None:
        self.small = np.ascontiguousarray(mmcv.imrescale(scene.image, scale).transpose(2, 0, 1))
        self.labels = torch.tensor([segment.category.id - 1 for segment in scene.segments])
        ids = torch.from_numpy(scene.ids)[None]
        masks = ids == torch.tensor([segment.id for segment in scene.segments])[:, None, None]
        self.masks = F.adaptive_avg_pool2d(masks.float(), self.small.shape[1:])


def build(config: Config) -> nn.Module:
    """The config's model with fresh weights."""
    prepare_mmcv()
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def forward(model: nn.Module, samples: list[Sample]) -> tuple[list[Tensor], list[Tensor]]:
    """Class logits (B, Q, K + 1) and mask logits (B, Q, h, w) after every decoder layer."""
    images = torch.from_numpy(np.stack([sample.small for sample in samples])).float()
    preprocess = model.data_preprocessor
    return model.decode_head(model.extract_feat((images - preprocess.mean) / preprocess.std), [])


def train(model: nn.Module, samples: list[Sample], iterations: int, batch: int, rate: float, seed: int) -> None:
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0.0}], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=iterations, pct_start=0.05)
    rng = np.random.default_rng(seed)
    start, running = time.monotonic(), 0.0
    model.train()
    for step in range(1, iterations + 1):
        chosen = [samples[i] for i in rng.choice(len(samples), batch, replace=False)]
        scores, masks = forward(model, chosen)
        targets = [InstanceData(labels=sample.labels, masks=sample.masks) for sample in chosen]
        losses = model.decode_head.loss_by_feat(scores, masks, targets, [{}] * batch)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        running += (loss.item() - running) / min(step, 100)
        if step % 100 == 0:
            last = "  ".join(f"{name[5:]} {losses[name].item():.3f}" for name in ("loss_cls", "loss_mask", "loss_dice"))
            spent = time.monotonic() - start
            print(f"{step:6d}/{iterations}  {spent:5.0f} s  loss {running:6.2f}  last layer: {last}", flush=True)


def miou(counts: Tensor) -> float:
    """Mean IoU in per cent of a confusion matrix, rows = truth, over the classes present."""
    hit = counts.diag().double()
    union = counts.sum(0) + counts.sum(1) - hit
    return 100 * (hit[union > 0] / union[union > 0]).mean().item()


def class_map(scene: scenes.Scene) -> Tensor:
    """Class index per pixel, -1 where unlabelled, int64 (H, W)."""
    classes = torch.full(scene.ids.shape, -1)
    for segment in scene.segments:
        classes[torch.from_numpy(scene.ids == segment.id)] = segment.category.id - 1
    return classes


def evaluate(generator: OpenMMLabGenerator, held_out: list[scenes.Scene]) -> dict[str, float]:
    """How good the generator is, and how good it would be if only its names were right. Per cent.

    mIoU with its own names, and with each mask named by the truth at its maximum point, both in mmsegmentation's
    order: upsample to the network's input, sigmoid, sum over queries, resize, argmax. "names right" is the share of
    masks, weighted by 1 - p(no object), whose best class is the truth at the maximum point.
    """
    classes = generator.num_classes
    counts = {name: torch.zeros(classes, classes, dtype=torch.int64) for name in ("generator", "bound")}
    right = named = 0.0
    for scene in held_out:
        (proposals,) = generator.propose([scene.image])
        truth = class_map(scene)
        large = resize(proposals.mask_logits, proposals.view.padded)
        points = resize(large, truth.shape).flatten(1).argmax(1)
        label = truth.flatten()[points]
        own = proposals.class_logits.softmax(-1)
        weight = (1 - own[:, -1]) * (label >= 0)
        right += (weight * (own[:, :-1].argmax(1) == label)).sum().item()
        named += weight.sum().item()
        oracle = F.one_hot(label.clamp(min=0), classes) * weight[:, None]
        for name, probability in (("generator", own[:, :-1]), ("bound", oracle)):
            found = resize(torch.einsum("qk,qhw->khw", probability, large.sigmoid()), truth.shape).argmax(0)
            pairs = (truth * classes + found)[truth >= 0]
            counts[name] += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    return {
        "generator mIoU": miou(counts["generator"]),
        "bound mIoU": miou(counts["bound"]),
        "names right": 100 * right / named,
    }


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]


def save(model: nn.Module, classes: list[str], path: Path) -> None:
    """Weights as float16 safetensors; integers (batch counters) stay what they are."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"classes": json.dumps(classes), "source": "tools/train_demo_generator.py"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--scenes", type=int, default=2000, help="drawn training scenes")
    parser.add_argument("--held-out", type=int, default=40, help="drawn scenes to measure on")
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    config = Config.fromfile(CONFIG)
    scale = tuple(next(step.scale for step in config.test_pipeline if step.type == "Resize"))
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # init_weights logs a line per tensor
    torch.manual_seed(options.seed)
    model = build(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; drawing scenes", flush=True)
    training = [Sample(scenes.draw_scene(options.seed, "train", i), scale) for i in range(options.scenes)]
    train(model, training, options.iterations, options.batch, options.rate, options.seed)
    save(model, list(config.dataset_meta.classes), options.out)

    # Measured is what was written, read as a user's checkpoint would be.
    held_out = [scenes.draw_scene(options.seed, "val", i) for i in range(options.held_out)]
    figures = evaluate(OpenMMLabGenerator(CONFIG, options.out), held_out)
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.2f} MiB")
    for name, value in figures.items():
        print(f"{name:15s} {value:6.2f}")


if __name__ == "__main__":
    main()
