from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.classifier.making import tiny_model
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.weights import load_classifier, read_backbone, save_classifier
from vitp_pipeline.errors import CorruptError, IncompatibleError, InputError

VARIANT = {
    "feature_layers": (1, 2),
    "norm": "batch",
    "head": "mlp",
    "attention": "read-only",
    "point_token": "patch",
    "depth": 2,
}


def test_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    model, path = tiny_model(**VARIANT), tmp_path / "model.safetensors"
    save_classifier(model, path, {"images": 3, "fingerprint": "f"})
    loaded = load_classifier(path)
    assert loaded.config == model.config and not loaded.training
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    images, points = torch.randn(1, 3, 32, 48), torch.rand(1, 5, 2)
    assert torch.equal(loaded(images, points), model(images, points))

    about = json.loads((tmp_path / "model.json").read_text())
    assert (about["images"], about["fingerprint"]) == (3, "f")
    assert about["model"]["classes"] == ["sky", "road", "car"] and about["model"]["feature_layers"] == [1, 2]
    assert about["parameters"] == sum(
        t.numel() for k, t in load_file(path).items() if "running" not in k and "num_" not in k
    )
    with safe_open(path, "pt") as file:
        assert ModelConfig.from_json(file.metadata()["vitp"]) == model.config


def test_the_same_model_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    """Its digest is the identity of the scores: other bytes would mean classifying again."""
    for n in range(20):  # safetensors orders metadata at random, each time anew
        save_classifier(tiny_model(), tmp_path / f"{n}.safetensors", {})
    assert len({p.read_bytes() for p in tmp_path.glob("*.safetensors")}) == 1


def test_files_that_are_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.safetensors: no such"):
        load_classifier(tmp_path / "absent.safetensors")
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"m.safetensors: not a classifier"):
        load_classifier(path)
    for text in ("{", "3", '{"backbone": "vit_tiny_patch16_224"}', '{"nonsense": 1}'):
        save_file({"a": torch.ones(1)}, path, {"vitp": text})
        with pytest.raises(IncompatibleError, match=r"m.safetensors: "):
            load_classifier(path)
    save_file({"a": torch.ones(1)}, path, {"vitp": tiny_model().config.to_json()})
    with pytest.raises(IncompatibleError, match="do not fit"):
        load_classifier(path)


def test_damaged_classifier(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_classifier(tiny_model(), path, {})
    good = path.read_bytes()
    for bad in (b"", good[:50], good[:-10], b"\xff" * 100):
        path.write_bytes(bad)
        with pytest.raises(CorruptError, match=r"m.safetensors: damaged") as info:
            load_classifier(path)
        assert info.value.exit_code == 6


def test_read_backbone(tmp_path: Path) -> None:
    state = {"cls_token": torch.ones(1, 1, 4), "norm.weight": torch.ones(4)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "c.pth")
    torch.save({"state_dict": state, "optimizer": {"lr": 1}}, tmp_path / "d.pth")
    for name in ("a.safetensors", "b.pth", "c.pth", "d.pth"):
        found = read_backbone(tmp_path / name)
        assert set(found) == set(state) and all(torch.equal(found[k], state[k]) for k in state)


class Evil:
    def __reduce__(self):
        return (print, ("code in the file was run",))


def test_read_backbone_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    torch.save({}, tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    names = ["evil.pth", "list.pth", "numbers.pth", "empty.pth", "text.pth", "text.safetensors", "absent.pth"]
    for name in names:
        with pytest.raises(InputError, match=name) as info:
            read_backbone(tmp_path / name)
        assert "\n" not in str(info.value)
    assert "was run" not in capsys.readouterr().out
