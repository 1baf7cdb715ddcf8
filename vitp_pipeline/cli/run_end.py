"""The end of `vitp run`: figures or exported folders, the report, and the next command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.runtime.escaping import shell_words
from vitp_pipeline.runtime.output import show

if TYPE_CHECKING:
    from vitp_pipeline.stages.pipeline import Finished
    from vitp_pipeline.storage.run_store import RunStore


def write_run_report(finished: Finished, store: RunStore, data_root: Path, recipe: str) -> Path | None:
    """Write RUN/report.html of the evaluation that was made; None where none was."""
    from vitp_pipeline.report.loaded_evaluation import open_evaluation
    from vitp_pipeline.report.report import write_report

    if finished.evaluation is None:
        return None
    name = finished.evaluation.run.folder.relative_to(store.folder).as_posix()
    path = store.folder / "report.html"
    write_report(open_evaluation(f"{store.url}/{name}", data_root, recipe), path)
    store.publish(path)
    return path


def show_end(finished: Finished, store: RunStore, data_root: Path, recipe: str, page: Path | None) -> None:
    """Print the figures, and where the results are."""
    from vitp_pipeline.evaluation.summary import print_result

    if finished.result is not None:
        print_result(finished.result)
    if page is not None:
        show(f"report: {page}")
    elif finished.result is not None:
        words = ["vitp", "report", store.url, "--data-root", str(data_root), "--recipe", recipe]
        show(f"next: {shell_words(words)}")
    if finished.unmeasured and finished.exports:
        show(f"no figures: {finished.unmeasured}")
    for folder in finished.exports:
        show(f"exported: {folder}")
    if finished.result is None and not finished.exports:
        show(f"next: {shell_words(['vitp', 'status', store.url])}")
