"""What progress says in a log; being quiet is undone when the last thread that asked for it is through."""

from __future__ import annotations

import logging
import warnings

import pytest

from vitp_pipeline.runtime.progress import counted, progress, quiet


def test_the_end_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("classify", 3) as bar:
        for count in (2, 1, 0):  # a shard that was finished meanwhile advances by what is left of it
            bar.advance(count)
    assert capsys.readouterr().err.count("3/3 images") == 1


def test_counted() -> None:
    assert [counted(n, "image") for n in (0, 1, 12345)] == ["0 images", "1 image", "12,345 images"]


def test_quiet_in_two_threads_that_end_in_the_order_in_which_they_began() -> None:
    logger = logging.getLogger("vitp.tests.quiet")
    logger.setLevel(logging.INFO)
    filters = warnings.filters[:]
    first, second = quiet(logger), quiet(logger)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logger.level == logging.ERROR
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn("unseen", stacklevel=1)
    assert seen == []
    second.__exit__(None, None, None)
    assert logger.level == logging.INFO and warnings.filters == filters
