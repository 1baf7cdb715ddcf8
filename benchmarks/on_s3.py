"""`evaluate` of a run that lies in an object store, beside the same run on the local disk.

    python -m benchmarks.on_s3 --data-root data/camvid

The store is moto's S3 server on this machine (the extra `store` and moto[server]). Both evaluate the same proposals of
a split of CamVid by the generator alone, semantic and panoptic, in one process, in turn: the stage with its merge.
Before each the evaluation that is there is removed, and what was fetched from the store, both untimed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.paired import Comparison, compare

BUCKET = "runs"
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def server(seconds: float = 120) -> Iterator[str]:
    """The address of a server with an empty bucket, in a process of its own.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + seconds
        while not _listens(port):
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError("moto's server does not start: install moto[server]")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Work:
    """The first images of a recipe's split with their proposals, on disk below `root` and in the bucket."""

    def __init__(self, recipe: str, data_root: Path, split: str, images: int, root: Path, endpoint: str) -> None:
        import boto3

        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
        from vitp_pipeline.execution.sharding import ShardChoice
        from vitp_pipeline.runtime.progress import hush
        from vitp_pipeline.stages.generate_proposals import generate_proposals

        os.environ.update(VARIABLES, AWS_ENDPOINT_URL=endpoint, VITP_SCRATCH=str(root / "scratch"))
        hush()
        self.recipe, self.data, self.local = load_recipe(recipe), data_root, root / "run"
        self.settings = self.recipe.stage(EvaluateSettings, alpha=0.0, device="cpu")
        self.classify, self.shard = self.recipe.stage(ClassifySettings), ShardChoice()
        settings = self.recipe.stage(ProposalSettings, split=split, limit=images, device="cpu")
        generate_proposals(self.recipe, settings, data_root, self.local, self.shard)
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket=BUCKET)
        for path in sorted(p for p in self.local.rglob("*") if p.is_file()):
            self.client.upload_file(str(path), BUCKET, f"run/{path.relative_to(self.local).as_posix()}")

    def evaluate(self, out: Path | str) -> dict:
        """The result."""
        from vitp_pipeline.evaluation.summary import result_of
        from vitp_pipeline.stages.evaluate import evaluate_shards, prepare

        evaluation = prepare(self.recipe, self.settings, self.classify, (), self.data, out, self.shard)
        evaluate_shards(evaluation, self.settings, self.classify, [0])
        return result_of(evaluation)

    def forget(self) -> None:
        """Remove the evaluations, and what was fetched."""
        shutil.rmtree(self.local / "evaluation", ignore_errors=True)
        shutil.rmtree(os.environ["VITP_SCRATCH"], ignore_errors=True)
        Path(os.environ["VITP_SCRATCH"]).mkdir()
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix="run/evaluation/").get("Contents", [])
        for entry in listed:
            self.client.delete_object(Bucket=BUCKET, Key=entry["Key"])


def measure(recipe: str, data_root: Path, split: str, images: int, repeats: int) -> Comparison:
    """Raise AssertionError when figures differ."""
    with tempfile.TemporaryDirectory() as folder, server() as endpoint:
        work = Work(recipe, data_root, split, images, Path(folder), endpoint)
        url = f"s3://{BUCKET}/run"
        work.forget()
        there, here = (work.evaluate(out) for out in (url, work.local))
        assert all(there[task] == here[task] for task in ("images", "semantic", "panoptic"))
        count = here["images"]["measured"]
        return compare(
            lambda: work.evaluate(url), lambda: work.evaluate(work.local), count, repeats, before=work.forget
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="camvid")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=101, help="the first of the split")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    found = measure(options.recipe, options.data_root, options.split, options.images, options.repeats)
    low, high = found.ratios
    print("| S3, images/s | local, images/s | ratio (lowest, highest of a pair) |\n|---:|---:|---:|")
    print(f"| {found.ours_per_second:.1f} | {found.bare_per_second:.1f} | {found.ratio:.3f} ({low:.3f}, {high:.3f}) |")
    if options.json:
        options.json.write_text(json.dumps({"ratio": found.ratio, "ratios": found.ratios}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
