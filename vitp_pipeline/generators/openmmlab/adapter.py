"""Mask proposals from mmsegmentation 1.x and mmdetection 3.x: MaskFormer, Mask2Former, heads built on them.

Network, test-time resize, normalization and padding are the library's own; outputs are taken from the last decoder
layer, before the library upsamples them.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitp_pipeline.errors import IncompatibleError, InputError, UsageError, UserError
from vitp_pipeline.generators.base import Output
from vitp_pipeline.generators.checkpoint import Checkpoint, load_into, read_checkpoint
from vitp_pipeline.generators.data_config import is_data, read_yaml_safely, registered_only
from vitp_pipeline.generators.openmmlab.configs import config_sources, resolve_config
from vitp_pipeline.generators.openmmlab.install import install_line
from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv
from vitp_pipeline.generators.openmmlab.parameter_names import decoder_order, has_old_names, with_new_names
from vitp_pipeline.generators.ops.internimage import register_backbone
from vitp_pipeline.geometry import Size, size_of
from vitp_pipeline.runtime.progress import quiet

# What View cannot express (yet): the resized image must be the whole image, upright, and only scaled.
OTHER_GEOMETRY = re.compile("Flip|Crop|Pad|Rotat|Affine|Shear|Translat|Mosaic|Perspective|TestTime|MultiScale")


class OpenMMLabGenerator:
    """A frozen mask transformer of mmseg or mmdet.

    Attributes:
        config: the config file that was read. name: its name without the suffix.
        classes: from the checkpoint, else the config, else the config's dataset; None if unknown.
        protocol: "mmseg1" or "mmdet".
        num_classes: K. num_queries: Q.
        crop_size: (height, width) that the config's training pads its crops to; None if unknown.
        slide: ((height, width) of mmseg's windows, their stride) where its test_cfg has mode "slide", else None.
        describe: one line for people: which network, which weights, which device.
    """

    def __init__(
        self, config: str | Path, checkpoint: Path | None, device: str | torch.device = "cpu", seed: int = 0
    ) -> None:
        """Build the network and load its weights.

        Args:
            config: a path, or the name of a config that comes with mmseg or mmdet.
            checkpoint: `.pth` or `.safetensors`; None draws random weights from `seed`.
            device: torch device.
        Raises:
            InputError: config or checkpoint is missing or unreadable.
            IncompatibleError: they do not match.
            UserError: the adapter does not support the model, or a package is missing.
        """
        self.config = resolve_config(config)
        self.name = self.config.stem
        self.device = _device(device)
        prepare_mmcv()
        weights = read_checkpoint(checkpoint) if checkpoint is not None else None
        with _quiet(), registered_only(self.config):
            settings = _read_config(self.config)
            library = _library(self.config, settings)
            self.protocol = {"mmseg": "mmseg1", "mmdet": "mmdet"}[library]
            self._model = _build_model(self.config, settings, library, weights, seed)
            self._steps = _test_steps(self.config, settings, library)
            self._pipelines = {1.0: _build_pipeline(self._steps, library, 1.0)}
            self._building = threading.Lock()
            self._model.to(self.device)
        self._head = _head(self.config, self._model, library)
        self._library, self._sample_type = library, _sample_type(library)
        self.num_classes = int(self._head.num_classes)
        self.num_queries = int(self._head.num_queries)
        self.crop_size = _crop_size(self.config, settings)
        self.slide = _slide(self.config, settings) if library == "mmseg" else None
        with registered_only(self.config):
            self.classes = _classes(self.config, settings, library, weights, self.num_classes)
        origin = f"weights {weights.path.name}" if weights else f"random weights (seed {seed})"
        self.describe = (
            f"{type(self._model).__name__} with {type(self._head).__name__} of {library}, "
            f"{self.num_queries} queries, {self.num_classes} classes, "
            f"config {self.config.name}, {origin}, on {self.device}"
        )

    def resize(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Resize an image by the config's test pipeline, its test sizes times `scale`; see `Generator.resize`.

        Channels stay in mmcv's order, BGR. Where the pipeline resizes to no fixed size, the image is scaled first.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"an image must be RGB uint8 (H, W, 3), not {image.dtype} {image.shape}")
        from mmcv import rgb2bgr

        size = size_of(image)
        bgr = rgb2bgr(np.ascontiguousarray(image))
        with _quiet():
            with self._building:
                if scale not in self._pipelines:
                    with registered_only(self.config):
                        self._pipelines[scale] = _build_pipeline(self._steps, self._library, scale)
            # as if the pipeline's loader had just read it
            given = {"img": bgr, "img_shape": size, "ori_shape": size, "img_path": "", "img_id": 0}
            sample = self._pipelines[scale](given)
        inputs: torch.Tensor = sample["inputs"]
        return inputs.permute(1, 2, 0).numpy()

    def resize_again(self, frame: np.ndarray, scale: float) -> np.ndarray:
        """Resize a frame of `resize` once more. Raises InputError where the config makes floating point of images."""
        return self.resize(np.ascontiguousarray(frame[..., ::-1]), scale)

    @torch.inference_mode()
    def forward(self, frames: Sequence[np.ndarray]) -> list[Output]:
        """Run the network on frames; those of one size share a forward pass. See `Generator.forward`."""
        results: dict[int, Output] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            groups.setdefault(frame.shape, []).append(index)
        # No TF32: logits must agree between batch sizes and with the CPU.
        with _quiet(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for members in groups.values():
                results |= zip(members, self._forward_equal([frames[index] for index in members]), strict=True)
        return [results[index] for index in range(len(frames))]

    @property
    def parameters(self) -> int:
        """Count the network's parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def _forward_equal(self, frames: Sequence[np.ndarray]) -> Iterator[Output]:
        """Run frames of one size in one forward pass."""
        size = size_of(frames[0])
        tensors = [torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1))) for frame in frames]
        samples = [self._sample_type(metainfo={"img_shape": size, "ori_shape": size}) for _ in frames]
        batch = self._model.data_preprocessor({"inputs": tensors, "data_samples": samples}, False)
        tensor, samples = batch["inputs"], batch["data_samples"]
        if self.protocol == "mmseg1":
            for sample in samples:
                # mmseg's MaskFormer head takes the image's size for the batch's, in training as in testing:
                # its attention never hides the padding, and weights trained so expect it.
                sample.set_metainfo({"batch_input_shape": size})
        class_logits, mask_logits = self._head(self._model.extract_feat(tensor), samples)
        for classes, masks in zip(class_logits[-1], mask_logits[-1], strict=True):
            # The masks span the tensor that entered. `pad_shape` in the metainfo is not always its size:
            # mmseg sets none without a test_cfg, mmdet gives what the image alone would have needed.
            yield Output(masks.float(), classes.float(), (tensor.shape[-2], tensor.shape[-1]))


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"'{name}' is not a device", hint="Use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{name}' is not there", hint=f"torch sees {torch.cuda.device_count()} GPUs")
    return device


def empty_model(config: str | Path) -> tuple[torch.nn.Module, Any]:
    """Build the network of a config and its mask head for the names and shapes of their tensors, without values.

    They lie on the meta device and take no memory, unless the network asks for values while it is built.

    Raises: as `OpenMMLabGenerator` does.
    """
    path = resolve_config(config)
    prepare_mmcv()
    with _quiet(), registered_only(path):
        settings = _read_config(path)
        library = _library(path, settings)
        try:
            with torch.device("meta"):
                model = _construct(path, settings, library)
        except InputError:
            model = _construct(path, settings, library)
        return model, _head(path, model, library)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings and log lines of OpenMMLab about its own code, which users of vitp cannot act on."""
    from mmengine.logging import MMLogger

    with quiet(MMLogger.get_current_instance()):
        yield


def _read_config(path: Path) -> Any:
    from mmengine import Config

    read_yaml_safely()
    program = not is_data(path)
    config_sources(path)  # it, and what it inherits from, are of bounded size, and where they are data ask for no more
    try:
        settings = Config.fromfile(path, import_custom_modules=program, use_environment_variables=program)
    except Exception as error:  # a config is a program, anything can come out of it
        raise InputError(f"{path}: config cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(settings.get("model"), dict) or "type" not in settings.model:
        raise InputError(f"{path}: the config defines no model")
    return settings


def _type_name(settings: Any) -> str:
    """Return `type` without its scope: "mmdet.Resize" and the class itself (newer configs) are both "Resize"."""
    kind = settings.get("type", "") if isinstance(settings, dict) else ""
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _library(path: Path, settings: Any) -> str:
    """Determine the package of the model by its outermost type."""
    kind = _type_name(settings.model)
    library = "mmseg" if kind.endswith("EncoderDecoder") else "mmdet"
    try:
        for package in dict.fromkeys(("mmdet", library)):  # mmseg's mask heads derive from mmdet's
            for module in ("registry", "models", "datasets"):
                importlib.import_module(f"{package}.{module}")
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: needs {error.name}, which is not installed", install_line([error.name])) from error
    register_backbone()
    return library


def _build_model(path: Path, settings: Any, library: str, weights: Checkpoint | None, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _construct(path, settings, library)
        if weights is None:
            with _scope(library):
                model.init_weights()
    if weights is not None:
        load_into(model, _with_new_names(weights, _head(path, model, library)))
    return model.float().eval().requires_grad_(False)


def _with_new_names(weights: Checkpoint, head: Any) -> Checkpoint:
    """Rename the tensors of mmsegmentation 0.x and mmdetection 2.x. Raises IncompatibleError for a mixture."""
    if not has_old_names(weights.state_dict):
        return weights
    try:
        renamed, _ = with_new_names(weights.state_dict, decoder_order(head))
    except IncompatibleError as error:
        raise IncompatibleError(f"{weights.path}: {error.message}", error.hint) from error
    return replace(weights, state_dict=renamed)


def _construct(path: Path, settings: Any, library: str) -> Any:
    registry = importlib.import_module(f"{library}.registry").MODELS
    model_settings = _without_downloads(settings.model)
    with _scope(library):
        try:
            return registry.build(model_settings)
        except UserError:
            raise
        except Exception as error:  # the constructors check their arguments in many ways
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: the model cannot be built ({why})") from error


def _without_downloads(settings: Any) -> Any:
    """Copy a config without pre-trained files: all weights come from the checkpoint, or from the seed."""
    if isinstance(settings, list | tuple):
        return type(settings)(_without_downloads(item) for item in settings)
    if not isinstance(settings, dict):
        return settings
    copy = type(settings)()
    for key, value in settings.items():
        if key in ("pretrained", "checkpoint_path") or (key == "init_cfg" and _loads_a_file(value)):
            continue
        copy[key] = _without_downloads(value)
    if _type_name(copy) == "TIMMBackbone":
        copy["pretrained"] = False  # its default is to download
    return copy


def _loads_a_file(init: Any) -> bool:
    inits = init if isinstance(init, list | tuple) else [init]
    return any(isinstance(item, dict) and "checkpoint" in item for item in inits)


def _head(path: Path, model: Any, library: str) -> Any:
    from mmdet.models.dense_heads import MaskFormerHead  # Mask2Former's, and both of mmseg's, derive from it

    head = getattr(model, "decode_head" if library == "mmseg" else "panoptic_head", None)
    if not isinstance(head, MaskFormerHead):
        found = type(model if head is None else head).__name__
        raise UserError(
            f"{path}: {found} does not propose masks by queries",
            hint="Use a MaskFormer or Mask2Former of mmsegmentation or mmdetection",
        )
    return head


def _sample_type(library: str) -> type:
    name = "SegDataSample" if library == "mmseg" else "DetDataSample"
    kind: type = getattr(importlib.import_module(f"{library}.structures"), name)
    return kind


def _test_steps(path: Path, settings: Any, library: str) -> list[Any]:
    """List the steps of the config's test pipeline without those that read files."""
    steps = _test_pipeline(settings, library)
    if not steps:
        raise InputError(f"{path}: the config has no test_pipeline")
    kept: list[Any] = []
    for step in steps:
        name = _type_name(step)
        if OTHER_GEOMETRY.search(name):
            raise UserError(f"{path}: the test pipeline has {name}, which is not supported: only resizing is")
        if not name.startswith("Load"):
            kept.append(step)
        elif "Image" in name:
            if step.get("color_type", "color") not in ("color", "unchanged"):
                raise UserError(f"{path}: color_type '{step['color_type']}' is not supported, only 'color' is")
            if step.get("to_float32", False):
                kept.append(_to_float32)
    return kept


def _build_pipeline(steps: list[Any], library: str, scale: float) -> Any:
    from mmengine.dataset import Compose

    with _scope(library):
        transforms = importlib.import_module(f"{library}.registry").TRANSFORMS
        steps = _scaled(steps, scale)
        return Compose([transforms.build(step) if isinstance(step, dict) else step for step in steps])


def _scaled(steps: list[Any], scale: float) -> list[Any]:
    """Multiply every fixed size of the steps by `scale`; without any, scale the image before them.

    mmseg 0.x scales so (`img_ratios`). mmseg 1's `tta_pipeline` scales the image in place of the test size, which is
    the same only where the config resizes to no fixed size.
    """
    if scale == 1.0:
        return steps
    sized = [isinstance(step, dict) and "Resize" in _type_name(step) and bool(step.get("scale")) for step in steps]
    if not any(sized):
        loaded = steps[:1] if steps[:1] == [_to_float32] else []
        return [*loaded, dict(type="Resize", scale_factor=float(scale), keep_ratio=True), *steps[len(loaded) :]]
    return [_scaled_step(step, scale) if fixed else step for step, fixed in zip(steps, sized, strict=True)]


def _scaled_step(step: Any, scale: float) -> Any:
    def times(size: Any) -> Any:
        return tuple(map(times, size)) if isinstance(size, list | tuple) else int(size * scale + 0.5)

    return {**step, **{key: times(step[key]) for key in ("scale", "max_size") if step.get(key)}}


def _to_float32(loaded: dict[str, Any]) -> dict[str, Any]:
    return {**loaded, "img": loaded["img"].astype(np.float32)}


def _test_pipeline(settings: Any, library: str) -> list[Any]:
    """Return the test pipeline from where each library's own inference looks for it, then from other places."""
    places = [settings.get("test_pipeline"), _dataset(settings).get("pipeline")]
    return next(filter(None, places if library == "mmseg" else reversed(places)), [])


def _dataset(settings: Any) -> Any:
    """Return the test dataset's settings, unwrapped."""
    dataset = (settings.get("test_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return dataset


def _crop_size(path: Path, settings: Any) -> Size | None:
    """Return the size to which mmseg (`size`) and mmdet (a batch augmentation) pad training crops."""
    preprocessor = settings.model.get("data_preprocessor") or settings.get("data_preprocessor") or {}
    augments = preprocessor.get("batch_augments") or []
    sizes = [preprocessor.get("size"), *(augment.get("size") for augment in augments)]
    return next((_pair(path, "size to pad to", size) for size in sizes if size), None)


def _slide(path: Path, settings: Any) -> tuple[Size, Size] | None:
    test = settings.model.get("test_cfg") or {}
    if test.get("mode", "whole") != "slide":
        return None
    return _pair(path, "test_cfg.crop_size", test.get("crop_size")), _pair(path, "test_cfg.stride", test.get("stride"))


def _pair(path: Path, what: str, size: Any) -> Size:
    if isinstance(size, list | tuple) and len(size) == 2:
        height, width = size
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    raise InputError(f"{path}: {what} = {size!r} is not a height and a width in pixels")


def _classes(
    path: Path, settings: Any, library: str, weights: Checkpoint | None, num_classes: int
) -> tuple[str, ...] | None:
    if weights is not None and weights.classes is not None:
        if len(weights.classes) != num_classes:
            raise IncompatibleError(
                f"{weights.path}: names {len(weights.classes)} classes, the model of {path} has {num_classes}"
            )
        return weights.classes
    dataset = _dataset(settings)
    candidates = [settings.get("dataset_meta"), settings.get("metainfo"), dataset.get("metainfo")]
    if "type" in dataset:
        datasets = importlib.import_module(f"{library}.registry").DATASETS
        with _quiet(), _scope(library):
            kind = datasets.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
        candidates.append(getattr(kind, "METAINFO", None))
    for candidate in candidates:
        names = (candidate or {}).get("classes")
        # Another number of names belongs to a base config whose class count was overridden.
        if isinstance(names, list | tuple) and len(names) == num_classes:
            return tuple(map(str, names))
    return None


def _scope(library: str) -> Any:
    """Let names without a scope mean this library's, even when both libraries run in one process."""
    from mmengine.registry import DefaultScope

    return DefaultScope.overwrite_default_scope(library)
