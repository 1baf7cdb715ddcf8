"""vitp gc"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import Run


def register(app: typer.Typer) -> None:
    @app.command("gc", rich_help_panel="Clusters")
    def gc(
        run: Run,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    ) -> None:
        """Remove what killed tasks left behind; never what a task that is at work is writing, nor any result.

        vitp gc runs/camvid
        """
        from vitp_pipeline.artifacts.places import shown
        from vitp_pipeline.cluster.gc import collect
        from vitp_pipeline.progress import say

        found = collect(run, remove=not dry_run)
        for path, _ in found:
            print(shown(path))
        would = "would remove" if dry_run else "removed"
        say(f"gc: {would} {len(found)} files, {sum(size for _, size in found) / 1e6:.1f} MB")
