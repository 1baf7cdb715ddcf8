"""Run the stages over shards on a Ray cluster: python ray_shards.py SHARDS RECIPE --data-root DATA --out RUN

All machines need `vitp` on their PATH and see DATA and RUN. Started again, it makes what is missing.
"""

import subprocess
import sys
import time

import ray

LOCKED, FAILED_IMAGES = 9, 7
"""Exit codes of vitp: another task holds the shard; images failed, and are recorded with their reasons."""


@ray.remote(max_retries=3)  # when its machine is lost; num_gpus=1 here gives each task a GPU
def vitp(*words: str) -> None:
    while (code := subprocess.call(["vitp", *words])) == LOCKED:
        time.sleep(5)  # of a lost worker: its process goes on, or its lock ends after a minute
    if code not in (0, FAILED_IMAGES):
        raise RuntimeError(f"vitp {' '.join(words)} ended with code {code}")


def main() -> None:
    count, arguments = int(sys.argv[1]), sys.argv[2:]
    ray.init()
    shards = [f"{shard}/{count}" for shard in range(count)]
    proposals = [vitp.remote("generate-proposals", *arguments, "--shard", shard) for shard in shards]
    ray.get([*proposals, vitp.remote("train-classifier", *arguments)])
    ray.get([vitp.remote("classify", *arguments, "--shard", shard) for shard in shards])
    ray.get(vitp.remote("evaluate", *arguments))


if __name__ == "__main__":
    main()
