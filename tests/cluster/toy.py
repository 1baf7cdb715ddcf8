"""Stands for `vitp` in the tests of the local engine: notes when it began and ended, and ends as a file says."""

import json
import os
import signal
import sys
import time
from pathlib import Path

stage, out = sys.argv[1], Path(sys.argv[sys.argv.index("--out") + 1])
shard = sys.argv[sys.argv.index("--shard") + 1] if "--shard" in sys.argv else "all"
name = stage if shard == "all" else f"{stage} {shard.partition('/')[0]}"
begun = time.monotonic()
seen = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_ARRAY_TASK_ID", "VITP_SHARDS")}
if "TOY_DEAF" in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(float(os.environ.get("TOY_SECONDS", "0.1")))
entry = {"name": name, "shard": shard, "begun": begun, "ended": time.monotonic(), "seen": seen}
entry["cores"] = sorted(os.sched_getaffinity(0))
with (out / "trace.jsonl").open("a") as file:
    file.write(json.dumps(entry) + "\n")
code = json.loads((out / "codes.json").read_text()).get(name, 0)
if code < 0:
    os.kill(os.getpid(), signal.SIGKILL)
print("vitp: this is why", file=sys.stderr)
sys.exit(code)
