"""A finished run of many images, without the images: for the time that a command takes to see that all is done."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

SHARDS = 16
MANIFEST = """
name = "empty"
classes = [
{classes}
]
[labels]
kind = "semantic-png"
[splits.val]
images = "images/*.png"
labels = "labels/{{stem}}.png"
"""
RECIPE = """
manifest = "empty.toml"
[generate-proposals]
config = "{package}/demo/generator_config.py"
checkpoint = "{package}/demo/generator.safetensors"
"""


def finished_run(root: Path, count: int) -> list[str]:
    """Make a dataset of empty files and its finished run; return the command that resumes it."""
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ProposalSettings
    from vitp_pipeline.datasets import load_manifest
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.stages import generate_proposals
    from vitp_pipeline.storage.sealed import write_sealed

    for folder in ("images", "labels"):
        (root / folder).mkdir()
        for number in range(count):
            (root / f"{folder}/{number:06d}.png").touch()
    classes = load_manifest("demo").class_names  # its generator's
    names = (f'  {{ name = "{name}", label = {k}, thing = false }},' for k, name in enumerate(classes))
    (root / "empty.toml").write_text(MANIFEST.format(classes="\n".join(names)))
    (root / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(root / "recipe.toml")
    settings, shards = recipe.stage(ProposalSettings), ShardChoice(count=SHARDS)
    with patch.object(generate_proposals, "run_parts") as run_parts:
        generate_proposals.generate_proposals(recipe, settings, root, root / "run", shards)
    run = run_parts.call_args.args[0]
    for shard in range(SHARDS):
        done = {"images": len(run.shard_images(shard)), "parts": len(run.parts(shard)), "bytes": 0, "failed": []}
        write_sealed(run.shard_folder(shard) / "done.json", {**done, "run": run.digest, "files": {}})
    where = ["--data-root", str(root), "--out", str(root / "run")]
    start = "from vitp_pipeline.cli.main import main; main()"
    return [sys.executable, "-c", start, "generate-proposals", str(root / "recipe.toml"), *where]
