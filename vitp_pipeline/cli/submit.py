"""vitp submit"""

from __future__ import annotations

from typing import Annotated

import typer

from vitp_pipeline.cli.options import (
    ClassifierFile,
    ClassifierName,
    DataRoot,
    DryRun,
    Json,
    Out,
    ProfileFile,
    RecipeName,
    Workers,
    engines,
    member_of,
    with_keys,
)
from vitp_pipeline.runtime.output import show_lines


def register(app: typer.Typer) -> None:
    @app.command("submit", cls=with_keys(engine=engines))
    def submit(
        recipe: RecipeName,
        data_root: DataRoot,
        out: Out,
        engine: Annotated[
            str,
            typer.Option(
                "--engine",
                help="Scheduler; k8s and aws print jobs for you to submit.",
                metavar="ENGINE",
                callback=member_of(engines),
            ),
        ],
        shards: Annotated[
            int | None, typer.Option("--shards", min=1, max=10**6, help="Number of shards of a new run.", metavar="N")
        ] = None,
        workers: Workers = None,
        profile: ProfileFile = None,
        dry_run: DryRun = False,
        name: ClassifierName = None,
        classifier: ClassifierFile = None,
        alpha: Annotated[
            str | None,
            typer.Option(help="Weight of the classifier, or first:last:step, as in `vitp evaluate`.", metavar="A"),
        ] = None,
        retry_failed: Annotated[
            bool, typer.Option("--retry-failed", help="Also run shards with failed images again.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Submit the missing work of all four stages as array jobs, each after those it depends on.

        Run it again after failures: it submits only what is still missing.

        vitp submit mine --data-root data --out run --shards 8 --profile mine.toml

        vitp submit camvid --data-root data --out run --shards 4 --engine local -j 4
        """
        from pathlib import Path

        from vitp_pipeline.artifacts.run import is_begun
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.cluster.engine import ENGINES, Handed, Work
        from vitp_pipeline.cluster.plan import Request, plan_chain
        from vitp_pipeline.cluster.profile import load_profile
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import check_decimal_sign
        from vitp_pipeline.decoding.remote import absolute as absolute_path
        from vitp_pipeline.errors import UsageError
        from vitp_pipeline.runtime.progress import say
        from vitp_pipeline.storage.run_store import LocalStore

        chosen = ENGINES[engine]
        if (workers and not chosen.takes_workers) or (profile and chosen.takes_workers):
            raise UsageError("--workers goes with --engine local, --profile with the others")
        if not isinstance(out, LocalStore) and chosen.here:
            raise UsageError(
                f"{out.url}: --engine {engine} keeps scripts and logs in the run, which must then be a folder",
                "Use --engine k8s or aws, or submit the stages' own commands (docs/cluster.md)",
            )
        if chosen.here:  # tasks start in this file system, if not in this folder
            recipe = str(Path(recipe).resolve()) if recipe.endswith(".toml") and Path(recipe).is_file() else recipe
            classifier = absolute(classifier)
            data_root, out = absolute_path(data_root), LocalStore(out.folder.resolve())
        if chosen.shards and not is_begun(out, out.folder / "proposals"):
            shards = shards or chosen.shards(workers)
        resources = load_profile(profile)
        check_decimal_sign(alpha or "")
        request = Request(recipe, data_root, out, shards, name, classifier, alpha, retry_failed)
        with documented(json) as document:
            chain = plan_chain(request, begin=chosen.here and not dry_run)
            jobs = [{"stage": job.stage, "shards": job.shards, "command": ["vitp", *job.command]} for job in chain.jobs]
            handed = Handed()
            if chain.jobs:
                act = chosen.plan if dry_run else chosen.submit
                handed = act(Work(chain, resources, out.folder, workers, show_figures=not json))
            else:
                say(f"submit: nothing to do, {out.url} is evaluated (`vitp evaluate` prints the figures)")
            plan = {"engine": engine, "dry_run": dry_run, "folder": out.url, "shards": chain.shards, "jobs": jobs}
            document.give(**plan, **handed.about)
            handed.check()
            if not json:
                show_lines(handed.text)
