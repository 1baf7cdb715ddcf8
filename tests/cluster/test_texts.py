"""Whatever the names of folders and files are, a batch script says them exactly, and is safe to print."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.runtime.test_escaping import is_harmless
from vitp_pipeline.cluster.engine import ENGINES, Work
from vitp_pipeline.cluster.plan import Chain, Job
from vitp_pipeline.cluster.profile import STAGES, Resources
from vitp_pipeline.cluster.slurm import script
from vitp_pipeline.errors import UsageError

WORD = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/") | st.sampled_from("\x1b\n'\"$`!*#%{} \u202e\udcff\\"),
    min_size=1,
)


def options(text: str) -> dict[str, str]:
    """What sbatch reads in the head of a script, by the rules of its manual: quotes, backslashes, comments, lines."""
    found = {}
    for line in text.split("\n")[1:]:
        if not line.startswith("#SBATCH"):
            break
        word, quoted, taken = "", "", False
        for c in line.removeprefix("#SBATCH").strip():
            if taken:
                word, taken = word + c, False
            elif c == "\\":
                taken = True
            elif c == quoted:
                quoted = ""
            elif quoted or c not in "'\"":
                if not quoted and (c.isspace() or c == "#"):
                    break
                word += c
            else:
                quoted = c
        assert not quoted
        name, _, value = word.partition("=")
        found[name] = value
    return found


@given(WORD, WORD)
@example("a b", "part one")
@example('a"b', "x#y")
@example("100%", "'")
def test_sbatch_reads_the_names_as_they_are(name: str, partition: str) -> None:
    job = Job("classify", ("classify",), (0,))
    out = Path("/runs") / name
    try:
        text = script(job, Resources(partition=partition), 1, out)
    except UsageError as error:
        assert not is_harmless(name + partition) or "\\" in name, error
        return
    assert is_harmless(text.translate({10: None, 9: None}))
    found = options(text)
    assert found["--output"].replace("%%", "%") == f"{out}/jobs/log/classify-%A_%a.log"
    assert found["--partition"] == partition and next(iter(found)) == "--job-name"


@pytest.mark.parametrize("option", ["--comment=a\n#SBATCH --uid=0", "--comment=\x1b[2J", "--comment=\u202e"])
def test_options_of_a_profile_stay_on_their_line(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="control characters"):
        script(Job("classify", ("classify",)), Resources(options=(option,)), 1, tmp_path)


@settings(max_examples=15, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=20))
def test_the_task_gets_the_words_as_they_are(words: list[str]) -> None:
    """In Slurm, Kubernetes and AWS Batch, whose texts are read back with their own readers."""
    job, resources = Job("classify", tuple(words)), Resources(image="i", queue="q", definition="d")
    chain, profile, out = Chain(1, (job,)), dict.fromkeys(STAGES, resources), Path("/run")
    texts = [ENGINES[name].plan(Work(chain, profile, out)).text for name in ("k8s", "aws")]
    texts.insert(0, script(job, Resources(venv="/none"), 1, out))
    assert all(is_harmless(text.replace("\n", "")) for text in texts)
    container = yaml.safe_load(texts[1])["spec"]["template"]["spec"]["containers"][0]
    lines = [
        texts[0].replace("source /none/bin/activate\n", ""),
        container["command"][2],
        json.loads(texts[2])[0]["containerOverrides"]["command"][2],
    ]
    prints = "vitp() { printf '%s\\0' \"$@\"; }\n"
    for line in lines:
        done = subprocess.run(["bash", "-c", prints + line], capture_output=True, env={"PATH": os.environ["PATH"]})
        assert [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]] == words, done.stderr
