"""Stored features of a frozen backbone: the same bytes with and without them, and one forward an image."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.classifier.making import ARGS, tiny_model
from tests.local_runs import open_run
from tests.pipeline.conftest import snapshot
from tests.stages import making
from vitp_pipeline.artifacts.features import FeatureStore, array_of_image
from vitp_pipeline.artifacts.parts import ArrayReader
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.classifier.features.patch_features import LARGEST, PatchEncoder, feature_logits, features_identity
from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import save_classifier
from vitp_pipeline.config.settings import ClassifySettings, TrainSettings
from vitp_pipeline.errors import StorageError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.runs.gc import collect
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.status import run_status
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.stages import features as stage
from vitp_pipeline.stages.classify import class_scores_run, classify
from vitp_pipeline.stages.train_classifier import train_classifier

IMAGES = 5
HEAD = {
    "split": "val",
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": ARGS,
    "image_size": (32, 48),
    "points_per_image": 16,
    "batch_size": 2,
    "epochs": 2,
    "device": "cpu",
    "point_token": "sampled",
    "feature_layers": (1, 3),
}
LDA = {**HEAD, "fit": "lda", "norm": "none"}
GRADIENT = {**HEAD, "backbone_lr": 0.0, "norm": "batch", "dropout": 0.2, "drop_path": 0.2, "hold_out": 1}


@dataclass
class Work:
    """A toy project with proposals, and its trainings and classifications, each in the run that it names."""

    folder: Path
    project: making.Project
    forwards: list[int] = field(default_factory=list)
    """Images of each forward of a frozen backbone."""

    def run(self, name: str = "run") -> Path:
        if not (run := self.folder / name).exists():
            making.make_run(self.project, run)
            shutil.rmtree(run / "class_scores")
        return run

    def train(self, run: str = "run", name: str = "head", **settings) -> dict[str, bytes]:
        """Files of a training."""
        chosen = self.project.recipe.stage(TrainSettings, name=name, **settings)
        file = train_classifier(self.project.recipe, chosen, self.project.root, self.run(run))
        own = {"run.json", "copies.json", "done.json", "model.json", "best.json", "last.json"}  # name their place
        return {path.name: path.read_bytes() for path in file.parent.iterdir() if path.name not in own}

    def classify(self, run: str = "run", shard: str | None = None, **settings) -> dict[str, np.ndarray]:
        """Scores of every image by a classifier with random weights."""
        file = self.folder / "random.safetensors"
        if not file.exists():
            save_classifier(tiny_model(point_token="sampled", feature_layers=(1, 3), norm="none"), file, {})
        chosen = self.project.recipe.stage(ClassifySettings, classifier=str(file), **settings)
        classify(self.project.recipe, chosen, self.project.root, self.run(run), choose_shard(shard, {}))
        scores, found = class_scores_run(open_proposals(self.run(run)), file, chosen), {}
        for part, images in enumerate(scores.parts(0)):
            with scores.open_arrays(0, part) as arrays:
                found |= {image: arrays.read(f"point_logits/{image}") for image in images}
        return found

    def folders(self, run: str = "run") -> dict[str, Path]:
        """Folders of features by split and kind."""
        found = {}
        for folder in sorted((self.run(run) / "features").glob("*")):
            identity = json.loads((folder / "run.json").read_text())["identity"]
            found[f"{folder.name} {'mirrored' if identity['mirrored'] else 'plain'}"] = folder
        return found


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    work, forward = Work(tmp_path, making.make_project(tmp_path, IMAGES)), PointViT.patch_features

    def counted(model: PointViT, images: torch.Tensor) -> list[torch.Tensor]:
        work.forwards.append(len(images))
        return forward(model, images)

    monkeypatch.setattr(PointViT, "patch_features", counted)
    return work


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(stage, "say", lines.append)
    monkeypatch.setattr("vitp_pipeline.artifacts.features.say", lines.append)
    monkeypatch.setattr("vitp_pipeline.stages.train_classifier.say", lines.append)
    return lines


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


# ---- the same bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [LDA, GRADIENT, {**GRADIENT, "keep": "best", "norm": "layer", "head": "mlp"}])
def test_a_training_has_the_same_bytes_with_stored_features_and_without(work: Work, settings: dict) -> None:
    without = work.train("without", feature_cache=0.0, **settings)
    assert not work.folders("without") and work.forwards
    assert work.train("with", **settings) == without and len(work.folders("with")) == 2
    assert work.train("with", "again", **settings) == without  # all from the store


def test_features_are_those_of_the_whole_model_to_float16(work: Work) -> None:
    """Against the model's own forward, of images in a batch: by float16's rounding of the features."""
    torch.manual_seed(0)
    model = tiny_model(point_token="sampled", feature_layers=(1, 3), norm="none")
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    points = torch.rand(2, 9, 2) * 1.9 - 0.95
    for flip in (False, True):
        expected = point_logits(model, images, points, flip=flip)
        encoder = PatchEncoder(model, "float32")
        for number in range(2):
            plain, mirrored = (
                torch.from_numpy(encoder(pixels.numpy())) for pixels in (images[number], images[number].flip(-1))
            )
            assert plain.shape == (2, 24, 32) and plain.dtype == torch.float16
            found = feature_logits(model, plain, points[number], mirrored if flip else None)
            torch.testing.assert_close(found, expected[number], atol=2e-3 * float(expected.abs().max()), rtol=0)
            assert not torch.equal(found, expected[number])


def test_no_points_have_no_logits() -> None:
    model = tiny_model(point_token="sampled")
    features = torch.from_numpy(PatchEncoder(model, "float32")(np.zeros((3, 32, 48), np.uint8)))
    assert feature_logits(model, features, torch.zeros(0, 2), features).shape == (0, 3)


def test_large_features_stay_finite() -> None:
    model = tiny_model(point_token="sampled")
    with torch.no_grad():
        model.backbone.blocks[-1].mlp.fc2.bias[:2] = torch.tensor([1e6, -1e6])
    found = PatchEncoder(model, "float32")(np.zeros((3, 32, 48), np.uint8))
    assert (found[..., 0] == LARGEST).all() and (found[..., 1] == -LARGEST).all() and np.isfinite(found).all()


# ---- one forward ----------------------------------------------------------------------------------------------------


def test_a_second_head_needs_no_forward(work: Work) -> None:
    """Another seed, prior, head, way of fitting, fold, number of points."""
    work.train(**LDA)
    assert work.forwards == [1] * (2 * IMAGES)  # one of the image, one of its mirror image; none of the two epochs
    for number, changes in enumerate(
        (
            {**LDA, "seed": 7, "weights": str(weights_of(work)), "epochs": 3},
            {**LDA, "weights": str(weights_of(work)), "class_prior": 1.0, "hold_out": 2, "hold_out_fold": 1},
            {**GRADIENT, "weights": str(weights_of(work)), "head": "mlp", "points_per_image": 40},
            {**GRADIENT, "weights": str(weights_of(work)), "hold_out": 2, "norm": "layer", "flip": False},
        )
    ):
        work.forwards.clear()
        work.train(name=f"head{number}", **changes)
        assert work.forwards == ([1] * (2 * IMAGES) if number == 0 else [])  # the first has other weights than LDA's


def weights_of(work: Work) -> Path:
    """A backbone's file."""
    from safetensors.torch import save_file

    if not (file := work.folder / "backbone.safetensors").exists():
        save_file(tiny_model(seed=3, point_token="sampled").backbone.state_dict(), file)
    return file


def test_classify_runs_one_forward_for_all_policies_chunks_and_temperatures(work: Work) -> None:
    first = work.classify()
    assert work.forwards == [1] * IMAGES
    for changes in ({"temperature": 0.5}, {"chunk": 3}, {"chunk": 3, "temperature": 0.1}, {"batch_size": 1}):
        found = work.classify(**changes)
        scaled = {image: values / changes.get("temperature", 1.0) for image, values in first.items()}
        for image, values in found.items():
            np.testing.assert_allclose(values, scaled[image], atol=1e-5, rtol=1e-5)
    assert work.forwards == [1] * IMAGES
    flipped = work.classify(flip=True)
    assert work.forwards == [1] * (2 * IMAGES)  # mirror images alone
    assert same(work.classify("without", flip=True, feature_cache=0.0), flipped)
    assert same(work.classify("without", feature_cache=0.0), first) and not work.folders("without")


def test_classify_and_training_share_features(work: Work) -> None:
    """Here the images that are trained on are those that are classified."""
    work.train(name="default2", **{**LDA, "weights": str(weights_of(work))})
    work.forwards.clear()
    settings = work.project.recipe.stage(ClassifySettings, name="default2")
    classify(work.project.recipe, settings, work.project.root, work.run(), choose_shard(None, {}))
    assert not work.forwards


def test_shards_are_stored_one_by_one(work: Work) -> None:
    making.make_run(work.project, work.folder / "run", shards=2)
    shutil.rmtree(work.folder / "run/class_scores")
    work.classify(shard="0")
    assert len(work.forwards) == 2
    work.classify(shard="1")
    assert len(work.forwards) == IMAGES
    work.classify(temperature=0.5)
    assert len(work.forwards) == IMAGES


# ---- what features depend on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"head": "mlp", "norm": "batch"}, False),
        ({"norm": "layer"}, False),
        ({"classes": ("a", "b")}, False),
        ({"dropout": 0.5, "drop_path": 0.5}, False),
        ({"seed": 1}, True),
        ({"image_size": (48, 48)}, True),
        ({"feature_layers": (2, 3)}, True),
        ({"depth": 2, "feature_layers": (1, 2)}, True),
    ],
    ids=str,
)
def test_what_changes_features_changes_their_identity(changes: dict, other: bool) -> None:
    fields = {"point_token": "sampled", "feature_layers": (1, 3), "norm": "none"}
    one, two = tiny_model(**fields), tiny_model(**{**fields, **changes})
    if "seed" not in changes and other is False:
        two.backbone.load_state_dict(one.backbone.state_dict(), strict=False)
    assert (features_identity(one, "float32") != features_identity(two, "float32")) is other


def test_precision_is_part_of_the_identity_by_what_it_comes_to() -> None:
    model = tiny_model(point_token="sampled")
    assert features_identity(model, "auto") == features_identity(model, "float32")
    assert features_identity(model, "auto") != features_identity(model, "bfloat16")


def test_one_changed_weight_changes_the_identity() -> None:
    model = tiny_model(point_token="sampled")
    before = features_identity(model, "float32")
    with torch.no_grad():
        model.backbone.blocks[2].mlp.fc2.bias[5] += 1e-6
    assert features_identity(model, "float32") != before


def test_an_image_whose_file_changed_is_computed_again(work: Work) -> None:
    work.train(**LDA)
    one = work.project.dataset.samples[3].image
    Image.fromarray(255 - np.asarray(Image.open(one).convert("RGB"))).save(one)
    work.forwards.clear()
    found = work.train(name="changed", **LDA)
    assert 1 <= len(work.forwards) <= 2  # of that image alone, once an epoch
    assert found == work.train("fresh", **LDA)


def test_random_changes_of_images_are_not_stored(work: Work, said: list[str]) -> None:
    for number, changes in enumerate(({"crop_scale": (0.5, 1.0)}, {"rotation": 10.0}, {"color_jitter": 0.1})):
        work.train(name=f"head{number}", **{**LDA, **changes})
        assert [line for line in said if line.startswith("features: not stored, crop_scale")] and not work.folders()
        said.clear()


def test_a_training_of_a_few_steps_stores_nothing(work: Work) -> None:
    few = {**LDA, "epochs": 0, "steps": 1, "batch_size": 1, "flip": False}
    work.train(**few)
    assert not work.folders() and work.forwards == [1]


def test_a_backbone_that_learns_stores_nothing(work: Work) -> None:
    work.train(**{**GRADIENT, "backbone_lr": 1e-3})
    assert not work.folders()


# ---- never needed ---------------------------------------------------------------------------------------------------


def test_too_large_features_are_not_stored(work: Work, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = work.train("free", **LDA)
    size = 2 * IMAGES * 2 * 24 * 32 * 2  # kinds, images, layers, patches, channels, bytes
    assert work.train("small", **LDA, feature_cache=(size - 1) / 1e9) == expected and not work.folders("small")
    assert any("feature_cache = " in line for line in said)
    monkeypatch.setattr(stage, "_free", lambda folder: 2 * size - 1)
    assert work.train("full", **LDA) == expected and not work.folders("full")
    assert any("that are free" in line for line in said)
    monkeypatch.setattr(stage, "_free", lambda folder: 2 * size)
    work.train("enough", **LDA, feature_cache=(size + 1) / 1e9)
    assert len(work.folders("enough")) == 2


def test_a_full_disk_ends_the_storing_and_nothing_else(
    work: Work, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = work.train("free", **LDA)
    work.run()
    monkeypatch.setattr(stage, "PART_BYTES", 2 * 2 * 24 * 32 * 2)  # two images
    commit, parts = stage.ArrayWriter.close, []

    def full(writer):
        parts.append(writer.path.name)
        if len(parts) == 2:
            raise StorageError("the disk is full")
        commit(writer)

    monkeypatch.setattr(stage.ArrayWriter, "close", full)
    assert work.train(**LDA) == expected
    assert "features: not stored (the disk is full)" in said
    assert not list((work.run() / "features").rglob("*.zarr.zip"))  # room for the results


def test_another_task_that_stores_them_is_not_waited_for(work: Work, said: list[str]) -> None:
    from vitp_pipeline.storage.locks import locked

    expected = work.train("free", **LDA)
    (plain,) = (folder for kind, folder in work.folders("free").items() if "plain" in kind)
    with locked(work.run() / "features" / plain.name / "shards/00000/lock"):
        assert work.train(**LDA) == expected
    assert any("another task is at work" in line for line in said)
    work.forwards.clear()
    work.train(name="later", **LDA)
    assert len(work.forwards) == IMAGES  # the plain ones; the mirrored ones were stored


@pytest.mark.parametrize("after", [1, 4, 7])
def test_killed_in_the_middle_it_continues_and_gives_the_same_bytes(
    work: Work, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PART_BYTES", 2 * 2 * 24 * 32 * 2)
    work.train("whole", **LDA)
    expected, encode, left = snapshot(work.run("whole") / "features"), PatchEncoder.__call__, [after]

    def killed(encoder, pixels):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return encode(encoder, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(PatchEncoder, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            work.train(**LDA)
    work.forwards.clear()
    work.train(**LDA)
    assert snapshot(work.run() / "features") == expected
    assert len(work.forwards) == 2 * IMAGES - 2 * ((after - 1) % IMAGES // 2) - (IMAGES if after > IMAGES else 0)


def damage_arrays(work: Work) -> None:
    for folder in work.folders().values():
        (file,) = folder.rglob("part-*.zarr.zip")
        content = bytearray(file.read_bytes())
        with zipfile.ZipFile(file) as entries:  # in every image: not all are read of both kinds
            places = [entry.header_offset + 200 for entry in entries.infolist() if "/c/" in entry.filename]
        for place in places:
            content[place] ^= 1
        file.write_bytes(content)


def damage_index(work: Work) -> None:
    for folder in work.folders().values():
        (file,) = folder.rglob("part-*.parquet")
        file.write_bytes(file.read_bytes()[:-9])


def damage_plan(work: Work) -> None:
    for folder in work.folders().values():
        (folder / "run.json").write_text("{}")


def remove_arrays(work: Work) -> None:
    for folder in work.folders().values():
        next(folder.rglob("part-*.zarr.zip")).unlink()


@pytest.mark.parametrize("damage", [damage_arrays, damage_index, damage_plan, remove_arrays])
def test_damaged_features_are_noticed_and_stored_again(
    work: Work, damage: Callable[[Work], None], said: list[str]
) -> None:
    expected = work.train(**LDA)
    before = snapshot(work.run() / "features")
    damage(work)
    said.clear()
    assert work.train(name="damaged", **LDA) == expected
    assert any(line.endswith("its features are computed again") for line in said)
    work.train(name="again", **LDA)
    assert snapshot(work.run() / "features") == before
    work.forwards.clear()
    assert work.train(name="last", **LDA) == expected and not work.forwards


# ---- status, verify, gc ---------------------------------------------------------------------------------------------


def test_status_verify_and_gc_know_features(work: Work) -> None:
    work.train(**LDA)
    entries = {e["stage"]: e for e in run_status(work.run()) if e["stage"].startswith("features/")}
    assert sorted(e["label"] for e in entries.values()) == ["val, 32×48", "val, 32×48, mirrored"]
    assert all((e["images"], e["of"], e["missing"]) == (IMAGES, IMAGES, "") for e in entries.values())
    (plain,) = (folder for kind, folder in work.folders().items() if "plain" in kind)
    (work.run() / "classifier/default/model.json").unlink()  # drawn by `making`, no training
    damage_arrays(work)
    damages = [d for d in verify_run(work.run()).damages if "features" in d.path.parts]
    assert len(damages) == 2 and not any(d.rerun for d in damages)
    assert not repair(damages)
    assert not [d for d in verify_run(work.run()).damages if "features" in d.path.parts]
    entries = {e["stage"]: e for e in run_status(work.run()) if e["stage"].startswith("features/")}
    assert all((e["shards_done"], e["missing"], e["stopped"]) == (0, "", []) for e in entries.values())
    stray = plain / "shards/00000/part-0000-0123456789ab.zarr.zip"
    stray.write_bytes(b"left by a killed task")
    assert stray in [path for path, _ in collect(work.run())] and not stray.exists()


def test_features_are_read_without_vitp_as_the_page_says(work: Work) -> None:
    work.train(**LDA)
    (plain,) = (folder for kind, folder in work.folders().items() if "plain" in kind)
    (file,) = plain.rglob("part-*.zarr.zip")
    sample = work.project.dataset.samples[0]
    with ArrayReader(file) as arrays:
        stored = arrays.read(array_of_image(sample.image_id))
    assert stored.dtype == np.float16 and stored.shape == (2, 24, 32)
    store = FeatureStore(open_run(plain))
    assert np.array_equal(store.read(sample.image_id), stored) and store.read("unknown") is None
    assert store.find(sample.image_id).size == work.project.dataset.read_image(sample).shape[:2]


def test_mirrored_pixels_are_those_of_a_mirrored_image(work: Work) -> None:
    """Training mirrors before it resizes, `classify` after: that is the same."""
    from vitp_pipeline.classifier.features.source import pixels_of

    for sample in work.project.dataset.samples:
        image = work.project.dataset.read_image(sample)
        for size in ((32, 48), (56, 40), (14, 98)):
            assert np.array_equal(
                pixels_of(image, size, True), prepare_image(np.ascontiguousarray(image[:, ::-1]), size)
            )
