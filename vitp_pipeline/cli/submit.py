"""vitp submit"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from vitp_pipeline.cli.options import ClassifierFile, ClassifierName, DataRoot, Out, RecipeName


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
            Engine, typer.Option("--engine", help="k8s and aws print what you submit yourself.", show_default=False)
        ],
        shards: Annotated[int | None, typer.Option("--shards", min=1, help="Of a new run.", metavar="N")] = None,
        workers: Annotated[
            int | None, typer.Option("-j", "--workers", min=1, help="local: processes at once (default: one per GPU).")
        ] = None,
        profile: Annotated[
            str | None, typer.Option("--profile", help="What the cluster must be told: a .toml.", metavar="FILE")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts, begin nothing.")] = False,
        name: ClassifierName = None,
        classifier: ClassifierFile = None,
        alpha: Annotated[str | None, typer.Option(help="As of `vitp evaluate`.", metavar="A")] = None,
        retry_failed: Annotated[
            bool, typer.Option("--retry-failed", help="Also the shards that hold failed images.")
        ] = False,
    ) -> None:
        """All four stages as array jobs: what is missing of a run, each task after those it needs.

        Run it again after failures: it submits what is still missing, and nothing that is done.

            vitp submit camvid --data-root data/camvid --out runs/camvid --shards 8 --engine slurm --profile mine.toml

            vitp submit camvid --data-root data/camvid --out runs/camvid --shards 4 --engine local -j 4
        """
        import os
        import signal
        from pathlib import Path

        from vitp_pipeline.artifacts.places import mirror_of, shown
        from vitp_pipeline.cluster.local import make_slots, run_chain, visible_gpus
        from vitp_pipeline.cluster.plan import Request, plan_chain
        from vitp_pipeline.cluster.profile import load_profile
        from vitp_pipeline.cluster.slurm import jobs_folder, print_scripts, submit_chain
        from vitp_pipeline.cluster.templates import aws_batch, kubernetes
        from vitp_pipeline.errors import UsageError
        from vitp_pipeline.progress import say
        from vitp_pipeline.shard import array_expression

        local, elsewhere = engine is Engine.local, engine in (Engine.k8s, Engine.aws)
        if (workers and not local) or (profile and local):
            raise UsageError("--workers goes with --engine local, --profile with the others")
        if mirror_of(out) is not None and not elsewhere:
            raise UsageError(
                f"{shown(out)}: --engine {engine.value} keeps scripts and logs in the run, which must then be a folder",
                "Use --engine k8s or aws, or submit the stages' own commands (docs/cluster.md)",
            )
        if not elsewhere:  # tasks start in this file system, if not in this folder
            recipe = str(Path(recipe).resolve()) if recipe.endswith(".toml") and Path(recipe).is_file() else recipe
            classifier = classifier and str(Path(classifier).resolve())
            data_root, out = data_root.resolve(), out.resolve()
        slots = make_slots(workers, visible_gpus(), sorted(os.sched_getaffinity(0))) if local else []
        if local and not (out / "proposals" / "run.json").exists():
            shards = shards or len(slots)
        resources = load_profile(profile)
        request = Request(recipe, data_root, out, shards, name, classifier, alpha, retry_failed)
        chain = plan_chain(request, begin=not (dry_run or elsewhere))
        if not chain.jobs:
            say(f"submit: nothing to do, {out} is evaluated (`vitp evaluate` prints the figures)")
        elif elsewhere:
            print({Engine.k8s: kubernetes, Engine.aws: aws_batch}[engine](chain, resources, out), end="")
        elif engine is Engine.slurm and dry_run:
            print_scripts(chain, resources, out)
        elif engine is Engine.slurm:
            for job_id in submit_chain(chain, resources, out):
                print(job_id)
        elif dry_run:
            for job in chain.jobs:
                tasks = f", shards {array_expression(job.shards)}" if job.shards else ""
                print(f"{job.stage}{tasks}: vitp {' '.join(job.command)}")
        else:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends its processes too
            run_chain(chain, jobs_folder(out) / "log", slots)
