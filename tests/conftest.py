from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitp_pipeline.generators.openmmlab.yapf_cache import import_yapf
from vitp_pipeline.runtime.signals import SIGNALS

SHARED = Path(os.environ.get("VITP_SHARED", Path(__file__).parents[2] / "shared"))
if (SHARED / "weights").is_dir():  # where the recipes of real images look for theirs
    os.environ.setdefault("VITP_WEIGHTS", str(SHARED / "weights"))

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # before torch is imported, for children as well
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_configure(config: pytest.Config) -> None:
    """yapf (of mmengine) writes a cache when first imported, of which workers that start at once would read half."""
    if not hasattr(config, "workerinput"):
        import_yapf()


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """The command line, run to its end in this process, leaves signals ignored: its own process would end now."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights beside the checkout (`VITP_SHARED` names another place)."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real images and weights of ../shared (or VITP_SHARED), which are not here")
    return SHARED
