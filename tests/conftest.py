from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights beside the checkout (`VITP_SHARED` names another place)."""
    folder = Path(os.environ.get("VITP_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the real images and weights of ../shared (or VITP_SHARED), which are not here")
    return folder
