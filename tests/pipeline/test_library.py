"""The examples of README and docs/library.md, run as they stand there, on a small run in the place of the demo's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vitp_pipeline

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = FENCED.findall(PAGE.partition("## In FiftyOne")[0])
FIRST = FENCED.findall(README)


@pytest.fixture(scope="module")
def place(project, finished, tmp_path_factory) -> Path:
    """A folder that looks as after `vitp demo`."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(finished, folder / "runs" / "demo" / "run")
    shutil.copytree(project.data, folder / "runs" / "demo" / "scenes")
    return folder


@pytest.mark.parametrize("example", [*FIRST, *EXAMPLES])
def test_an_example_runs(example: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    lines = [line for line in example.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 5
    monkeypatch.chdir(place)
    exec(compile(example, "docs/library.md", "exec"), {})
    assert capsys.readouterr().out.count("\n") == 1


def test_every_public_name_has_an_example() -> None:
    assert len(EXAMPLES) == 4 and len(FIRST) == 1
    for name in vitp_pipeline.__all__:
        assert any(re.search(rf"import .*\b{name}\b", example) for example in EXAMPLES), name
        assert callable(getattr(vitp_pipeline, name))
    with pytest.raises(AttributeError):
        vitp_pipeline.nothing  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, vitp_pipeline; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "PIL", "zarr", "pyarrow", "timm", "typer", "rich"}
