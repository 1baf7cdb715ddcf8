"""What the presets store of real masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.postprocess.certainty import certain_map
from vitp_pipeline.postprocess.panoptic import PanopticRule, panoptic_map
from vitp_pipeline.postprocess.semantic import semantic_label_maps
from vitp_pipeline.postprocess.upsample import source_reach


@pytest.fixture(scope="module")
def runs(project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's generator on drawn scenes, stored by every preset."""
    folder = tmp_path_factory.mktemp("presets")
    for name in PRESETS:
        project.run("generate-proposals", folder / name, masks=name, limit=5)
    return {name: folder / name for name in PRESETS}


@pytest.mark.parametrize("name", ["bounded", "compact"])
def test_certain_labels_are_those_of_the_lossless_store(runs: dict[str, Path], name: str) -> None:
    shares = []
    for true, found in zip(open_proposals(runs["lossless"]), open_proposals(runs[name]), strict=True):
        assert found.loss.floor == PRESETS[name]["floor"] and found.loss.step == PRESETS[name]["step"]
        assert found.loss.logit_error <= 1 / 2 and found.loss.ring == source_reach(found.view)
        assert np.array_equal(true.points["max"], found.points["max"])  # chosen before
        probs, kept = torch.from_numpy(true.class_logits).softmax(1)[:, :-1], torch.from_numpy(found.kept).long()
        masks = torch.from_numpy(found.masks)
        ours = semantic_label_maps(masks, probs[None, kept], found.view, found.protocol)
        theirs = semantic_label_maps(torch.from_numpy(true.masks), probs[None], true.view, true.protocol)
        certain = certain_map(masks, probs, kept, found.view, found.protocol, found.loss)
        assert not (certain & (ours != theirs)[0]).any()
        shares.append(certain.mean())
    assert np.mean(shares) > {"bounded": 0.99, "compact": 0.95}[name]


def test_panoptic_exact_is(runs: dict[str, Path]) -> None:
    fewer = 0
    for true, found in zip(open_proposals(runs["lossless"]), open_proposals(runs["panoptic-exact"]), strict=True):
        fewer += len(true.kept) - len(found.kept)
        probs, things = torch.from_numpy(true.class_logits).softmax(1), np.ones(true.class_logits.shape[1] - 1, bool)
        maps = []
        for record in (true, found):
            p = probs[torch.from_numpy(record.kept).long()]
            args = p[:, :-1], p[:, -1], record.view, record.protocol, PanopticRule("d2", 0.8), things
            maps.append(panoptic_map(torch.from_numpy(record.masks), *args))
        assert np.array_equal(maps[0][0], maps[1][0]) and maps[0][1] == maps[1][1] and len(maps[0][1]) > 1
    assert fewer > 0


def test_presets_get_smaller(runs: dict[str, Path]) -> None:
    sizes = [sum(p.stat().st_size for p in runs[n].rglob("*.zarr.zip")) for n in ("lossless", "bounded", "compact")]
    assert sizes[0] > 2 * sizes[1] > 2.2 * sizes[2]


def test_a_run_is_bounded_unless_it_says_otherwise(project, tmp_path: Path) -> None:
    project.run("generate-proposals", tmp_path, limit=2)
    assert open_proposals(tmp_path).codec == MaskCodec(**PRESETS["bounded"])
    project.run("generate-proposals", tmp_path, limit=2, masks="bounded")  # the same by name
    with pytest.raises(IncompatibleError, match="made with other settings"):
        project.run("generate-proposals", tmp_path, limit=2, masks="lossless")
