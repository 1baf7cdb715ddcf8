"""The whole chain on a real Slurm on this machine, in which tasks are warned, killed, queued again, and lose a node."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.cluster import Cluster, owner, pending_signals, slurm, wait_for, why_no_slurm
from tests.pipeline.conftest import RECIPE, STAGES, Project, snapshot
from vitp_pipeline.classifier.weights import load_classifier

pytestmark = pytest.mark.xdist_group("slurm")  # one controller on a machine
SHARDS = 8
LONG = bool(os.environ.get("VITP_CLUSTER"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """munged trusts no folder below one that others may write, so not pytest's."""
    if why := why_no_slurm():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="vitp-slurm-", dir="/run" if os.access("/run", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the jobs have: bytes are the same only for the same number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vitp(cluster: Cluster, *words: str) -> str:
    return cluster.call(sys.executable, "-m", "vitp_pipeline.cli.main", *words)


def submit(cluster: Cluster, project: Project, out: Path, *words: str) -> list[str]:
    options = ["--data-root", str(project.data), "--out", str(out), "--engine", "slurm", *words]
    return vitp(cluster, "submit", str(project.recipe), *options).split()


def results(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(run).items() if not name.startswith("jobs/")}


@pytest.mark.slow
@pytest.mark.kill
def test_tasks_that_are_warned_of_their_time_limit_go_on_by_themselves(
    project: Project, folder: Path, tmp_path: Path, one_thread: None
) -> None:
    """The warning comes as Slurm sends it, to the shell alone; one to a task of an array, one to a training by two
    processes of srun. The chain then ends without anybody's doing.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("drop_path = 0.1", "drop_path = 0.0"))  # draws by piece, so by process
    (tmp_path / "profile.toml").write_text("[train-classifier]\nprocesses = 2\n")
    own = Project(project.data, recipe)
    out = tmp_path / "run"
    with slurm(folder, cpus=3) as cluster:
        ids = submit(cluster, own, out, "--shards", "1", "--profile", str(tmp_path / "profile.toml"))
        owner(out / "proposals/shards/00000/lock")
        cluster.call("scancel", "--batch", "--signal=USR1", f"{ids[0]}_0")
        owner(out / "classifier/default/lock")
        cluster.call("scancel", "--batch", "--signal=USR1", ids[1])
        states = cluster.wait(ids)
    logs = {path.name.rpartition("-")[0]: path.read_text() for path in (out / "jobs/log").iterdir()}
    assert set(states.values()) == {"COMPLETED"} and len(states) == 5, (states, logs)
    for stage, name, processes in (("generate-proposals", "SIGTERM", 1), ("train-classifier", "SIGUSR1", 2)):
        # while its model loads a process ends at once, later after what it is working on; srun tells both of a training
        told = [f"{name}: finishing", f"stopped at once by {name}"]
        assert sum(logs[stage].count(each) for each in told) == processes, logs[stage]
        ended = [f"stopped by {name}", f"stopped at once by {name}"]
        assert any(each in logs[stage] for each in ended), logs[stage]
    alone = tmp_path / "alone"
    own.run("generate-proposals", alone)
    assert {name: content for name, content in results(out).items() if name.startswith("proposals")} == results(alone)
    own.run("train-classifier", alone)
    found, expected = (
        load_classifier(run / "classifier/default/model.safetensors").state_dict() for run in (out, alone)
    )
    assert max(float((found[k] - expected[k]).abs().max()) for k in expected) < 1e-4


CAMVID = """
manifest = "camvid"
[generate-proposals]
config = "{shared}/weights/mask2former-efficientnet_lite0-camvid.py"
checkpoint = "{shared}/weights/mask2former-efficientnet_lite0-camvid.pth"
part_size = 2
[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2}'
image_size = [96, 128]
point_token = "patch"
points_per_image = 32
epochs = 2
batch_size = 4
optimizer = "adamw"
lr = 1e-3
"""


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three images a shard of CamVid with its generator, or of drawn scenes where ../shared is not there."""
    place = tmp_path_factory.mktemp("images")
    try:
        shared: Path = request.getfixturevalue("shared")
    except pytest.skip.Exception:
        from vitp_pipeline.demo.scenes import draw_scenes

        draw_scenes(place, "train", 8, seed=0)
        draw_scenes(place, "val", 3 * SHARDS, seed=0)
        (place / "recipe.toml").write_text(RECIPE)
        return Project(place, place / "recipe.toml")
    for split, count in (("train", 8), ("val", 3 * SHARDS)):
        for kind in ("images", "annotations"):
            (place / kind / split).mkdir(parents=True)
            for path in sorted((shared / "data/camvid" / kind / split).iterdir())[:count]:
                (place / kind / split / path.name).symlink_to(path)
    (place / "recipe.toml").write_text(CAMVID.replace("{shared}", str(shared)))
    return Project(place, place / "recipe.toml")


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.skipif(not LONG, reason="minutes; `make test-long` runs it")
def test_faults_on_a_cluster_change_no_byte(images: Project, folder: Path, tmp_path: Path) -> None:
    """Of eight tasks one is killed, one queued again, one suspended until its time limit's warning comes; then the node
    of others dies. The killed one alone needs somebody: the array expression that `vitp status` prints.
    """
    out, profile = tmp_path / "run", tmp_path / "profile.toml"
    # the warning comes after two minutes: time enough for those tasks that nothing happens to
    profile.write_text("[generate-proposals]\nminutes = 4\ngrace = 120\n")
    with slurm(folder, nodes=2) as cluster:
        ids = submit(cluster, images, out, "--shards", str(SHARDS), "--profile", str(profile))
        assert len(set(ids)) == 5  # proposals, training, classify, evaluate, merge
        proposals = ids[0]
        locks = [out / f"proposals/shards/{shard:05d}/lock" for shard in range(SHARDS)]

        suspended = owner(locks[0])
        os.kill(suspended, signal.SIGSTOP)
        os.kill(owner(locks[1]), signal.SIGKILL)
        owner(locks[2])
        cluster.call("scontrol", "requeue", f"{proposals}_2")
        (lost,) = set(cluster.nodes) - {cluster.node_of(suspended)}
        shards_lost: list[int] = []

        def others_at_work() -> bool:
            pids = {shard: int(lock.read_text().split("process ")[1].split()[0]) for shard, lock in held(locks[3:], 3)}
            shards_lost[:] = [shard for shard, pid in pids.items() if cluster.node_of(pid) == lost]
            return bool(shards_lost)

        wait_for(others_at_work, f"a task on {lost}")
        cluster.kill_node(lost)
        wait_for(lambda: signal.SIGTERM in pending_signals(suspended), "the warning", 300)
        os.kill(suspended, signal.SIGCONT)

        states = cluster.wait(ids)
        logs = {path.name: path.read_text() for path in (out / "jobs/log").iterdir()}
        assert "down" in cluster.call("sinfo", "-h", "-N", "-n", lost, "-o", "%T")
        whole = [shard for shard in range(SHARDS) if shard != 1]
        assert states[f"{proposals}_1"] == "FAILED"
        assert {states[f"{proposals}_{shard}"] for shard in whole} == {"COMPLETED"}, (states, logs)
        assert states[f"{ids[2]}_1"] == "CANCELLED" and states[ids[4]] == "CANCELLED"  # nothing waits for ever
        assert {states[f"{job}_{shard}"] for job in ids[2:4] for shard in whole} == {"COMPLETED"}, (states, logs)
        assert "by SIGTERM" in logs[f"generate-proposals-{proposals}_0.log"]  # at once where its model still loaded
        for shard in (0, 2, *shards_lost):
            assert restarts(logs[f"generate-proposals-{proposals}_{shard}.log"]) >= 1
        status = {e["stage"].split("/")[0]: e for e in json.loads(vitp(cluster, "status", str(out), "--json"))}
        assert {stage: entry["missing"] for stage, entry in status.items() if stage != "classifier"} == {
            "proposals": "1",
            "class_scores": "1",
            "evaluation": "1",
        }
        assert status["proposals"]["stopped"] == [1] and status["classifier"]["shards_done"] == 1

        # by hand, as the status says; then the rest of the chain
        script = out / "jobs/generate-proposals.sh"
        by_hand = cluster.call("sbatch", "--parsable", f"--array={status['proposals']['missing']}", str(script))
        assert cluster.wait([by_hand]) == {f"{by_hand}_1": "COMPLETED"}
        rest = submit(cluster, images, out, "--profile", str(profile))
        states = cluster.wait(rest)
        assert set(states.values()) == {"COMPLETED"} and set(states) == {f"{rest[0]}_1", f"{rest[1]}_1", rest[2]}
        assert submit(cluster, images, out, "--profile", str(profile)) == []  # nothing is left to do
        vitp(cluster, "verify", str(out))

        alone = tmp_path / "alone"  # one process after the other, outside of Slurm
        for stage in STAGES:
            shards = ["--shard", f"/{SHARDS}"] if stage == "generate-proposals" else []
            vitp(cluster, stage, str(images.recipe), "--data-root", str(images.data), "--out", str(alone), *shards)
    assert results(out) == results(alone)
    found, expected = (json.loads(next(run.glob("evaluation/*/result.json")).read_text()) for run in (out, alone))
    for key in ("semantic", "panoptic", "masks", "images"):
        assert found.get(key) == expected.get(key)


def held(locks: list[Path], first: int) -> list[tuple[int, Path]]:
    """(shard, lock) of those that somebody has signed."""
    return [(n, lock) for n, lock in enumerate(locks, first) if lock.exists() and "process " in lock.read_text()]


def restarts(log: str) -> int:
    """How often a task began again, by what each beginning says."""
    return log.count("(SLURM_ARRAY_TASK_ID)") - 1
