"""Find and identify models in transformers' folder format without importing torch or transformers.

A folder holds `config.json` (the architecture), `preprocessor_config.json` (its image preprocessing; may be
missing) and weights: `model*.safetensors`, or `pytorch_model*.bin`. A name on the Hugging Face Hub becomes such a
folder by downloading it, once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.proposals import RANDOM_WEIGHTS
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.errors import InputError, UserError
from vitp_pipeline.generators.hf_checks import check_config, check_preprocessor
from vitp_pipeline.storage.digests import Digests

NETWORKS = {
    "oneformer": "OneFormer",
    "mask2former": "Mask2Former",
    "maskformer": "MaskFormer",
    "eomt": "EoMT",
    "eomt_dinov3": "EoMT (DINOv3)",
    "rf_detr": "RF-DETR-Seg",
    "sam": "SAM",
    "sam_hq": "SAM-HQ",
    "sam2": "SAM 2",
    "sam2_video": "SAM 2",
    "sam3_tracker": "SAM 3 tracker",
    "sam3_video": "SAM 3 tracker",
    "edgetam": "EdgeTAM",
    "edgetam_video": "EdgeTAM",
}
"""Names for people by `model_type` of config.json; of a video model the part for single images is used."""

SEGMENT_ANYTHING = {"sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker", "sam3_video", "edgetam", "edgetam_video"}
"""Networks of which points ask for masks, without classes."""

INSTALL = 'pip install "vitp-pipeline[hf]"'
HALVES = (0.5, 0.5, 0.5)
"""Mean and standard deviation of SAM 3's images."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DETECTRON2_SIZE = (800, 1333)
"""Default shortest and longest edge, as in detectron2 and transformers."""


@dataclass(frozen=True)
class Pretrained:
    """A model of transformers on disk.

    Attributes:
        config: its config.json.
        model_type: a key of `NETWORKS`.
        weights: the files of its weights; empty = random weights.
        preprocessor: content of preprocessor_config.json; empty without one. Of Segment Anything's models and RF-DETR
            also `image_processor` of processor_config.json, where transformers 5 writes it.
    """

    config: Path
    model_type: str
    weights: tuple[Path, ...]
    preprocessor: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.config.parent

    def identity(self, digests: Digests) -> dict[str, Any]:
        """Return digests of all content that changes the model's results."""
        preprocessor = json.dumps(self.preprocessor, sort_keys=True)
        weights = " ".join(f"{file.name} {digests.of(file)}" for file in self.weights)
        return {
            "library": "transformers",
            "config": hashlib.sha256(self.config.read_bytes()).hexdigest(),
            "preprocessor": hashlib.sha256(preprocessor.encode()).hexdigest(),
            "checkpoint": hashlib.sha256(weights.encode()).hexdigest() if weights else RANDOM_WEIGHTS,
        }


def is_config(path: Path) -> bool:
    """True if a file is a config.json of transformers: JSON with a `model_type`, which OpenMMLab's configs lack."""
    if path.suffix != ".json":
        return False
    try:
        content = read_foreign_json(path, "config")
    except InputError:
        return False
    return isinstance(content, dict) and "model_type" in content


def open_pretrained(path: Path) -> Pretrained:
    """Open a model folder with its weights, or a config.json alone, for random weights.

    Raises:
        InputError: no such model, no weights in the folder, or files that are not JSON.
        UserError: the network is not a supported mask generator.
    """
    config = path / "config.json" if path.is_dir() else path
    if not config.is_file():
        raise InputError(f"{path}: no config.json there", "Give the folder of a transformers model")
    content = _read_json(config)
    model_type = content.get("model_type")
    if model_type not in NETWORKS:
        raise UserError(
            f"{config}: model_type {model_type!r} is not supported",
            f"Networks that can be used: {', '.join(f'{NETWORKS[kind]} ({kind})' for kind in NETWORKS)}",
        )
    preprocessor, sizes = _read_preprocessor(config, model_type)
    for file, said, check in ((config, content, check_config), (preprocessor, sizes, check_preprocessor)):
        try:
            check(said)
        except ValueError as error:
            raise InputError(f"{file}: refused: {error}", "Give the folder of a published or imported model") from error
    weights = weight_files(path) if path.is_dir() else ()
    if path.is_dir() and not weights:
        raise InputError(
            f"{path}: holds no weights (model.safetensors)", 'For random weights, to try it out: checkpoint = "random"'
        )
    return Pretrained(config, model_type, weights, sizes)


def _read_preprocessor(config: Path, model_type: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of the image preprocessing beside a config.json, and its content; empty without one."""
    file, others = config.with_name("preprocessor_config.json"), config.with_name("processor_config.json")
    if file.is_file() or not others.is_file() or model_type not in {*SEGMENT_ANYTHING, "rf_detr"}:
        return file, _read_json(file) if file.is_file() else {}
    said = _read_json(others).get("image_processor")
    return others, said if isinstance(said, dict) else {}


def download(name: str, with_weights: bool = True) -> Path:
    """Download a model of the Hub and return its folder; files in the local cache are reused.

    Args:
        name: "owner/name" or "owner/name@revision".
        with_weights: False downloads only the configuration.
    Raises:
        InputError: no such model, no network, or no permission.
        UserError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"hf:{name} needs huggingface_hub", INSTALL) from error
    repo, _, revision = name.partition("@")

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=["*.json", *patterns]))

    try:
        folder = fetch(["*.safetensors"] if with_weights else [])
        if with_weights and not weight_files(folder):  # published before there was safetensors
            folder = fetch(["*.bin"])
    except Exception as error:  # names, networks and permissions fail in many ways
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"hf:{name} cannot be fetched ({why})", "Fetch it elsewhere and give the path of its folder"
        ) from error
    return folder


def frame_edges(model: Pretrained, given: tuple[int, ...]) -> tuple[int, int]:
    """Return shortest and longest edge of the resized image: `given`, else from the model's folder.

    Raises:
        InputError: the folder asks for a fixed height and width, which would distort the image.
    """
    if given:
        return given[0], given[1]
    size = model.preprocessor.get("size", DETECTRON2_SIZE[0])
    if isinstance(size, int):  # as before transformers 4.27
        return size, model.preprocessor.get("max_size", DETECTRON2_SIZE[1])
    if "shortest_edge" not in size:
        raise InputError(
            f"{model.folder}: preprocessor_config.json asks for a fixed size {size}, which would bend the image",
            "Give the sizes of the original configuration, e.g. --set test_size=[640,2560]",
        )
    return size["shortest_edge"], size.get("longest_edge") or DETECTRON2_SIZE[1]


def normalization(model: Pretrained) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per RGB channel, for pixel values 0 … 1."""
    mean, std = (model.preprocessor.get(f"image_{what}") for what in ("mean", "std"))
    if model.model_type.startswith("sam3"):
        return tuple(mean or HALVES), tuple(std or HALVES)
    return tuple(mean or IMAGENET_MEAN), tuple(std or IMAGENET_STD)


def sees_windows(model: Pretrained) -> bool:
    """Tell if the model sees an image in square windows, as a semantic EoMT does; the others see it whole."""
    return bool(model.preprocessor.get("do_split_image", False))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Find the weight files in a folder, in transformers' order of preference. An index of several must
    name them, and nothing else. Raises InputError where it does not.
    """
    files = tuple(sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")))
    for index in (*folder.glob("model*.safetensors.index.json"), *folder.glob("pytorch_model*.bin.index.json")):
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict) or not {*map(str, named.values())} <= {file.name for file in files}:
            raise InputError(f"{index}: names files that are not weights of its folder", "Fetch the folder again")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    content = read_foreign_json(path, "file of the model")
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content
