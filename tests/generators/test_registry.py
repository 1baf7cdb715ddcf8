"""Which generator a recipe means, what tells it from others, and the docs' own generator from the page to the stage."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.datasets import making
from tests.generators.conformance import GeneratorConformance
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.cli.app import app
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.errors import IncompatibleError, InputError, UsageError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.generators.base import Generator
from vitp_pipeline.generators.registry import OpenMMLabSource, OwnSource, TransformersSource, find_source
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.storage.digests import Digests
from vitp_pipeline.storage.run_store import LocalStore

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "generators" / "own.md"
SWIN = "mask2former_swin-t_8xb2-160k_ade20k-512x512"


def locate(text: str) -> Path:
    if not Path(text).is_file():
        raise InputError(f"{text} is not there")
    return Path(text)


def hf_folder(folder: Path, weights: bytes = b"weights", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "oneformer", **config}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_each_way_to_name_a_generator(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model")
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "lab.json").write_text('{"model": {"type": "EncoderDecoder"}}')
    found = find_source(ProposalSettings(str(folder)), locate)
    assert isinstance(found, TransformersSource) and found.name == "model"
    assert found.model.weights == (folder / "model.safetensors",)
    found = find_source(ProposalSettings(str(folder / "config.json"), "random"), locate)
    assert isinstance(found, TransformersSource) and found.model.weights == ()
    found = find_source(ProposalSettings(f"python:{tmp_path / 'mine.py'}:Mine", seed=3), locate)
    assert found == OwnSource(tmp_path / "mine.py", "Mine", None, 3)
    found = find_source(ProposalSettings(SWIN, "random"), locate)
    assert isinstance(found, OpenMMLabSource) and found.name == f"{SWIN}.py" and found.checkpoint is None
    found = find_source(ProposalSettings(str(tmp_path / "lab.json"), "random"), locate)
    assert isinstance(found, OpenMMLabSource)


@pytest.mark.parametrize(
    ("settings", "error", "fault"),
    [
        (ProposalSettings("python:mine.py"), UsageError, "names no class"),
        *(
            (ProposalSettings(f"python:mine.{end}:Mine"), UsageError, "names no class")
            for end in ("so", "pyc", "txt", "PY")
        ),
        (ProposalSettings("python:absent.py:Mine"), InputError, r"absent\.py"),
        (ProposalSettings(SWIN, "random", task="semantic"), UsageError, "`task` and `test_size`"),
        (ProposalSettings(SWIN, "random", test_size=(640, 2560)), UsageError, "`task` and `test_size`"),
        (ProposalSettings("nothing-of-that-name"), InputError, "nothing-of-that-name"),
        (ProposalSettings("/nowhere/config.py"), InputError, r"nowhere/config\.py"),
    ],
)
def test_faulty_names(settings: ProposalSettings, error: type, fault: str) -> None:
    with pytest.raises(error, match=fault):
        find_source(settings, locate)


def test_a_checkpoint_beside_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights in its folder"):
        find_source(ProposalSettings(str(hf_folder(tmp_path / "model")), checkpoint="x.pth"), locate)


def test_what_changes_results_changes_the_identity_of_a_folder(tmp_path: Path) -> None:
    """Config, preprocessor and weights, by content: not the folder's name or place."""

    def identity(folder: Path) -> dict:
        settings = ProposalSettings(str(folder), "" if folder.is_dir() else "random")
        return find_source(settings, locate).identity(Digests(LocalStore(tmp_path / "run")))

    (tmp_path / "run").mkdir()
    first = identity(hf_folder(tmp_path / "a"))
    assert first == identity(hf_folder(tmp_path / "b"))
    assert first["library"] == "transformers"
    changed = {
        "checkpoint": hf_folder(tmp_path / "c", b"others"),
        "config": hf_folder(tmp_path / "d", num_queries=7),
        "preprocessor": hf_folder(tmp_path / "e"),
    }
    (changed["preprocessor"] / "preprocessor_config.json").write_text('{"size": 512}')
    for key, folder in changed.items():
        other = identity(folder)
        assert {k for k in first if first[k] != other[k]} == {key}
    assert identity(tmp_path / "a" / "config.json")["checkpoint"] == "random weights"


def test_a_name_of_the_hub_is_a_folder_and_needs_no_torch(tmp_path: Path) -> None:
    """With a local cache as huggingface_hub lays it out, and no network."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--owner--model"
    hf_folder(cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vitp_pipeline.storage.digests import Digests\n"
        "from vitp_pipeline.storage.run_store import LocalStore\n"
        "from vitp_pipeline.generators.registry import find_source\n"
        "from vitp_pipeline.config.recipe import ProposalSettings\n"
        "from vitp_pipeline.errors import InputError\n"
        "source = find_source(ProposalSettings('hf:owner/model'), Path)\n"
        "assert source.model.weights and source.identity(Digests(LocalStore(Path(sys.argv[1]))))\n"
        "try:\n"
        "    find_source(ProposalSettings('hf:owner/absent'), Path)\n"
        "except InputError as error:\n"
        "    assert 'hf:owner/absent cannot be fetched' in str(error)\n"
        "    print({'torch', 'transformers', 'mmengine'} & set(sys.modules))\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "set()", done.stderr


def example(folder: Path) -> Path:
    """The page's example, as a file."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    (folder / "lraspp.py").write_text(code, encoding="utf-8")
    return folder / "lraspp.py"


class TestExampleOfTheDocs(GeneratorConformance):
    def make(self, folder: Path, seed: int = 0) -> Generator:
        return find_source(ProposalSettings(f"python:{example(folder)}:Lraspp", seed=seed), locate).build("cpu")


def run(folder: Path, **settings: object) -> None:
    recipe = load_recipe(folder / "r.toml")
    chosen = recipe.stage(ProposalSettings, **settings)
    generate_proposals(recipe, chosen, folder / "data", folder / "run", choose_shard(None, {}))


def test_the_stage_runs_the_example(tmp_path: Path) -> None:
    """And knows it again: the same text is the same generator, another one is not."""
    making.write_coco(tmp_path / "data", 3)
    (tmp_path / "toy.toml").write_text(making.COCO_MANIFEST)
    file = example(tmp_path)
    (tmp_path / "r.toml").write_text(
        'manifest = "toy.toml"\n[generate-proposals]\nconfig = "python:lraspp.py:Lraspp"\n'
    )
    run(tmp_path)
    records = list(open_proposals(tmp_path / "run"))
    assert len(records) == 3
    assert all(len(record.class_logits) == 3 for record in records)
    run(tmp_path)  # nothing to do
    file.write_text(file.read_text() + "\n# another\n")
    with pytest.raises(IncompatibleError, match=r"generator\.config"):
        run(tmp_path)


def test_a_class_that_is_no_generator(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def __init__(self, checkpoint, device, seed): ...\n")
    with pytest.raises(InputError, match=r"mine\.py:Mine is not a generator"):
        find_source(ProposalSettings(f"python:{tmp_path / 'mine.py'}:Mine"), locate).build("cpu")
    with pytest.raises(InputError, match=r"mine\.py: defines no Yours"):
        find_source(ProposalSettings(f"python:{tmp_path / 'mine.py'}:Yours"), locate).build("cpu")


def test_generators_lists_what_is_here_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitp_pipeline.generators import availability

    def listed() -> dict[str, dict]:
        result = CliRunner().invoke(app, ["generators", "--json"])
        assert result.exit_code == 0
        return {entry["family"]: entry for entry in json.loads(result.output)}

    families = listed()
    assert set(families) == {"OpenMMLab", "transformers", "own"}
    assert families["OpenMMLab"]["ready"] and families["OpenMMLab"]["packages"]["mmseg"]
    real = availability.find_spec
    monkeypatch.setattr(availability, "find_spec", lambda name: None if name == "transformers" else real(name))
    entry = listed()["transformers"]
    assert not entry["ready"] and entry["packages"] == {"transformers": None}
    assert entry["install"] == 'pip install "vitp-pipeline[hf]"'
    result = CliRunner().invoke(app, ["generators"], env={"COLUMNS": "200"})
    assert "lacks transformers" in result.output and 'pip install "vitp-pipeline[hf]"' in result.output
