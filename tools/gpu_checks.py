"""The checks of `tools/gpu_check.py`: a device against the CPU on the same inputs, or timed beside a bare model.

A check takes a `Bench` and returns figures; it raises what fails, an AssertionError where a figure is beyond its
tolerance.

Tolerances are relative to the largest logit: what reaches logits of 24 layers from the rounding of a product (float32
with TF32 in convolutions, and float16: 2⁻¹¹; bfloat16: 2⁻⁸).
"""

from __future__ import annotations

import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np

from tools.gpu_bench import Bench, beside, propose, recipe, records, reference, relative, train, within

TOLERANCES = {"float32": 5e-3, "bfloat16": 5e-2, "float16": 1e-2, "compile": 5e-2}
"""Largest difference of a logit, over the largest logit."""
LOSS = {"float32": 5e-3, "bfloat16": 5e-2, "float16": 2e-2, "compile": 5e-2}
"""Largest difference of the loss of the first epoch, over the loss."""
SAME_POINTS, SAME_CLASSES, POINTS = 0.98, 0.98, 1.0
"""Least shares of equal points and of equal classes; largest difference of mIoU and PQ, in points of 100."""

Check = Callable[[Bench], dict[str, Any]]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


@check
def forward(bench: Bench) -> dict[str, Any]:
    """The classifier's logits in each precision, with padded points, for a plain and a rotary backbone."""
    import torch

    from vitp_pipeline.classifier.inference import image_logits
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.model_config import ModelConfig

    figures: dict[str, Any] = {}
    side, args = (64, '{"depth": 2}') if bench.small else (224, "")
    for name, token in (("vit_small_patch16_224", "linear"), ("vit_small_patch16_dinov3", "rotary")):
        torch.manual_seed(0)
        classes = tuple(f"class {k}" for k in range(20))
        model = PointViT(ModelConfig(name, classes, (side, side), args, point_token=token)).eval()
        with torch.no_grad():
            model.head.weight.mul_(20)
        images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
        points = [torch.rand(count, 2) * 2 - 1 for count in (50, 30)]
        expected = torch.cat(image_logits(model, images, points, True, "float32")).numpy()
        model = model.to(bench.device)
        given = images.to(bench.device), [own.to(bench.device) for own in points]
        for precision in ("float32", "bfloat16", "float16"):
            found = torch.cat(image_logits(model, *given, True, precision)).cpu().numpy()
            figures[f"{token}_{precision}"] = relative(found, expected)
            figures[f"{token}_{precision}_classes"] = float((found.argmax(1) == expected.argmax(1)).mean())
    limits = {f"{t}_{p}": TOLERANCES[p] for t in ("linear", "rotary") for p in ("float32", "bfloat16", "float16")}
    return within(figures, **limits, linear_float32_classes_least=SAME_CLASSES)


@check
def operators(bench: Bench) -> dict[str, Any]:
    """The plain-torch DCNv3, deformable attention and neighborhood attention: results, gradients, time and memory."""
    import torch

    from vitp_pipeline.generators.ops.dcnv3 import dcnv3
    from vitp_pipeline.generators.ops.deformable_attention import multi_scale_deformable_attn
    from vitp_pipeline.generators.ops.neighborhood_attention import dilated_attention

    draw, side = torch.Generator().manual_seed(0), 16 if bench.small else 64
    random = lambda *shape: torch.rand(shape, generator=draw)  # noqa: E731
    sizes = [(side, side), (side // 2, side // 2), (side // 4, side // 4)]
    total = sum(height * width for height, width in sizes)
    cases: dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]] = {
        "dcnv3": (
            lambda value, offset, mask: dcnv3(value, offset, mask.unflatten(-1, (4, 9)).softmax(-1).flatten(-2), 4),
            [random(1, side, side, 64), 4 * random(1, side, side, 72) - 2, random(1, side, side, 36)],
        ),
        "deformable_attention": (
            lambda value, places, weights: multi_scale_deformable_attn(value, torch.tensor(sizes), places, weights),
            [random(1, total, 8, 32), random(1, total, 8, 3, 4, 2), random(1, total, 8, 3, 4) / 12],
        ),
        "neighborhood_attention": (
            lambda query, key, value, bias: dilated_attention(query, key, value, bias, 7, 2),
            [*(random(1, side, side, 4, 32) for _ in range(3)), random(4, 13, 13)],
        ),
    }
    figures: dict[str, Any] = {}
    for name, (function, given) in cases.items():
        expected = _with_gradients(function, given)
        moved = [tensor.to(bench.device) for tensor in given]
        pairs = zip(_with_gradients(function, moved), expected, strict=True)
        figures[name] = max(relative(found.cpu().numpy(), own.numpy()) for found, own in pairs)
        bench.peak(reset=True)
        began, times = time.perf_counter(), 1 if bench.small else 10
        with torch.inference_mode():
            for _ in range(times):
                function(*moved)
        bench.finish()
        figures[f"{name}_milliseconds"] = 1000 * (time.perf_counter() - began) / times
        figures[f"{name}_megabytes"] = bench.peak()
    return within(figures, **dict.fromkeys(cases, TOLERANCES["float32"]))


def _with_gradients(function: Callable[..., Any], given: list[Any]) -> list[Any]:
    """The result and the gradients of its sum of squares."""
    given = [tensor.clone().requires_grad_() for tensor in given]
    found = function(*given)
    found.square().sum().backward()
    return [found.detach(), *(tensor.grad for tensor in given)]


@check
def stage_one(bench: Bench) -> dict[str, Any]:
    """generate-proposals: class logits, stored masks and points as the CPU's; its speed beside the bare generator."""
    from benchmarks.proposals import StageOne

    expected, out = reference(bench), bench.runs("stage-one")
    shutil.rmtree(out, ignore_errors=True)
    propose(bench, bench.device, out)
    logits, masks, equal = [], [], []
    for found, own in zip(records(out), records(expected), strict=True):
        logits.append(relative(found.class_logits, own.class_logits))
        both = np.intersect1d(found.kept, own.kept)
        if len(both):
            pair = (r.masks[np.searchsorted(r.kept, both)] for r in (found, own))
            masks.append(float(np.median(np.abs(np.subtract(*pair)))))
        equal += [np.mean((found.points[name] == own.points[name]).all(1)) for name in own.points]
    figures = {"logits": max(logits), "masks_median": max(masks, default=0.0), "points": float(np.mean(equal))}
    keys = {"recipe": str(bench.work / "recipe.toml"), "data_root": bench.data, "images": 4 if bench.small else 16}
    stage = StageOne(Namespace(**keys, device=bench.device, set=None), bench.work / "speed-one")
    figures |= beside(bench, stage.ours, stage.bare, len(stage.images))
    return within(figures, logits=TOLERANCES["float32"], masks_median=0.02, points_least=SAME_POINTS)


def training(bench: Bench, name: str, **keys: Any) -> dict[str, Any]:
    """train-classifier in a precision: the losses of its epochs beside the CPU's in float32."""
    expected = train(bench, "cpu", bench.runs("cpu"), "default", precision="float32")
    began, reset = time.perf_counter(), bench.peak(reset=True)
    losses = train(bench, bench.device, bench.runs("training"), name, **keys)
    assert np.isfinite(losses).all() and reset >= 0
    apart = [abs(own - other) / other for own, other in zip(losses, expected, strict=True)]
    figures = {"losses": losses, "losses_of_the_cpu": expected, "first_epoch": apart[0], "last_epoch": apart[-1]}
    figures |= {"training_seconds": time.perf_counter() - began, "megabytes": bench.peak()}
    return within(figures, first_epoch=LOSS[name])


@check
def training_float32(bench: Bench) -> dict[str, Any]:
    return training(bench, "float32", precision="float32")


@check
def training_bfloat16(bench: Bench) -> dict[str, Any]:
    return training(bench, "bfloat16", precision="bfloat16")


@check
def training_float16(bench: Bench) -> dict[str, Any]:
    """With the scaled loss, on a GPU."""
    return training(bench, "float16", precision="float16")


@check
def nccl(bench: Bench) -> dict[str, Any]:
    """Sums of gradients through NCCL (gloo on a CPU) in a group of one process, which leave them as they are."""
    import torch
    import torch.distributed as dist

    from vitp_pipeline.runtime.distributed import Distributed

    backend = "gloo" if bench.device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        alone = Distributed(rank=0, size=2)  # of a size at which it calls the collectives
        layers = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.Linear(500, 7)).to(bench.device)
        layers(torch.rand(3, 300, device=bench.device)).sum().backward()
        layers[1].bias.grad = None
        before = [None if p.grad is None else p.grad.clone() for p in layers.parameters()]
        alone.add_gradients(layers.parameters())
        for old, parameter in zip(before, layers.parameters(), strict=True):
            assert torch.equal(parameter.grad, torch.zeros_like(parameter) if old is None else old)
        assert alone.add(np.arange(3)).tolist() == [0, 1, 2] and alone.share("text") == "text"
        bench.finish()
    finally:
        dist.destroy_process_group()
    return {"backend": backend}


@check
def classify_and_evaluate(bench: Bench) -> dict[str, Any]:
    """classify, then evaluate, from the CPU's proposals and classifier: scores and metrics as the CPU's."""
    from vitp_pipeline.artifacts.parts import ArrayReader
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
    from vitp_pipeline.evaluation.summary import result_of
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.stages.classify import classify
    from vitp_pipeline.stages.evaluate import evaluate_shards, prepare

    first, loaded, results, scores = reference(bench), recipe(bench), {}, {}
    for device in dict.fromkeys(("cpu", bench.device)):
        out, everything = bench.runs(f"evaluated-{device.replace(':', '-')}"), ShardChoice()
        shutil.copytree(first, out, dirs_exist_ok=True)
        points, measures = (loaded.stage(kind, device=device) for kind in (ClassifySettings, EvaluateSettings))
        classify(loaded, points, bench.data, out, everything)
        evaluation = prepare(loaded, measures, points, (0.0, 0.4, 1.0), bench.data, out, everything)
        evaluate_shards(evaluation, measures, points, range(evaluation.run.shards))
        results[device] = result_of(evaluation)
        (file,) = out.glob("class_scores/*/shards/**/*.zarr.zip")
        with ArrayReader(file) as arrays:
            scores[device] = [arrays.read(f"point_logits/{record.key}") for record in records(out)]
    figures: dict[str, Any] = {"images": len(scores["cpu"])}
    pairs = list(zip(scores[bench.device], scores["cpu"], strict=True))
    figures["logits"] = max(relative(found, expected) for found, expected in pairs)
    figures["classes"] = float(np.mean([np.mean(a.argmax(1) == b.argmax(1)) for a, b in pairs]))
    for task, metric in (("semantic", "mIoU"), ("panoptic", "PQ")):
        fused = [results[device][task]["fused"] for device in ("cpu", bench.device)]
        own, found = (100 * (of[metric] if task == "semantic" else of["all"][metric]) for of in fused)
        figures |= {metric: found, f"{metric}_of_the_cpu": own, f"{metric}_apart": abs(found - own)}
    limits = {"logits": TOLERANCES["float32"], "classes_least": SAME_CLASSES, "mIoU_apart": POINTS, "PQ_apart": POINTS}
    return within(figures, **limits)


@check
def out_of_memory(bench: Bench) -> dict[str, Any]:
    """Too large a batch: stage one goes on image by image, and a classifier answers the next batch as before."""
    import torch

    from vitp_pipeline.classifier.inference import point_logits
    from vitp_pipeline.classifier.model import PointViT
    from vitp_pipeline.classifier.model_config import ModelConfig
    from vitp_pipeline.generators.huggingface.adapter import TransformersGenerator
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

    model = PointViT(ModelConfig("vit_small_patch16_224", ("a", "b"), (64, 64), '{"depth": 2}')).eval().to(bench.device)
    image, points = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=bench.device), torch.zeros(1, 9, 2)
    points = points.to(bench.device)
    before = point_logits(model, image, points, precision="float32").cpu()
    batch = 2**40
    if bench.device != "cpu":  # fails in the middle of a forward, not at its first number
        room = 0.02 * torch.cuda.get_device_properties(torch.device(bench.device)).total_memory
        torch.cuda.set_per_process_memory_fraction(0.02)
        batch = int(room / 4 / (4 * image.numel()))
    try:
        point_logits(model, image.expand(batch, -1, -1, -1), points.expand(batch, -1, -1))
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU
        said = str(error).splitlines()[0]
    else:
        raise AssertionError(f"a batch of {batch} images fitted")
    if bench.device != "cpu":
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert torch.equal(point_logits(model, image, points, precision="float32").cpu(), before)

    expected, out, failures = reference(bench), bench.runs("out-of-memory"), []
    kinds = OpenMMLabGenerator, TransformersGenerator  # that of `stage_one` is one of them
    shutil.rmtree(out, ignore_errors=True)
    with ExitStack() as patches:
        for kind in kinds:
            limited = _with_room_for_one(kind.forward, bench.device, failures)
            patches.enter_context(patch.object(kind, "forward", limited))
        propose(bench, bench.device, out, batch_size=4)
    assert failures, "no batch was too large"
    pairs = zip(records(out), records(expected), strict=True)
    apart = max(relative(found.class_logits, own.class_logits) for found, own in pairs)
    figures = {"said": said, "batches_too_large": len(failures), "logits": apart}
    return within(figures, logits=TOLERANCES["float32"])


def _with_room_for_one(forward: Callable[..., Any], device: str, failures: list[str]) -> Callable[..., Any]:
    """A generator's forward that runs out of memory, on a GPU really, with more than one frame."""

    def limited(self: Any, frames: Any) -> Any:
        import torch

        if len(frames) > 1:
            try:
                if device == "cpu":
                    raise torch.OutOfMemoryError("out of memory")
                torch.empty(2**50, dtype=torch.uint8, device=device)
            except torch.OutOfMemoryError as error:
                failures.append(str(error))
                raise
        return forward(self, frames)

    return limited


@check
def speed_of_training(bench: Bench) -> dict[str, Any]:
    """Images/s and memory of the training loop beside the bare timm ViT."""
    return _speed(bench, "train")


@check
def speed_of_classify(bench: Bench) -> dict[str, Any]:
    """Images/s and memory of `classify` beside the bare timm ViT."""
    return _speed(bench, "classify")


def _speed(bench: Bench, task: str) -> dict[str, Any]:
    from benchmarks.classifier import Bare, Data, Ours

    backbone, size, count, batch = "vit_base_patch14_dinov2", (518, 518), 250, 16
    if bench.small:
        backbone, size, count, batch = "vit_tiny_patch16_224", (32, 48), 6, 2
    steps = 2 if bench.small else 4
    given = {"backbone": backbone, "size": size, "points": count, "batch": batch, "steps": steps, "precision": "auto"}
    options = Namespace(**given, workers=min(8, os.cpu_count() or 1), device=bench.device)
    folder = bench.work / "speed"
    folder.mkdir(exist_ok=True)
    data = Data(folder, batch * steps, count, None)
    ours, bare = Ours(data, options), Bare(data, options)
    return {**beside(bench, getattr(ours, task), getattr(bare, task), batch * steps), **given}


@check
def training_compiled(bench: Bench) -> dict[str, Any]:
    """With torch.compile."""
    return training(bench, "compile", precision="bfloat16", compile=True)
