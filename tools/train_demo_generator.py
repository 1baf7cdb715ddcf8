#!/usr/bin/env python
"""Train the generator of `vitp demo` on drawn scenes, on a CPU, and print how good its masks and its classes are.

    python tools/train_demo_generator.py --out vitp_pipeline/demo/generator.safetensors

The paper starts from generators with good masks and poor classification. The scenes are designed as such a case: the
textures that distinguish the classes of a group vanish when a scene is halved, as in the config's test pipeline, while
shapes remain and shades give a hint. Masks and classes of the generator are not altered: it is small and its input has
a lower resolution than the classifier's, as with real generators, but here the gap is wide by design.

mmsegmentation trains Mask2Former with one mask per class; the targets here are one mask per segment, so that
touching things of one class become masks of their own and the panoptic stages have something to do.

About 13 minutes of one core. The weights in the repository came out of it with the defaults; on 40 held-out scenes:
mIoU 53.8 (89.2 if every mask were classified correctly), PQ 57.5 (75.3), 56.8 % of the masks classified correctly.
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

from vitp_pipeline.artifacts.mask_codec import PRESETS
from vitp_pipeline.config.settings import EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import IGNORE, GroundTruthSegment, load_manifest
from vitp_pipeline.demo import scenes
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator
from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv
from vitp_pipeline.generators.views import propose
from vitp_pipeline.metrics.panoptic import PanopticQuality
from vitp_pipeline.metrics.semantic import Confusion
from vitp_pipeline.postprocess.mask_labels import label_at_points
from vitp_pipeline.postprocess.segmenter import Segmenter
from vitp_pipeline.shipped import find_toml
from vitp_pipeline.stages.generate_proposals import make_record

CONFIG = Path(scenes.__file__).with_name("generator_config.py")
KEEP_ALL = ProposalSettings("", masks="lossless", **PRESETS["lossless"])


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


def class_map(scene: scenes.Scene) -> np.ndarray:
    """Class index per pixel, IGNORE where unlabeled, int16 (H, W)."""
    classes = np.full(scene.ids.shape, IGNORE, np.int16)
    for segment in scene.segments:
        classes[scene.ids == segment.id] = segment.category.id - 1
    return classes


def evaluate(generator: OpenMMLabGenerator, held_out: list[scenes.Scene]) -> None:
    """Print mIoU and PQ of the generator, and of its masks classified by the truth at their maximum points."""
    classes = generator.num_classes
    spec = load_manifest(find_toml("demo", "manifests"))
    things = [category.isthing for category in scenes.CATEGORIES]
    segmenter = Segmenter(EvaluateSettings(alpha=0.0, object_threshold=0.4), things)
    semantic = [Confusion(classes) for _ in range(2)]
    panoptic = [PanopticQuality(classes, things) for _ in range(2)]
    right = weighed = 0.0
    for scene in held_out:
        (proposals,) = propose(generator, [scene.image])
        record = make_record(proposals, generator.protocol, KEEP_ALL, spec, "scene", "scene")
        truth = class_map(scene)
        truths = [GroundTruthSegment(s.id, s.category.id - 1, False) for s in scene.segments]
        labels = label_at_points(truth, record.points["max"])
        view = segmenter.score(record, None, labels=[labels])
        best = view.probs[0].argmax(1).numpy()
        weight = (1 - view.no_object[0]).numpy() * (labels != IGNORE)
        right, weighed = right + (weight * (best == labels)).sum(), weighed + weight.sum()
        maps = zip(segmenter.semantic([view]), segmenter.panoptic(view), strict=True)
        for which, (found, (ids, segments)) in enumerate(maps):
            semantic[which].update(found, truth)
            panoptic[which].update(ids, segments, scene.ids, truths)
    for which, title in enumerate(("generator", "upper bound")):
        scores = panoptic[which].summary()["all"]
        print(
            f"{title:10s} mIoU {100 * semantic[which].miou():6.2f}   PQ {100 * scores.pq:6.2f}   "
            f"SQ {100 * scores.sq:6.2f}   RQ {100 * scores.rq:6.2f}"
        )
    print(f"masks classified correctly, weighted by 1 - p(no object): {100 * right / weighed:.1f} %")


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
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.2f} MiB")
    evaluate(OpenMMLabGenerator(CONFIG, options.out), held_out)


if __name__ == "__main__":
    main()
