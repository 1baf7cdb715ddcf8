"""Seconds and memory of transformers' generators at a usual size, with random weights, on photographs.

    python -m benchmarks.transformers_generators --images ../shared/data/coco/val2017 --count 2

Every network runs in a process of its own, so that the peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitp_pipeline.generators.huggingface.prompt_grid import PromptGrid

SWIN_T = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
VIT_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_blocks": 3, "image_size": 512}
NETWORKS: dict[str, dict[str, Any]] = {
    "OneFormer, Swin-T": {"model_type": "oneformer", "num_queries": 150, "backbone_config": SWIN_T},
    "Mask2Former, Swin-T": {"model_type": "mask2former", "num_queries": 100, "backbone_config": SWIN_T},
    "MaskFormer, Swin-T": {"model_type": "maskformer", "backbone_config": SWIN_T},
    "EoMT, ViT-B": {"model_type": "eomt", "num_queries": 100, **VIT_B},
    "SAM, ViT-B": {"model_type": "sam"},
}
EVERY_MASK = PromptGrid(pred_iou_thresh=0.0, stability_score_thresh=0.0)
"""Of SAM: every mask is measured and held until boxes are compared, the most work and memory that there can be."""
CLASSES = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--test-size", type=int, nargs=2, default=(512, 2048), help="shortest and longest edge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="(used by the program itself) one network, in this process")
    options = parser.parse_args()
    if options.only:
        measure(options)
        return
    print("| network | parameters | s an image | of the processor | peak of the process |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for name in NETWORKS:
        command = [sys.executable, "-m", "benchmarks.transformers_generators", *sys.argv[1:], "--only", name]
        subprocess.run(command, check=True)


def measure(options: argparse.Namespace) -> None:
    """A row of the table: the mean over the images, after one that is not counted."""
    import torch

    from benchmarks.paired import peak_memory
    from vitp_pipeline.datasets.images import read_rgb
    from vitp_pipeline.generators.huggingface.folder import open_pretrained
    from vitp_pipeline.generators.registry import TransformersSource
    from vitp_pipeline.generators.views import propose

    torch.set_num_threads(options.threads)
    files = sorted(options.images.glob("*.jpg"))[: options.count]
    names = {str(k): f"LABEL_{k}" for k in range(CLASSES)}
    content = {**NETWORKS[options.only], "id2label": names}
    size = () if content["model_type"] in ("eomt", "sam") else tuple(options.test_size)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(content))
        source = TransformersSource(open_pretrained(config), 0, "panoptic", size, EVERY_MASK)
        generator: Any = source.build("cpu")
    images = [read_rgb(file) for file in files]
    propose(generator, images[:1])
    wall, processor = time.perf_counter(), time.process_time()
    for image in images:
        propose(generator, [image])
    wall, processor = (time.perf_counter() - wall) / len(images), (time.process_time() - processor) / len(images)
    print(
        f"| {options.only} | {generator.parameters / 1e6:.1f} M | {wall:.1f} | {processor:.1f} "
        f"| {peak_memory() / 2**20:.0f} MiB |",
        flush=True,
    )


if __name__ == "__main__":
    main()
