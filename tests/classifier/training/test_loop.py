from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block

from tests.classifier.making import TOY_MANIFEST, tiny_model
from tests.datasets import making
from vitp_pipeline.classifier.training.augmentation import Augmentation
from vitp_pipeline.classifier.training.data import PointBatches
from vitp_pipeline.classifier.training.loop import Trainer
from vitp_pipeline.classifier.training.optim import make_optimizer, make_schedule, parameter_groups
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import CorruptError, PartialError, UsageError, UserError
from vitp_pipeline.stages.train_classifier import split_samples, train_classifier

# ---- the schedule ---------------------------------------------------------------------------------------------------


def rates(steps: int, at: list[int], **settings: float) -> list[float]:
    """Learning rates at some of `steps`, of a peak of 1."""
    chosen = TrainSettings(lr=1.0, **settings)
    optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}], chosen)
    schedule, found = make_schedule(optimizer, chosen, steps), []
    for step in at:
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("steps", "warmup", "step", "factor"),
    [
        (19_200, 0, 0, 1.0),
        (19_200, 0, 18_750, 0.0014),
        (20_700, 0, 12_000, 0.376),
        (34_500, 0, 28_700, 0.068),
        (37_500, 0, 34_900, 0.012),
        (19_200, 80_000, 19_100, 0.239),  # vitl14_ADE20k: a warm-up that never ends
    ],
)
def test_schedule_golden_values(steps: int, warmup: int, step: int, factor: float) -> None:
    """Factors that the official code's arithmetic gives for its configs."""
    assert rates(steps, [step], warmup_steps=warmup) == [pytest.approx(factor, abs=5e-4)]


def test_schedule_shape() -> None:
    found = rates(100, list(range(100)), warmup=0.1)
    assert found[0] == 0.0 and found[5] == 0.5 and found[10] == 1.0
    assert found[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * (s - 10) / 90)) for s in range(10, 100)])
    assert np.diff(found[:11]) == pytest.approx(0.1) and (np.diff(found[10:]) < 0).all()


def test_warmup_in_steps_or_as_a_share() -> None:
    at = [7, 50]
    assert rates(1000, at)[1] == 1.0 and rates(1000, at, warmup_steps=7)[0] == 1.0 == rates(1000, [0], warmup=0.0)[0]
    assert rates(1000, [0], warmup_steps=0)[0] == 1.0 > rates(1000, [0])[0]  # none; and by default a twentieth


def test_parameter_groups_cover_every_parameter_once() -> None:
    def of(point_token: str = "linear", **changes) -> tuple[dict[str, tuple[float, float]], set[str]]:
        model = tiny_model(point_token=point_token)
        names = {id(p): n for n, p in model.named_parameters()}
        groups = parameter_groups(model, TrainSettings(point_token=point_token, **changes))
        found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
        assert len(found) == sum(len(g["params"]) for g in groups)
        return found, {n for n, p in model.named_parameters() if not p.requires_grad}

    found, frozen = of(lr=0.01, weight_decay=0.1, backbone_lr=0.001)
    assert frozen == {"backbone.cls_token"} and "backbone.cls_token" not in found
    assert found["head.weight"] == (0.01, 0.1) and found["head.bias"] == (0.01, 0.0)
    assert found["point_layer.weight"] == (0.01, 0.1)
    assert found["backbone.blocks.0.mlp.fc1.weight"] == (0.001, 0.1)
    assert found["backbone.pos_embed"] == (0.001, 0.0) and found["backbone.norm.weight"] == (0.001, 0.0)
    assert len(found) == len(list(tiny_model().parameters())) - 1

    own_point_rate, _ = of(lr=0.02, backbone_lr=0.003, point_lr=0.01)
    assert {name for name, (lr, _) in own_point_rate.items() if lr == 0.01} == {"point_layer.weight"}
    assert own_point_rate["head.bias"][0] == 0.02 and own_point_rate["backbone.pos_embed"][0] == 0.003
    still, frozen = of("patch", point_lr=0.0)
    assert "point_layer.weight" in frozen and "backbone.pos_embed" in still

    default, _ = of(lr=0.02)
    assert set(default.values()) == {(0.02, 0.0)}  # the paper's: one rate, no decay
    head_only, frozen = of("patch", backbone_lr=0.0)
    assert set(head_only) == {"head.weight", "head.bias"}
    assert all(n.startswith(("backbone.", "point_layer.")) for n in frozen)


def test_a_frozen_backbone_stays_and_the_head_learns() -> None:
    model = tiny_model(point_token="patch", attention="read-only", drop_path=0.5)
    parameter_groups(model, TrainSettings(point_token="patch", backbone_lr=0.0))
    model.train()
    images, points = torch.randn(2, 3, 32, 48), torch.rand(2, 5, 2)
    assert torch.equal(model(images, points), model(images, points))  # no drop-path in it
    model(images, points).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(making.write_semantic(tmp_path / "data", 7), tmp_path / "data", "train")


def batches(dataset: Dataset, **changes) -> PointBatches:
    fields = {"image_size": (32, 48), "points": 20, "batch_size": 3, "augmentation": Augmentation(flip=True), "seed": 5}
    return PointBatches(dataset, dataset.samples, **{**fields, **changes})


def test_batches_go_over_the_images_once_an_epoch_in_new_order(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = batches(dataset)
    seen: list[int] = []
    real = source._item
    monkeypatch.setattr(source, "_item", lambda index, epoch: seen.append(index) or real(index, epoch))
    assert source.steps_per_epoch == 3
    found = [source._batch(step) for step in range(6)]
    assert [len(b.images) for b in found] == [3, 3, 1, 3, 3, 1]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7)) and seen[:7] != seen[7:]
    batch = found[0]
    assert batch.images.shape == (3, 3, 32, 48) and batch.images.dtype == torch.uint8
    assert batch.points.shape == (3, 20, 2) and batch.classes.shape == (3, 20) and batch.classes.dtype == torch.int64
    assert batch.points.min() >= -1 and batch.points.max() < 1


def test_points_lie_on_their_class_in_the_batch(dataset: Dataset) -> None:
    right = []
    for _, batch in batches(dataset, points=200).from_step(0, 3):
        where = ((batch.points + 1) / 2 * torch.tensor([32, 48]) + 0.5).long().clamp(max=torch.tensor([31, 47]))
        for image, at, classes in zip(batch.images, where, batch.classes, strict=True):
            colors = image[:, at[:, 0], at[:, 1]].T.numpy().astype(int)
            nearest = np.abs(colors[:, None] - making.COLORS[None].astype(int)).sum(2).argmin(1)
            right.append((nearest == classes.numpy()).mean())
    assert np.mean(right) > 0.93


def test_a_batch_depends_on_its_step_alone(dataset: Dataset) -> None:
    """Not on where one begins, nor on the number of reading threads."""
    whole = dict(batches(dataset, workers=3).from_step(0, 9))
    assert list(whole) == list(range(9))
    for step, batch in batches(dataset, workers=0).from_step(4, 9):
        for name in ("images", "points", "classes"):
            assert torch.equal(getattr(batch, name), getattr(whole[step], name))
    other = batches(dataset, seed=6)._batch(0)
    assert not torch.equal(other.points, whole[0].points)


def test_bad_images_are_left_out_and_reported(dataset: Dataset) -> None:
    making.truncate(dataset.samples[2].image, 0.6)
    making.write_png(dataset.samples[4].label, np.zeros((28, 36), np.uint8))  # all ignored, and of the wrong size
    making.write_png(
        dataset.samples[5].label, np.full(np.asarray(dataset.read_image(dataset.samples[5])).shape[:2], 255, np.uint8)
    )
    source = batches(dataset)
    found = [b for _, b in source.from_step(0, 6)]
    assert sum(len(b.images) for b in found if b is not None) == 2 * 4
    assert set(source.skipped) == {"a2", "a4", "a5"}
    assert "a2.png" in source.skipped["a2"] and source.skipped["a5"] == "no pixel has a label"
    alone = PointBatches(dataset, dataset.samples[2:3], (32, 48), 5, 1, Augmentation())
    assert [b for _, b in alone.from_step(0, 2)] == [None, None]


def test_held_out_images_do_not_depend_on_the_seed_and_none_is_lost(dataset: Dataset) -> None:
    training, held = split_samples(dataset.samples, 3)
    assert len(held) == 3 and sorted(s.image_id for s in training + held) == [s.image_id for s in dataset.samples]
    folds = [{s.image_id for s in split_samples(dataset.samples, 2, fold)[1]} for fold in range(3)]
    assert [len(f) for f in folds] == [2, 2, 2] and len(set.union(*folds)) == 6
    assert split_samples(dataset.samples, 0) == (dataset.samples, [])
    with pytest.raises(UserError, match="leaves none of 7"):
        split_samples(dataset.samples, 7)


# ---- training -------------------------------------------------------------------------------------------------------

RECIPE = """
manifest = "toy.toml"
[generate-proposals]
config = "x.py"
[train-classifier]
backbone = "vit_tiny_patch16_224"
backbone_args = '{"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}'
image_size = [32, 48]
points_per_image = 16
batch_size = 3
epochs = 3
device = "cpu"
dropout = 0.2
drop_path = 0.2
norm = "batch"
crop_scale = [0.4, 1.0]
hold_out = 1
"""


@pytest.fixture
def train(dataset: Dataset, tmp_path: Path):
    (tmp_path / "toy.toml").write_text(TOY_MANIFEST)
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml")

    def train(out: str, **changes) -> Path:
        settings = recipe.stage(TrainSettings, **changes)
        return train_classifier(recipe, settings, dataset.root, tmp_path / out).parent

    train.out = tmp_path
    return train


PROVENANCE = ("run.json", "copies.json")


def results(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in PROVENANCE}


ALL_AT_ONCE = {"optimizer": "adamw", "batch_size": 2, "accumulate": 2, "keep": "best", "hold_out": 2}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"optimizer": "adamw"}, ALL_AT_ONCE])
def test_interrupted_anywhere_gives_the_same_bytes(
    train, changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each of 6 steps, after a checkpoint, and twice; checkpoints at every or every second step."""
    expected = results(train("whole", **changes))
    assert set(expected) >= {"model.safetensors", "model.json", "metrics.jsonl", "done.json", "validation.json"}
    lines = [json.loads(x) for x in expected["metrics.jsonl"].splitlines()]
    assert [(x["step"], x["epoch"]) for x in lines] == [(2, 1), (4, 2), (6, 3)]
    assert all(0 <= x["held_out_accuracy"] <= 1 for x in lines)
    step, save = Trainer._step, Trainer._save
    often = {**changes, "checkpoint_minutes": 1e-9}

    def interrupted(out: str, stops: list[int], every: int, after_saving: bool) -> int:
        """Runs until done, raising at the steps of `stops` in turn. Returns how many steps were made twice."""
        left, made = list(stops), []

        def step_(self, number, *rest):
            if left and number == left[0] and not after_saving:
                left.pop(0)
                raise KeyboardInterrupt
            made.append(number)
            return step(self, number, *rest)

        def save_(self, number, *rest):
            if number % every == 0:
                save(self, number, *rest)
            if left and number == left[0] and after_saving:
                left.pop(0)
                raise KeyboardInterrupt

        monkeypatch.setattr(Trainer, "_step", step_)
        monkeypatch.setattr(Trainer, "_save", save_)
        for _ in stops:
            with pytest.raises(KeyboardInterrupt):
                train(out, **often)
            assert not (tmp_path / out / "classifier/default/done.json").exists()
        folder = train(out, **often)
        assert results(folder) == expected, (out, stops, every)
        assert sorted(p.name for p in folder.iterdir() if p.name != "tensorboard") == sorted([*expected, *PROVENANCE])
        return len(made) - 6

    for every in (1, 2):
        for stop in range(6) if every == 1 and "keep" not in changes else (1, 3, 5):
            # at most what was done since the checkpoint is done again
            assert interrupted(f"before{every}-{stop}", [stop], every, False) < every
    interrupted("saved", [2], 1, True)
    interrupted("twice", [1, 4], 1, False)


def test_finished_training_is_not_touched(train) -> None:
    folder = train("a", epochs=1)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    train("a", epochs=1, workers=0, checkpoint_minutes=7.0)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    with pytest.raises(UserError, match="epochs: 1 → 2") as info:
        train("a", epochs=2)
    assert info.value.exit_code == 4
    assert results(train("b", epochs=1, workers=3)) == results(folder)


def weights(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_classifier(folder / f"{name}.safetensors").state_dict()


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


PLAIN = {"dropout": 0.0, "drop_path": 0.0, "norm": "layer", "lr": 0.05, "warmup": 0.2, "epochs": 3, "hold_out": 2}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_batches_are_one_bigger_batch(train, dataset: Dataset, optimizer: str) -> None:
    training, _ = split_samples(dataset.samples, PLAIN["hold_out"])
    making.truncate(training[1].image, 0.5)  # so that the pieces differ in size
    plain = {**PLAIN, "optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 1e-3}

    def trained(name: str, **changes) -> Path:
        with pytest.raises(PartialError):
            train(name, **plain, **changes)
        return train.out / name / "classifier/default"

    whole = trained("whole", batch_size=4)
    pieces = trained("pieces", batch_size=2, accumulate=2)
    other = trained("other", batch_size=2)
    assert distance(weights(whole), weights(pieces)) < 1e-5
    assert distance(weights(whole), weights(other)) > 1e-3
    lines = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, pieces)]
    assert [x["loss"] for x in lines[0]] == pytest.approx([x["loss"] for x in lines[1]], abs=1e-5)
    assert [x["step"] for x in lines[1]] == [2, 4, 6]


def test_length_in_steps(train) -> None:
    """Six images in batches of 3: 5 steps are two epochs and a half, and the schedule ends with the last of them."""
    epochs, steps = train("epochs", epochs=3), train("steps", steps=6)
    assert weights(epochs).keys() == weights(steps).keys() and distance(weights(epochs), weights(steps)) == 0.0
    lines = [json.loads(x) for x in (train("part", steps=5) / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["epoch"]) for x in lines] == [(2, 1), (4, 2), (5, 3)]
    assert lines[-1]["lr"] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 4 / 5)))


def test_checkpointed_activations_change_nothing(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and drop-path, whose draws have to be repeated."""
    twice, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *rest, **kw: twice.append(1) or forward(self, *rest, **kw))
    changes = {"epochs": 1, "hold_out": 1, "attention": "read-only"}
    expected, once = results(train("plain", **changes)), len(twice)
    twice.clear()
    assert results(train("checkpointed", **changes, checkpointing=True)) == expected
    assert len(twice) == once + 2 * 2  # 2 blocks in 2 steps


@pytest.mark.slow
def test_compiled_training_agrees(train, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: made.append(model) or real(model, backend="eager"))
    changes = {**PLAIN, "epochs": 1}
    assert distance(weights(train("plain", **changes)), weights(train("compiled", **changes, compile=True))) < 1e-5
    assert len(made) == 1


def test_a_missing_compiler_is_one_line(train, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler here\nmore")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=refuse))
    with pytest.raises(UserError, match=r"torch.compile fails \(no compiler here\)"):
        train("compiled", compile=True)


def test_best_and_last(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure rises and falls: the second of four epochs is the best one."""
    scores, states, log = [0.2, 0.7, 0.7, 0.4], [], Trainer._log

    def log_(self, step, epoch, *rest):
        self.evaluate = lambda model: {"held_out_class_accuracy": scores[epoch - 1]}
        log(self, step, epoch, *rest)
        states.append({k: v.detach().clone() for k, v in self.model.state_dict().items()})

    monkeypatch.setattr(Trainer, "_log", log_)
    last = train("last", epochs=4)
    assert distance(weights(last), states[3]) == 0.0 == distance(weights(last, "best"), states[1])
    about = json.loads((last / "best.json").read_text())
    assert (about["epoch"], about["step"], about["held_out_class_accuracy"]) == (2, 4, 0.7)
    best = train("best", epochs=4, keep="best")
    assert distance(weights(best), states[1]) == 0.0 == distance(weights(best, "last"), states[3])
    assert not (best / "best.safetensors").exists()
    with pytest.raises(UsageError, match="needs hold_out"):
        train("none", keep="best", hold_out=0)


def test_tensorboard_gets_the_same_figures_where_it_is(train, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    scalars: list[tuple] = []
    writer = types.SimpleNamespace(add_scalar=lambda *a: scalars.append(a), flush=lambda: None)
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("vitp_pipeline.classifier.training.checkpoints.find_spec", lambda name: object())
    folder = train("a", epochs=2)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert scalars == [(k, v, x["step"]) for x in lines for k, v in x.items() if k not in ("step", "epoch")]


def test_damaged_checkpoint(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._step

    def stop(self, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train("a", checkpoint_minutes=1e-9)
    path = tmp_path / "a/classifier/default/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptError, match=r"checkpoint.pt: damaged"):
        train("a")
    path.unlink()
    monkeypatch.undo()
    assert results(train("a")) == results(train("b"))


def test_a_loss_that_is_not_finite_ends_with_one_line(train) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf).*Lower `lr`"):
        train("a", lr=100.0, clip=0.0, norm="layer", epochs=4)


def test_bad_training_images_end_as_partial(train, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    making.truncate(dataset.samples[0].image, 0.5)
    held = {s.image_id for s in split_samples(dataset.samples, 1)[1]}
    assert "a0" not in held
    with pytest.raises(PartialError, match="without 1 image "):
        train("a", epochs=1)
    assert "a0.png" in capsys.readouterr().err


def test_it_learns_what_colors_mean(train) -> None:
    """The whole path, from drawn scenes to held-out accuracy: the color of a pixel says its class."""
    folder = train(
        "a",
        optimizer="adamw",
        lr=3e-3,
        epochs=25,
        point_token="patch",
        attention="read-only",
        dropout=0.0,
        points_per_image=64,
        drop_path=0.0,
        norm="layer",
    )
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * math.log(3) and lines[-1]["held_out_accuracy"] > 0.75
    assert lines[0]["held_out_accuracy"] < lines[-1]["held_out_accuracy"]


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_interrupted_lda_gives_the_same_bytes(train, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitp_pipeline.classifier.training.lda import LdaStatistics

    fields = {"fit": "lda", "norm": "none", "point_token": "sampled", "checkpoint_minutes": 1e-9}
    expected = results(train("whole", **fields))
    update, left = LdaStatistics.update, [stop]

    def update_(self, *rest):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        update(self, *rest)

    monkeypatch.setattr(LdaStatistics, "update", update_)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", **fields)
    assert results(train("stopped", **fields)) == expected


def test_lda_refuses_what_it_cannot_fit(train) -> None:
    with pytest.raises(UsageError, match="norm"):
        train("norm", fit="lda", point_token="sampled")
    with pytest.raises(UsageError, match="point_token"):
        train("token", fit="lda", norm="none")
