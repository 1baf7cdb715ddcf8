"""Shards of `vitp predict` as an array job: one task a shard, none that waits for another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.run import StageRun, is_begun, open_run
from vitp_pipeline.cluster.engine import ENGINES, Work
from vitp_pipeline.cluster.plan import Chain, Job, unfinished
from vitp_pipeline.cluster.profile import load_profile
from vitp_pipeline.decoding.remote import absolute, is_remote, name_of
from vitp_pipeline.errors import UsageError
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.layout import PREDICT
from vitp_pipeline.storage.run_store import LocalStore, RunStore


@dataclass(frozen=True)
class PredictCommand:
    """Arguments of `vitp predict`, as the user gave them; those by name are paths, if such a file exists.

    Attributes:
        others, repeated: values of further flags.
    """

    images: Sequence[Path]
    out: str
    recipe: str | None = None
    run: str | None = None
    generator: str | None = None
    checkpoint: str | None = None
    classifier: str | None = None
    masks: str | None = None
    data_root: Path | None = None
    others: Mapping[str, str | None] = field(default_factory=dict)
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    retry_failed: bool = False

    def words(self, here: bool) -> list[str]:
        """Return the arguments of vitp, without those for its shard.

        Args:
            here: tasks start in this file system, if not in this folder: paths are made absolute.
        """

        def place(path: Path) -> str:
            return name_of(absolute(path) if here else path)

        def named(text: str | None) -> str | None:
            is_path = text is not None and here and "://" not in text and Path(text).exists()
            return str(Path(text).resolve()) if is_path and text is not None else text

        flags = {
            "--out": named(self.out) if is_remote(Path(self.out)) or not here else str(Path(self.out).resolve()),
            "--recipe": named(self.recipe) if self.recipe and self.recipe.endswith(".toml") else self.recipe,
            "--run": named(self.run),
            "--generator": named(self.generator),
            "--checkpoint": named(self.checkpoint),
            "--classifier": named(self.classifier),
            "--masks": named(self.masks),
            "--data-root": None if self.data_root is None else place(self.data_root),
            **self.others,
        }
        words = ["predict", *map(place, self.images)]
        for flag, value in flags.items():
            words += [] if value is None else [flag, value]
        for flag, values in self.repeated.items():
            for value in values:
                words += [flag, value]
        return [*words, "--retry-failed"] if self.retry_failed else words


def submit_predict(
    command: PredictCommand,
    engine: str,
    begin: Callable[[int], StageRun] | None,
    out: RunStore,
    shards: int | None,
    workers: int | None,
    profile: str | None,
    dry_run: bool,
    give: Callable[..., None],
) -> str:
    """Run or submit the shards that are missing; return what `vitp submit` prints.

    Args:
        begin: makes the run for a number of shards, or checks it; None = what is there is not looked at.
        give: takes the results for --json.
    Raises:
        UsageError: flags of another engine; the number of shards of a new run is unknown. UserError: as `begin`.
    """
    chosen = ENGINES[engine]
    if (workers and not chosen.takes_workers) or (profile and chosen.takes_workers):
        raise UsageError("--workers goes with --engine local, --profile with the others")
    if not isinstance(out, LocalStore) and chosen.here:
        raise UsageError(
            f"{out.url}: --engine {engine} keeps scripts and logs beside the results, which must then be a folder",
            "Use --engine k8s or aws, or your own array job with --shard /N",
        )
    folder = out.folder / PREDICT
    known = open_run(out, folder) if chosen.here and is_begun(out, folder) else None
    count = shards or (known.shards if known else None) or (chosen.shards(workers) if chosen.shards else None)
    if not count:
        raise UsageError(f"{out.url}: the number of shards of a new run is required", "Give --shards N")
    run = known if begin is None else begin(count)
    left = tuple(range(count)) if run is None else unfinished(run, command.retry_failed)
    job = Job("predict", tuple(command.words(chosen.here)), left)
    about: dict[str, Any] = {"engine": engine, "dry_run": dry_run, "folder": out.url, "shards": count}
    if not left:
        say(f"predict: nothing to do, the results are in {out.url}")
        give(**about, jobs=[])
        return ""
    act = chosen.plan if dry_run else chosen.submit
    handed = act(Work(Chain(count, (job,)), load_profile(profile), out.folder, workers))
    give(**about, jobs=[{"stage": job.stage, "shards": left, "command": ["vitp", *job.command]}], **handed.about)
    handed.check()
    return handed.text
