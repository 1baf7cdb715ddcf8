"""Chains as Slurm jobs, without Slurm: what sbatch would be told is read back and followed by hand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.making import make_chain
from vitp_pipeline.cluster import slurm
from vitp_pipeline.cluster.plan import Chain, Job
from vitp_pipeline.cluster.profile import STAGES, Profile, Resources, load_profile
from vitp_pipeline.cluster.slurm import Submitted, plan_scripts, script, submissions, submit_chain
from vitp_pipeline.errors import LockedError, UserError
from vitp_pipeline.execution.sharding import choose_shard, parse_shards

PLAIN = Profile(dict.fromkeys(STAGES, Resources()))


def tasks_of(words: list[str], shards: int) -> dict[int | None, int | None]:
    """Array index → shard that a task with this environment would work on; {None: None} of a job without an array."""
    option = {w.partition("=")[0]: w.partition("=")[2] for w in words if w.startswith("--")}
    if "--array" not in option:
        return {None: None}
    environment = {}
    if "--export" in option:
        environment = dict(pair.split("=") for pair in option["--export"].split(",") if "=" in pair)
    found = {}
    for index in parse_shards(option["--array"].partition("%")[0]):
        choice = choose_shard(f"/{shards}", {**environment, "SLURM_ARRAY_TASK_ID": str(index)})
        found[index] = choice.within(shards)[0]
    return found


def dependencies(words: list[str]) -> list[tuple[str, str]]:
    text = next((w.partition("=")[2] for w in words if w.startswith("--dependency=")), "")
    return [(kind, i) for kind, *ids in (piece.split(":") for piece in filter(None, text.split(","))) for i in ids]


some = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), *[st.sets(st.integers(0, n - 1))] * 3))


@settings(max_examples=60, deadline=None)
@given(some, st.booleans(), st.integers(1, 45), st.integers(0, 3))
def test_every_missing_shard_is_one_task_after_what_it_needs(some, training: bool, largest: int, throttle: int) -> None:
    shards, proposals, scores, counts = some
    chain = make_chain(shards, proposals, scores, counts, training)
    calls = submissions(chain, largest)
    ids = [str(1000 + n) for n in range(len(calls))]
    words = [call.arguments(Path("x.sh"), throttle, ids[:n]) for n, call in enumerate(calls)]
    tasks = [tasks_of(w, shards) for w in words]
    for w in words:
        text = next((x for x in w if x.startswith("--array=")), "")
        assert not text or text.endswith(f"%{throttle}") == bool(throttle)
    for stage, wanted in (("generate-proposals", proposals), ("classify", scores), ("evaluate", counts)):
        made = [s for call, found in zip(calls, tasks, strict=True) if call.job.stage == stage for s in found.values()]
        assert sorted(made) == sorted(wanted)
    place = {ids[n]: n for n in range(len(calls))}
    for call, w, found in zip(calls, words, tasks, strict=True):
        assert all(index is None or index < largest for index in found)
        for index, shard in found.items():
            waits = dependencies(w)
            partners = {(calls[place[i]].job.stage, tasks[place[i]][index]) for kind, i in waits if kind == "aftercorr"}
            before = {"classify": ("generate-proposals", proposals), "evaluate": ("classify", scores)}
            if call.job.stage in before:
                stage, there = before[call.job.stage]
                assert partners == ({(stage, shard)} if shard in there else set())
            else:
                assert not partners
            ended = [i for kind, i in waits if kind == "afterok"]
            if call.job.stage == "classify":
                assert [calls[place[i]].job.stage for i in ended] == ["train-classifier"] * training
            elif call.job.stage == "merge":
                assert ended == [i for i, c in zip(ids, calls, strict=True) if c.job.stage == "evaluate"]
            else:
                assert ended == []


def test_a_new_run_is_five_jobs() -> None:
    words = [
        call.arguments(Path(f"{call.job.stage}.sh"), 0, ["1", "2", "3", "4", "5"])
        for call in submissions(make_chain(64), 1001)
    ]
    assert [" ".join(w) for w in words] == [
        "sbatch --parsable --array=0-63 generate-proposals.sh",
        "sbatch --parsable train-classifier.sh",
        "sbatch --parsable --array=0-63 --dependency=aftercorr:1,afterok:2 classify.sh",
        "sbatch --parsable --array=0-63 --dependency=aftercorr:3 evaluate.sh",
        "sbatch --parsable --dependency=afterok:4 merge.sh",
    ]


def test_scripts_are_bash_and_the_profile_is_in_them(tmp_path: Path) -> None:
    profile = load_profile("example")
    chain = make_chain(8)
    for job in chain.jobs:
        text = script(job, profile[job.stage], 8, tmp_path / "a b")
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert text.startswith("#!/bin/bash\n#SBATCH ")
        assert ("--array" in text) is False  # it stands on the command line, so that a script serves every retry
        assert (" --shard /8" in text) == (job.shards is not None)
        assert f'--output="{tmp_path}/a b/jobs/log/{job.stage}-%' in text
    training, merge = script(chain.jobs[1], profile["train-classifier"], 8, tmp_path), text
    assert "--gres=gpu:4" in training and "--ntasks=4" in training and "--ntasks=1\n" in merge
    assert "srun --ntasks=4 --cpus-per-task=8 --kill-on-bad-exit=0 --wait=60 vitp train-classifier" in training
    assert "--partition=cpu" in merge and "gres" not in merge and "--time=30" in merge
    assert "module load cuda/12.4\nsource " in merge
    out = plan_scripts(chain, profile, tmp_path).text()
    assert "JOB2=$(sbatch --parsable --array=0-7%16 --dependency=aftercorr:$JOB0,afterok:$JOB1 " in out
    assert list(tmp_path.iterdir()) == []  # a dry run writes nothing


@pytest.mark.parametrize(("code", "of_array", "of_merge"), [(0, 0, 0), (7, 0, 7), (5, 5, 5)])
def test_images_that_failed_do_not_end_a_chain_but_its_last_job(
    tmp_path: Path, code: int, of_array: int, of_merge: int
) -> None:
    program = tmp_path / "bin/vitp"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    resources = Resources(venv=str(tmp_path))
    (tmp_path / "bin/activate").write_text(f"PATH={tmp_path}/bin:$PATH\n")
    for job, expected in ((make_chain(2).jobs[0], of_array), (make_chain(2).jobs[-1], of_merge)):
        done = subprocess.run(["bash"], input=script(job, resources, 2, tmp_path), text=True)
        assert done.returncode == expected


TASK = """#!{python}
import os, pathlib, signal, sys, time
from vitp_pipeline.runtime.signals import finishing, noticing_signals, stop_wanted
with noticing_signals(), finishing():
    pathlib.Path("{ready}").touch()
    while not stop_wanted():
        time.sleep(0.01)
    time.sleep(0.2)
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("number", "restarts", "array", "queued_again"),
    [
        (signal.SIGUSR1, 0, False, "77"),
        (signal.SIGUSR1, 1, True, "70_3"),
        (signal.SIGUSR1, 2, False, None),  # it has met its limit often enough
        (signal.SIGTERM, 0, False, None),  # cancelled, or preempted: Slurm itself knows what is to come
    ],
)
def test_a_task_at_its_time_limit_ends_in_order_and_queues_itself_again(
    tmp_path: Path, number: int, restarts: int, array: bool, queued_again: str | None
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "activate").write_text(f"PATH={folder}:$PATH\nsleep() {{ :; }}\n")
    (folder / "vitp").write_text(TASK.format(python=sys.executable, ready=tmp_path / "ready"))
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    for name in ("vitp", "scontrol"):
        (folder / name).chmod(0o755)
    text = script(make_chain(2).jobs[0], Resources(venv=str(tmp_path), requeues=2), 2, tmp_path)
    environment = {**os.environ, "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restarts)}
    environment |= {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"} if array else {}
    shell = subprocess.Popen(["bash", "-c", text], env=environment)
    while not (tmp_path / "ready").exists():
        assert shell.poll() is None
        time.sleep(0.01)
    shell.send_signal(number)  # as --signal=B: does, to the shell alone
    assert shell.wait(20) == 75
    calls = tmp_path / "calls"
    assert (calls.read_text() if calls.exists() else None) == (queued_again and f"requeue {queued_again}\n")


SRUN = """#!{python}
import pathlib, signal, sys, time
def end(number, frame):  # as Slurm 22.05's does: hands USR1 on, kills at TERM
    sys.exit(75 if number == signal.SIGUSR1 else 137)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, end)
pathlib.Path("{ready}").write_text(" ".join(sys.argv[1:]))
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("number", "queued_again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_training_by_srun_ends_in_order(tmp_path: Path, number: int, queued_again: bool) -> None:
    folder, ready = tmp_path / "bin", tmp_path / "ready"
    folder.mkdir()
    (folder / "activate").write_text(f"PATH={folder}:$PATH\nsleep() {{ :; }}\n")
    (folder / "srun").write_text(SRUN.format(python=sys.executable, ready=ready))
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    for name in ("srun", "scontrol"):
        (folder / name).chmod(0o755)
    job = make_chain(2).jobs[1]
    text = script(job, Resources(venv=str(tmp_path), processes=3, cpus=2), 2, tmp_path)
    assert "#SBATCH --ntasks=3\n#SBATCH --cpus-per-task=2\n" in text
    shell = subprocess.Popen(["bash", "-c", text], env={**os.environ, "SLURM_JOB_ID": "77"})
    while not (ready.exists() and ready.read_text()):
        assert shell.poll() is None
        time.sleep(0.01)
    shell.send_signal(number)
    assert shell.wait(20) == 75
    assert (
        ready.read_text().startswith("--ntasks=3 --cpus-per-task=2 ") and " vitp train-classifier" in ready.read_text()
    )
    assert (tmp_path / "calls").exists() == queued_again


def test_the_warning_comes_in_time(tmp_path: Path) -> None:
    job = make_chain(2).jobs[0]
    assert "#SBATCH --signal=B:USR1@120\n" in script(job, Resources(), 2, tmp_path)
    assert "#SBATCH --signal=B:USR1@60\n" in script(job, Resources(minutes=2), 2, tmp_path)
    text = script(job, Resources(grace=0, requeues=0), 2, tmp_path)
    assert "--signal" not in text and "scontrol" not in text


def test_a_container_and_awkward_words(tmp_path: Path) -> None:
    job = Job("classify", ("classify", "it's.toml", "--out", "/a b"), (0,))
    text = script(job, Resources(image="vitp.sif", binds=("/data", "/scratch"), gpus=1), 1, tmp_path)
    assert "apptainer exec --nv --bind /data,/scratch vitp.sif vitp classify 'it'\"'\"'s.toml' --out '/a b'" in text


class Slurm:
    """Answers as Slurm's programs do; refuses the job `refuses`."""

    def __init__(self, refuses: int | None = None, queue: str = "") -> None:
        self.calls: list[list[str]] = []
        self.refuses, self.queue, self.last = refuses, queue, 40

    def __call__(self, words: list[str]) -> str:
        self.calls.append(words)
        if words[0] == "squeue":
            return self.queue
        if words[0] == "scancel":
            return ""
        self.last += 1
        if self.refuses == self.last:
            raise UserError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        return f"{self.last};cluster\n"


def test_submitting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain, first = make_chain(4), Slurm()
    profile = Profile(dict.fromkeys(STAGES, Resources(max_array_size=3)))
    jobs = submit_chain(chain, profile, tmp_path, first)
    assert [job.id for job in jobs] == [str(n) for n in range(41, 49)] and all(c[0] == "sbatch" for c in first.calls)
    assert jobs[3] == Submitted("44", "classify", (0, 1, 2), after=("41", "43"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "job 41: generate-proposals, shards 0-2" and said[1] == "job 42: generate-proposals, shards 3"
    assert said[3] == "job 44: classify, shards 0-2, after 41 (aftercorr) and 43 (afterok)"
    scripts = {f"{stage}.sh" for stage in STAGES if stage != "predict"}  # a chain of its own
    assert {p.name for p in (tmp_path / "jobs").iterdir()} == {*scripts, "log", "submitted.json"}
    # while one of them is in the queue, nothing is submitted
    with pytest.raises(LockedError, match=r"jobs 44, 47 .* still in the queue") as info:
        submit_chain(chain, profile, tmp_path, Slurm(queue="7\n44\n47\n44\n"))
    assert "scancel 44 47" in str(info.value)
    submit_chain(chain, profile, tmp_path, again := Slurm(queue="7\n"))
    assert again.calls[0][0] == "squeue" and len(again.calls) == 9


def test_all_or_nothing(tmp_path: Path) -> None:
    cluster = Slurm(refuses=43)
    with pytest.raises(UserError, match="QOSMax"):
        submit_chain(make_chain(4), PLAIN, tmp_path, cluster)
    assert cluster.calls[-1] == ["scancel", "41", "42"]
    assert not (tmp_path / "jobs/submitted.json").exists()


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.max_array_size(PLAIN) == slurm.DEFAULT_MAX_ARRAY_SIZE
    with pytest.raises(UserError, match="sbatch: cannot be run") as info:
        submit_chain(make_chain(2), PLAIN, tmp_path / "run")
    assert "\n" not in str(info.value)


def test_what_slurm_says_is_passed_on_and_a_job_around_us_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "MaxArraySize            = 77"\n')
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\nenv > {tmp_path}/env\necho no such partition >&2; exit 1\n")
    for name in ("scontrol", "sbatch"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    inherited = ("SLURM_ARRAY_TASK_ID", "SBATCH_PARTITION", "VITP_SHARDS", "JOB_COMPLETION_INDEX")
    for name in (*inherited, "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    assert slurm.max_array_size(PLAIN) == 77
    with pytest.raises(UserError, match=r"sbatch .*: no such partition"):
        submit_chain(make_chain(2), PLAIN, tmp_path / "run")
    seen = re.findall(r"^(\w+)=", (tmp_path / "env").read_text(), re.MULTILINE)
    assert "SLURM_CONF" in seen and not set(inherited) & set(seen)


def test_nothing_to_do_is_no_chain() -> None:
    assert submissions(Chain(4, ()), 1001) == []


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "two words",
        " blanks around ",
        "it's",
        'a "quoted" one',
        "$HOME",
        "`date`",
        "$(date)",
        "$JOB0",
        "a;b|c&d>e<f",
        "star* and [x]?",
        "~tilde #comment",
        "größe",
        "-dash",
        "tab\there",
    ],
)
def test_a_shell_reads_the_calls_of_a_dry_run_as_they_are_made(tmp_path: Path, name: str) -> None:
    """bash, with a function in place of sbatch that prints its words and hands out ids."""
    planned = plan_scripts(make_chain(2), load_profile(None), tmp_path / name)
    _, _, calls = planned.text().rpartition("# ---- submitted with\n")
    fake = 'sbatch() { printf "%s\\0" "$@" end >&2; echo "<id>"; }\n'
    done = subprocess.run(["bash", "-c", fake + calls], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [words.split("\0") for words in done.stderr.removesuffix("end\0").split("end\0")]
    depends = "--dependency="
    made = [
        [re.sub(r"\$JOB\d", "<id>", w) if w.startswith(depends) else w for w in words[1:]] for words in planned.calls
    ]
    assert [words[:-1] for words in found] == made
