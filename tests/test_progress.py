"""Being quiet is undone when the last thread that asked for it is through."""

from __future__ import annotations

import logging
import warnings

from vitp_pipeline.progress import quiet


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
