"""vitp submit"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vitp_pipeline.cli.options import ClassifierFile, ClassifierName, DataRoot, Json, Out, RecipeName
from vitp_pipeline.runtime.output import show_lines

if TYPE_CHECKING:
    from vitp_pipeline.cluster.plan import Chain


class Engine(StrEnum):
    slurm = "slurm"
    local = "local"
    k8s = "k8s"
    aws = "aws"


def register(app: typer.Typer) -> None:
    @app.command("submit", rich_help_panel="Clusters")
    def submit(
        recipe: RecipeName,
        data_root: DataRoot,
        out: Out,
        engine: Annotated[
            Engine,
            typer.Option("--engine", help="Scheduler; k8s and aws print a job for you to submit.", show_default=False),
        ],
        shards: Annotated[
            int | None, typer.Option("--shards", min=1, max=10**6, help="Number of shards of a new run.", metavar="N")
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(
                "-j", "--workers", min=1, max=1024, help="With local: number of processes (default: one per GPU)."
            ),
        ] = None,
        profile: Annotated[
            str | None,
            typer.Option("--profile", help="Cluster profile (.toml): partition, time, memory, setup.", metavar="FILE"),
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts; submit nothing.")] = False,
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

            vitp submit camvid --data-root data/camvid --out runs/camvid --shards 8 --engine slurm --profile mine.toml

            vitp submit camvid --data-root data/camvid --out runs/camvid --shards 4 --engine local -j 4
        """
        import os
        from dataclasses import asdict
        from json import loads
        from pathlib import Path

        from vitp_pipeline.artifacts.run import is_begun
        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.cluster.local import ended, make_slots, report, run_chain, visible_gpus
        from vitp_pipeline.cluster.plan import Request, plan_chain
        from vitp_pipeline.cluster.profile import load_profile
        from vitp_pipeline.cluster.slurm import jobs_folder, plan_scripts, submit_chain
        from vitp_pipeline.cluster.templates import aws_batch, kubernetes
        from vitp_pipeline.config.flags import check_decimal_sign
        from vitp_pipeline.errors import UsageError
        from vitp_pipeline.runtime.progress import say
        from vitp_pipeline.storage.run_store import LocalStore

        local, elsewhere = engine is Engine.local, engine in (Engine.k8s, Engine.aws)
        if (workers and not local) or (profile and local):
            raise UsageError("--workers goes with --engine local, --profile with the others")
        if not isinstance(out, LocalStore) and not elsewhere:
            raise UsageError(
                f"{out.url}: --engine {engine.value} keeps scripts and logs in the run, which must then be a folder",
                "Use --engine k8s or aws, or submit the stages' own commands (docs/cluster.md)",
            )
        if not elsewhere:  # tasks start in this file system, if not in this folder
            recipe = str(Path(recipe).resolve()) if recipe.endswith(".toml") and Path(recipe).is_file() else recipe
            classifier = classifier and str(Path(classifier).resolve())
            data_root, out = data_root.resolve(), LocalStore(out.folder.resolve())
        slots = make_slots(workers, visible_gpus(), sorted(os.sched_getaffinity(0))) if local else []
        if local and not is_begun(out, out.folder / "proposals"):
            shards = shards or len(slots)
        resources = load_profile(profile)
        check_decimal_sign(alpha or "")
        request = Request(recipe, data_root, out, shards, name, classifier, alpha, retry_failed)
        with documented(json) as document:
            chain = plan_chain(request, begin=not (dry_run or elsewhere))
            jobs = [{"stage": job.stage, "shards": job.shards, "command": ["vitp", *job.command]} for job in chain.jobs]
            plan = {"engine": engine, "dry_run": dry_run, "folder": out.url, "shards": chain.shards, "jobs": jobs}
            text = ""
            if not chain.jobs:
                document.give(**plan)
                say(f"submit: nothing to do, {out.url} is evaluated (`vitp evaluate` prints the figures)")
            elif elsewhere:
                text = {Engine.k8s: kubernetes, Engine.aws: aws_batch}[engine](chain, resources, out.folder)
                document.give(**plan, manifest=loads(text) if engine is Engine.aws else text)
            elif engine is Engine.slurm and dry_run:
                planned = plan_scripts(chain, resources, out.folder)
                document.give(planned, **plan)
                text = planned.text()
            elif engine is Engine.slurm:
                submitted = submit_chain(chain, resources, out.folder)
                document.give(**plan, submitted=[asdict(job) for job in submitted])
                text = "".join(f"{job.id}\n" for job in submitted)
            elif dry_run:
                document.give(**plan)
                text = "".join(f"{line}\n" for line in commands(chain))
            else:
                logs = jobs_folder(out.folder) / "log"
                tasks = run_chain(chain, logs, slots, show_figures=not json)
                document.give(**plan, tasks=[ended(task, logs) for task in tasks])
                report(tasks, logs)
            if not json:
                show_lines(text)


def commands(chain: Chain) -> Iterator[str]:
    """A line for each job, for people."""
    from vitp_pipeline.execution.sharding import array_expression
    from vitp_pipeline.runtime.escaping import shell_words

    for job in chain.jobs:
        tasks = f", shards {array_expression(job.shards)}" if job.shards else ""
        yield f"{job.stage}{tasks}: {shell_words(['vitp', *job.command])}"
