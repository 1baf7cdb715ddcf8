"""Convert checkpoints of mmsegmentation 0.x and mmdetection 2.x to files that OpenMMLabGenerator loads."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from vitp_pipeline.errors import IncompatibleError, StorageError
from vitp_pipeline.generators.checkpoint import load_into, read_checkpoint
from vitp_pipeline.generators.openmmlab.adapter import empty_model
from vitp_pipeline.generators.openmmlab.parameter_names import decoder_order, with_new_names
from vitp_pipeline.storage.atomic_files import write_json, write_whole
from vitp_pipeline.storage.fingerprint import file_digest


@dataclass(frozen=True)
class Imported:
    """Counts of a conversion: `renamed` of the `tensors` have a new name, `unused` ones were left out."""

    tensors: int
    parameters: int
    renamed: int
    unused: tuple[str, ...]
    classes: tuple[str, ...] | None


def import_openmmlab(file: Path, config: str | Path, out: Path) -> Imported:
    """Write `file` as `out` (.safetensors) with the tensor names of the model of `config`, and a .json next to it.

    Every tensor of the model must be in the file, once and in its shape, and every tensor of the file in the model.
    Class names are kept. A file with the new names already only changes its format.

    Args:
        config: of mmsegmentation 1.x or mmdetection 3.x: a path, or the name of a shipped one.
    Raises:
        InputError: file or config is missing or unreadable, or the file is a pickle that asks for more than data.
        IncompatibleError: they do not match; the message names tensors.
        UserError: the config's model does not propose masks by queries.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    checkpoint = read_checkpoint(file)
    model, head = empty_model(config)
    try:
        weights, unused = with_new_names(checkpoint.state_dict, decoder_order(head))
    except IncompatibleError as error:
        raise IncompatibleError(f"{file}: {error.message}", error.hint) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*which is a no-op")  # this is for its checks: the model holds no numbers
        load_into(model, replace(checkpoint, state_dict=weights))
    classes = checkpoint.classes
    if classes is not None and len(classes) != head.num_classes:
        raise IncompatibleError(
            f"{file}: names {len(classes)} classes, the model of {config} has {head.num_classes}",
            "Give the --config of this model",
        )

    # A single key: safetensors writes several in random order.
    metadata = {"classes": json.dumps(classes)} if classes is not None else None
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        write_whole(out, lambda unfinished: save_file(tensors, unfinished, metadata))
    except SafetensorError as error:
        raise StorageError(f"{out}: cannot be written ({error})", "Choose another --out") from error
    about = {"imported_from": file.name, "sha256": file_digest(file), "config": Path(config).name, "unused": unused}
    write_json(out.with_suffix(".json"), about)
    kept = len(checkpoint.state_dict) - len(unused)
    return Imported(
        tensors=len(weights),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        renamed=kept - len(weights.keys() & checkpoint.state_dict.keys()),
        unused=tuple(unused),
        classes=classes,
    )
