#!/usr/bin/env python
"""Train a small generator on a dataset, on a CPU: mmsegmentation's Mask2Former on a timm backbone.

    W=weights/mask2former-efficientnet_lite0
    python tools/train_generator.py camvid --data-root data/camvid --out $W-camvid
    python tools/train_generator.py coco-panoptic --data-root data/coco --out $W-coco-sample
    python tools/train_generator.py clothing-co-parsing --data-root data/ccp --init $W-camvid.pth --out $W-ccp

OUT.pth has the weights, OUT.py model and test pipeline: `checkpoint` and `config` of a recipe. Any manifest will do;
these three have their own defaults (PRESETS). Backbones come with ImageNet's weights, which timm downloads, or
everything comes from another generator's file, but tensors of another shape (the class layer), as for the clothes.

A training that was stopped continues with `--resume` from the last of its states, OUT.resume.pth, one every
`--save-every` iterations. What an iteration draws depends on seed and iteration alone, so the result is that of a
training that was not stopped. (mmengine's Runner would draw anew; so the loop, which is short, is written out here.)
"""

from __future__ import annotations

import argparse
import io
import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import timm
import torch
from generator_config import STRIDES, generator_config
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from torch import Tensor, nn

from vitp_pipeline.datasets import IGNORE, Dataset, load_manifest
from vitp_pipeline.generators.checkpoint import read_checkpoint
from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv
from vitp_pipeline.storage.atomic_files import write_whole

PRESETS: dict[str, dict[str, Any]] = {
    "camvid": {"iterations": 2400, "crop": (224, 320), "scale": (0.6, 1.1)},
    "coco-panoptic": {"iterations": 1300, "crop": (320, 320), "scale": (0.55, 1.1), "queries": 60, "channels": 96},
    "clothing-co-parsing": {"split": "fine", "iterations": 1600, "crop": (320, 224), "scale": (0.6, 1.05)},
}
DEFAULTS = {
    "split": "train",
    "crop": (320, 320),
    "scale": (0.6, 1.1),
    "iterations": 2400,
    "queries": 30,
    "channels": 64,
}
UNLABELED = 255
PLACES = 4
"""Random places of a crop, of which the one with most classes is taken."""


def build(config: dict[str, Any]) -> nn.Module:
    """Build the config's model with random weights; the backbone's batch norms are frozen once it trains (`freeze`)."""
    prepare_mmcv()
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # init_weights logs a line per tensor
    model = MODELS.build(Config(config).model)
    model.init_weights()
    return model


def initialize(model: nn.Module, init: str, backbone: str) -> None:
    """Load what the training starts from: `random`, `imagenet`, or the file of another generator."""
    if init == "imagenet":
        made = timm.create_model(backbone, features_only=True, out_indices=(1, 2, 3, 4), pretrained=True)
        model.backbone.timm_model.load_state_dict(made.state_dict())
    elif init != "random":
        theirs, ours = read_checkpoint(init).state_dict, model.state_dict()
        fitting = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
        model.load_state_dict(fitting, strict=False)
        print(f"{init}: {len(fitting)} of {len(ours)} tensors; random: {', '.join(sorted(set(ours) - set(fitting)))}")


def freeze(backbone: nn.Module) -> None:
    """Keep statistics and weights of batch norms as they are: batches of four are too small for them."""
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


def parameter_groups(model: nn.Module, rate: float, backbone_rate: float) -> list[dict[str, Any]]:
    """Give the backbone its own rate; biases, norms and embeddings do not decay."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "query_" in name or "level_e" in name
            groups.setdefault((name.startswith("backbone."), plain), []).append(parameter)
    return [
        {"params": params, "lr": backbone_rate if inside else rate} | ({"weight_decay": 0.0} if plain else {})
        for (inside, plain), params in groups.items()
    ]


def training_crop(
    image: np.ndarray, labels: np.ndarray, crop: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Resize an image at random, cut out a part with many classes, flip it and change its brightness.

    Args:
        image: uint8 RGB (H, W, 3). labels: integer (H, W), IGNORE where unlabeled.
        crop: largest (height, width) of the part. scale: range of the factor.
    Returns:
        (3, h, w) uint8 BGR, (1, h, w) int64 labels with UNLABELED.
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in labels.shape)
    image = mmcv.imresize(image, (width, height), interpolation="area" if factor < 1 else "bilinear")
    labels = mmcv.imresize(
        np.where(labels == IGNORE, UNLABELED, labels).astype(np.uint8), (width, height), interpolation="nearest"
    )
    places = [
        (rng.integers(max(height - crop[0], 0) + 1), rng.integers(max(width - crop[1], 0) + 1)) for _ in range(PLACES)
    ]
    parts = [np.s_[top : top + crop[0], left : left + crop[1]] for top, left in places]
    part = max(parts, key=lambda part: len(set(np.unique(labels[part]).tolist()) - {UNLABELED}))
    image, labels = image[part].astype(np.float32), labels[part]
    image = np.clip(np.rint(image * rng.uniform(0.8, 1.2)), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    pixels = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))[None]


@lru_cache(2)
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, 1, epoch)).permutation(count)


def batch_of(data: Dataset, step: int, options: argparse.Namespace) -> dict[str, list[Any]]:
    """Read the images of an iteration, in the form that mmsegmentation's models take. Every image once an epoch."""
    from mmseg.structures import SegDataSample

    rng = np.random.default_rng((options.seed, 0, step))
    torch.manual_seed(int(rng.integers(2**62)))  # for the points of the losses
    inputs, samples = [], []
    for place in range(step * options.batch, (step + 1) * options.batch):
        epoch, number = divmod(place, len(data))
        sample = data.samples[int(order(options.seed, epoch, len(data))[number])]
        image, labels = data.read_image(sample), data.read_semantic(sample)
        pixels, truth = training_crop(image, labels, options.crop, options.scale, rng)
        inputs.append(pixels)
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=truth)))
    return {"inputs": inputs, "data_samples": samples}


def train(model: nn.Module, data: Dataset, options: argparse.Namespace) -> Iterator[int]:
    """Train from the last state on, and give the number of iterations done after each."""
    freeze(model.backbone)
    optimizer = torch.optim.AdamW(parameter_groups(model, options.rate, options.backbone_rate), weight_decay=0.05)
    rates = [group["lr"] for group in optimizer.param_groups]
    state_file = beside(options.out, ".resume.pth")
    done = restored(state_file, model, optimizer, options)
    begin, first = time.monotonic(), done
    while done < options.iterations:
        model.train()
        freeze(model.backbone)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - done / options.iterations) ** 0.9
        batch = model.data_preprocessor(batch_of(data, done, options), training=True)
        loss, parts = model.parse_losses(model.loss(batch["inputs"], batch["data_samples"]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        if done % options.save_every == 0 or done == options.iterations:
            last = "  ".join(f"{n} {parts[f'decode.loss_{n}'].item():.3f}" for n in ("cls", "mask", "dice"))
            each = (time.monotonic() - begin) / (done - first)
            print(f"{done:6d}/{options.iterations}  {each:5.2f} s  loss {loss.item():6.2f}  {last}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
            save(state | {"settings": settings_of(options)}, state_file)
        yield done


def restored(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, options: argparse.Namespace) -> int:
    """Load a training's last state; the number of iterations that it has done, 0 where there is none."""
    if not path.exists():
        return 0
    if not options.resume:
        raise SystemExit(f"{path}: a training that was stopped. Continue it with --resume, or remove the file")
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings_of(options):
        raise SystemExit(f"{path}: is of a training with other settings: {state['settings']}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the result depends on."""
    others = ("out", "data_root", "resume", "save_every")
    return {name: value for name, value in sorted(vars(options).items()) if name not in others}


def beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}{ending}")


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file of torch, whole or not at all."""
    made = io.BytesIO()
    torch.save(content, made)
    write_whole(path, made.getvalue())


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a manifest")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="files to write, without their .pth and .py")
    parser.add_argument("--split", help="training images (default: train; fine of clothing-co-parsing)")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="of timm, with features at strides 4 to 32")
    parser.add_argument("--init", default="imagenet", help="imagenet, random, or a generator's .pth")
    parser.add_argument("--queries", type=int)
    parser.add_argument("--channels", type=int, help="width of the decoders, a multiple of 32")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="factor of the resize before it")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4e-4, help="first learning rate of AdamW")
    parser.add_argument("--backbone-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=50, metavar="N")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    for name, value in (DEFAULTS | PRESETS.get(options.dataset, {})).items():
        given = getattr(options, name)
        setattr(options, name, value if given is None else tuple(given) if isinstance(given, list) else given)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    spec = load_manifest(options.dataset)
    data = Dataset(spec, options.data_root, options.split)
    features = timm.create_model(options.backbone, features_only=True, out_indices=(1, 2, 3, 4)).feature_info
    if tuple(features.reduction()) != STRIDES:
        raise SystemExit(
            f"--backbone {options.backbone}: its features have strides {features.reduction()}, not {STRIDES}"
        )
    config = generator_config(
        list(spec.class_names),
        [list(info.color) for info in spec.classes],
        options.backbone,
        features.channels(),
        options.crop,
        options.queries,
        options.channels,
        UNLABELED,
    )
    torch.manual_seed(options.seed)
    model = build(config)
    initialize(model, options.init, options.backbone)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{len(data)} images, {len(spec.classes)} classes, {parameters:.2f} M parameters", flush=True)
    for _ in train(model, data, options):
        pass
    meta = {"dataset_meta": config["dataset_meta"], "settings": settings_of(options)}
    save({"state_dict": model.state_dict(), "meta": meta}, beside(options.out, ".pth"))
    write_whole(beside(options.out, ".py"), Config(config).pretty_text)
    beside(options.out, ".resume.pth").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
