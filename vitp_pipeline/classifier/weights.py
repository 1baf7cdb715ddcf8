"""A classifier on disk: `model.safetensors`, with its configuration in the file's own metadata, and `model.json`, a
readable description with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from vitp_pipeline.classifier.mask_prompt import make_classifier
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.config.files import local_or_remote
from vitp_pipeline.decoding.torch_file import read_torch_file
from vitp_pipeline.decoding.weight_names import backbone_weights
from vitp_pipeline.errors import CorruptError, IncompatibleError, InputError, UserError
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.digests import require_recorded
from vitp_pipeline.storage.sealed import write_sealed


def save_classifier(model: PointViT, path: Path, about: dict[str, Any]) -> None:
    """Write `path` (.safetensors) and, beside it, a .json that describes it. The same model gives the same
    bytes.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # a single key: safetensors writes several in random order
    content = save(tensors, {"vitp": model.config.to_json()})
    # through Python: a full disk is then an OSError, which `write_whole` handles
    write_whole(path, content)
    said = {
        **about,
        "model": json.loads(model.config.to_json()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_sealed(path.with_suffix(".json"), said)


def load_classifier(path: str | Path) -> PointViT:
    """A trained classifier, in eval mode on the CPU; its file may be named hf:OWNER/REPO/FILE or https://….

        model = load_classifier("runs/camvid/classifier/default/model.safetensors")
        image = read_rgb(Path("street.jpg"))                                            # (H, W, 3) uint8
        images = torch.from_numpy(prepare_image(image, model.image_size))[None]         # (1, 3, h, w) uint8
        pixels = np.array([[120, 200], [300, 40]])                                      # (row, col) of the image
        points = torch.from_numpy(normalize_points(pixels, image.shape[:2]))[None]      # (1, 2, 2) in [−1, 1)
        logits = model(model.normalize(images), points)                                 # (1, 2, K)
        names = [model.classes[k] for k in logits[0].argmax(-1)]

    with `read_rgb` of `vitp_pipeline.datasets.images`, `prepare_image` of `vitp_pipeline.classifier.preprocess` and
    `normalize_points` of `vitp_pipeline.geometry`.
    `vitp_pipeline.classifier.inference.image_logits` takes images with different numbers of points.

    Raises:
        InputError: no such file, or not a classifier of vitp.
        CorruptError: the file is damaged, or does not match the .json beside it.
        IncompatibleError: its tensors do not fit its configuration.
    """
    path = local_or_remote(path)
    if not path.exists():
        raise InputError(f"{path}: no such classifier", "Give the model.safetensors of a run, below RUN/classifier")
    require_recorded(path)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("vitp")
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path}: damaged ({error})", "Train it anew, or copy it again") from error
    if text is None:
        raise InputError(
            f"{path}: not a classifier of vitp (its metadata do not say so)", "Released files: `vitp import-checkpoint`"
        )
    try:
        return _with_weights(ModelConfig.from_json(text), state).eval()
    except (UserError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = error.message if isinstance(error, UserError) else " ".join(str(error).split())[:300]
        raise IncompatibleError(
            f"{path}: its tensors do not fit its configuration ({reason})",
            "Copy it again, or train or import it anew with this version",
        ) from error


def classes_of(path: Path) -> tuple[str, ...]:
    """Read the names of a classifier's classes without its weights. Raises as `load_classifier`."""
    return config_of(path).classes


def config_of(path: Path) -> ModelConfig:
    """Read a classifier's configuration without its weights. Raises as `load_classifier`."""
    if not path.exists():
        raise InputError(f"{path}: no such classifier", "Give the model.safetensors of a run, below RUN/classifier")
    try:
        with safe_open(path, "pt") as file:
            return ModelConfig.from_json((file.metadata() or {})["vitp"])
    except (UserError, SafetensorError, OSError, TypeError, ValueError, AttributeError, LookupError):
        return load_classifier(path).config  # says what is wrong with it


def _with_weights(config: ModelConfig, state: dict[str, Tensor]) -> PointViT:
    """Build the model that a file describes on the meta device, then assign the tensors of the file: a configuration
    that asks for larger ones allocates nothing and is refused.
    """
    with torch.device("meta"):
        model = make_classifier(config)
    if model.point_slot is not None:  # absent in files older than point slots
        state.setdefault("point_slot", torch.zeros(model.point_slot.shape))
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, assign=True)
    for module in model.modules():  # buffers that are computed and not saved, such as frequencies
        computed = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in computed:
            setattr(module, name, torch.empty_like(module.get_buffer(name), device="cpu"))
        if computed:
            refill: Any = module.init_non_persistent_buffers  # timm's
            refill()
    return model


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a backbone, by their names in the network, from a .safetensors or a .pth file; of
    a classifier of vitp, which is no backbone, all as they are.

    Raises:
        InputError: missing, not such a file, a pickle that asks for more than data, or a file of several networks.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file", "Correct the path")
    if path.suffix != ".safetensors":
        return backbone_weights(read_torch_file(path), path)
    try:
        with safe_open(path, "pt") as file:
            ours = "vitp" in (file.metadata() or {})
        return load_file(path) if ours else backbone_weights(load_file(path), path)
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as weights ({reason})", "Give a file that is whole") from error
