"""Reading proposals: one image, a part, the whole run, each beside decoding the same bytes from memory.

    python -m benchmarks.reading runs/camvid
    python -m benchmarks.reading --drawn 64
    python -m benchmarks.reading --profile data/camvid/images/val/0016E5_07959.jpg

`codec` decodes every array's chunk that lies in memory already, with no file, index or row around it. `single` reads
images in no order (`ProposalStore.read`), `part` whole parts; `all` iterates over the run. Speeds are of decoded bytes,
and ratios those of the codec's time to theirs: 1 = nothing else costs anything.

`--profile` says where the time goes that reading 25 masks of 256×512 drawn logits takes, beside decoding a picture of
2048×1024 (an enlarged one, JPEG of quality 90) with Pillow: milliseconds of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def decoder(paths: list[Path]) -> Callable[[], int]:
    """Decodes all arrays of some parts from memory; the call gives the bytes they have decoded."""
    from vitp_pipeline.artifacts import quantized_array

    chunks: dict[str, list[bytes]] = {}
    about: dict[str, dict] = {}
    for path in paths:
        with zipfile.ZipFile(path) as file:
            for key in file.namelist():
                name, _, last = key.partition("/c/")
                if last:
                    chunks.setdefault(f"{path}:{name}", []).append(file.read(key))
                elif (found := json.loads(file.read(key)))["node_type"] == "array":
                    about[f"{path}:{name.removesuffix('/zarr.json')}"] = found

    def decode() -> int:
        from numcodecs import Blosc

        size = 0
        for name, pieces in chunks.items():
            for chunk in pieces:
                stepped = quantized_array.wrote(about[name])
                size += quantized_array.decode(about[name], chunk).nbytes if stepped else len(Blosc().decode(chunk))
        return size

    return decode


def measure(run: Path, repeats: int, clock: Callable[[], float], seed: int = 0) -> dict[str, dict[str, float]]:
    """Seconds and bytes of each way of reading, the median of the repeats; the ways take turns."""
    from vitp_pipeline.artifacts.proposals import open_proposals

    store = open_proposals(run)
    parts = [(shard, part) for shard in range(store.run.shards) for part in range(len(store.run.parts(shard)))]
    ids = [record.image_id for place in parts for record in store.read_index(*place)]
    mixed = np.random.default_rng(seed).permutation(ids).tolist()
    decode = decoder([store.run.open_arrays(shard, part).path for shard, part in parts])
    ways: dict[str, Callable[[], object]] = {
        "codec": decode,
        "single": lambda: [store.read(image_id) for image_id in mixed],
        "part": lambda: [sum(1 for _ in store.read_part(*place)) for place in parts],
        "all": lambda: sum(1 for _ in store),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first warms up
        for name, way in ways.items():
            began = clock()
            way()
            if repeat:
                seconds[name].append(clock() - began)
    size, codec = decode(), statistics.median(seconds["codec"])
    found = {name: statistics.median(taken) for name, taken in seconds.items()}
    same = {"images": len(ids), "bytes": size}
    return {name: {**same, "seconds": taken, "ratio": codec / taken} for name, taken in found.items()}


def draw_run(folder: Path, images: int, part_size: int) -> Path:
    """A run of drawn logits as large as CamVid's (30 queries, 96×128), stored as `bounded` by the own writers."""
    import pyarrow as pa
    import torch

    from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec, store_masks
    from vitp_pipeline.artifacts.parts import ArrayWriter
    from vitp_pipeline.artifacts.proposals import ProposalRecord, schema, write_record
    from vitp_pipeline.artifacts.run import create_or_check
    from vitp_pipeline.execution.runner import run_parts
    from vitp_pipeline.geometry import View
    from vitp_pipeline.storage.run_store import LocalStore

    classes, queries, small, size = 11, 30, (96, 128), (360, 480)
    ids = tuple(f"{n:05d}" for n in range(images))
    infos = [[f"class {k}", k, False] for k in range(classes)]
    manifest = {"name": "drawn", "kind": "semantic-png", "ignore": [255], "classes": infos}
    about = {"stage": "proposals", "manifest": manifest, "settings": {}}
    run = create_or_check(LocalStore(folder), folder / "proposals", about, ids, 1, part_size)
    codec, view = MaskCodec(**PRESETS["bounded"]), View(size, size, size, small)

    class Maker:
        def make(self, shard, part, images, arrays, budget):
            writer, rows = ArrayWriter(arrays, run.about(shard, part)), []
            for image_id in images:
                generator = torch.Generator().manual_seed(int(image_id))
                coarse = torch.randn(1, queries, 6, 8, generator=generator) * 6 - 4
                masks = torch.nn.functional.interpolate(coarse, small, mode="bicubic")[0]
                logits = torch.randn(queries, classes + 1, generator=generator)
                stored = store_masks(masks, np.ones(queries), codec, 1)
                points = {"max": np.zeros((queries, 2), np.int32)}
                about = image_id, f"{image_id}.jpg", view, "d2", stored.kept, 0.0, points
                record = ProposalRecord(*about, logits.numpy(), stored.masks, loss=stored.loss)
                rows.append(write_record(writer, record))
                budget.advance(1)
            writer.close()
            return pa.Table.from_pylist(rows, schema(run.fingerprint, [f"class {k}" for k in range(classes)]))

    run_parts(run, [0], Maker, "draw")
    return folder


def report(found: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table."""
    lines = ["| read | images/s | MB/s decoded | of the codec's speed |", "|---|---:|---:|---:|"]
    for name, row in found.items():
        rate, speed = row["images"] / row["seconds"], row["bytes"] / row["seconds"] / 1e6
        lines.append(f"| {name} | {rate:.0f} | {speed:.0f} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def profile(picture: Path, repeats: int) -> dict[str, float]:
    """Seconds of the processor that the steps of reading take, and decoding the picture; medians, taken in turn."""
    import io
    import zlib

    from numcodecs import Blosc
    from PIL import Image

    from benchmarks.storage import drawn, read, stored, write
    from vitp_pipeline.artifacts import quantized_array
    from vitp_pipeline.artifacts.mask_codec import PRESETS
    from vitp_pipeline.datasets.images import read_rgb

    large, jpeg = Image.fromarray(read_rgb(picture)).resize((2048, 1024), Image.Resampling.BICUBIC), io.BytesIO()
    large.save(jpeg, "JPEG", quality=90)
    (image,) = drawn("Cityscapes-like", (1024, 2048), 25, 19).images
    with tempfile.TemporaryDirectory() as folder:
        path, key = Path(folder) / "part.zarr.zip", "masks/0/c/0/0/0"
        write(path, [stored(image, PRESETS["bounded"])])
        with zipfile.ZipFile(path) as file:
            chunk, about = file.read(key), json.loads(file.read("masks/0/zarr.json"))

        def unzip() -> None:
            with zipfile.ZipFile(path) as file:
                file.read(key)

        ways: dict[str, Callable[[], object]] = {
            "JPEG, Pillow": lambda: np.asarray(Image.open(io.BytesIO(jpeg.getvalue()))),
            "masks": lambda: read(path, 1),
            "masks: file, checksum": unzip,
            "masks: checksum": lambda: zlib.crc32(chunk),
            "masks: zstd, shuffling": lambda: Blosc().decode(chunk),
            "masks: zstd, shuffling, float32": lambda: quantized_array.decode(about, chunk),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):  # the first warms up
            for name, way in ways.items():
                began = time.process_time()
                way()
                if repeat:
                    seconds[name].append(time.process_time() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    options = parse()
    if options.profile:
        os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
        profiled = profile(options.profile, options.repeats)
        print("| step | ms | of the JPEG's |\n|---|---:|---:|")
        for name, taken in profiled.items():
            print(f"| {name} | {1e3 * taken:.2f} | {taken / profiled['JPEG, Pillow']:.2f} |")
        if options.json:
            options.json.write_text(json.dumps(profiled, indent=1) + "\n", encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or draw_run(Path(folder), options.drawn, options.part_size)
        found = measure(run, options.repeats, time.process_time if options.processor else time.perf_counter)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(report(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run directory; without one, drawn logits")
    parser.add_argument("--drawn", type=int, default=64, help="images of the drawn run")
    parser.add_argument("--part-size", type=int, default=32, help="of the drawn run")
    parser.add_argument("--profile", type=Path, metavar="PICTURE", help="where the time of one large image goes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="count the processor's seconds, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
