from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILL = """
import sys, threading, time
from pathlib import Path
half, whole = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
half.write_bytes(whole[: len(whole) // 2])
if sys.argv[2] == "filled":
    threading.Timer(0.3, half.write_bytes, [whole]).start()
from vitp_pipeline.generators.openmmlab.yapf_cache import import_yapf
import_yapf()
from yapf.yapflib.yapf_api import FormatCode
assert FormatCode("x  =  1")[0] == "x = 1\\n"
"""


@pytest.mark.parametrize("other_task", ["filled", "left"])
def test_a_half_written_cache_is_waited_for(tmp_path: Path, other_task: str) -> None:
    """As another task writes it; one that nobody completes is an error as before."""
    pytest.importorskip("yapf")
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])

    assert run("import yapf").returncode == 0
    (cache,) = tmp_path.glob("YAPF/*/Grammar*.pickle")
    shutil.copy(cache, tmp_path / "whole")
    done = run(FILL, str(cache), other_task)
    assert (done.returncode == 0) == (other_task == "filled"), done.stderr
    if other_task == "left":
        assert done.stderr.splitlines()[-1].startswith(("EOFError", "_pickle.UnpicklingError"))
