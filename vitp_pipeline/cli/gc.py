"""vitp gc"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Json, Run
from vitp_pipeline.runtime.output import show


def register(app: typer.Typer) -> None:
    @app.command("gc")
    def gc(
        run: Run,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
        json: Json = False,
    ) -> None:
        """Remove stale files of killed tasks; results and files of running tasks are kept.

        vitp gc runs/camvid
        """
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.runs.gc import collect
        from vitp_pipeline.runtime.progress import say

        with documented(json) as document:
            found = collect(run, remove=not dry_run)
            size = sum(size for _, size in found)
            document.give(dry_run=dry_run, removed=[{"path": path, "bytes": size} for path, size in found], bytes=size)
            if not json:
                for path, _ in found:
                    show(path)
            would = "would remove" if dry_run else "removed"
            say(f"gc: {would} {len(found)} files, {size / 1e6:.1f} MB")
