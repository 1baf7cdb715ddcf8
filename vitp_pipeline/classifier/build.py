"""Build a classifier from settings, with the weights that its training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from vitp_pipeline.classifier.backbones.create import create_vit
from vitp_pipeline.classifier.mask_prompt import make_classifier
from vitp_pipeline.classifier.model import PointViT
from vitp_pipeline.classifier.model_config import ModelConfig
from vitp_pipeline.classifier.pretrained import load_backbone_weights
from vitp_pipeline.classifier.transfer import start_from
from vitp_pipeline.classifier.weights import load_classifier, read_backbone
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.errors import InputError


def starting_model(
    settings: TrainSettings, classes: tuple[str, ...], weights: Path | str, start: Path | None
) -> tuple[PointViT, str]:
    """Build the model to train: initialized from the seed, then its backbone from `weights`, or all that fits from
    another classifier. Also return a short text that says where it starts.

    Args:
        weights: file of a backbone, "hub" or "from scratch".
        start: file of the classifier to start from, which comes before `weights`.
    Raises:
        InputError, CorruptError, IncompatibleError: a file that is unreadable, or of another kind of model.
    """
    parent = None if start is None else load_classifier(start)
    torch.manual_seed(settings.seed)
    model = build_model(settings, classes, "plain" if parent is None else parent.config.pos_embed)
    if parent is None:
        load_weights(model, settings, weights)
        if isinstance(weights, Path):
            return model, f"from {weights.name}"
        return model, "from timm's weights" if weights == "hub" else "from scratch"
    new_head = settings.init_head == "new"
    start_from(model, parent, str(start), new_head)
    return model, f"from {start}, {'with a new head' if new_head else 'its head included'}"


def build_model(
    settings: TrainSettings, classes: tuple[str, ...], pos_embed: Literal["plain", "offset"] = "plain"
) -> PointViT:
    """The untrained model that the settings describe; how positions are read belongs to the weights it starts from."""
    return make_classifier(
        ModelConfig(
            backbone=settings.backbone,
            classes=classes,
            image_size=(settings.image_size[0], settings.image_size[1]),
            backbone_args=settings.backbone_args,
            depth=settings.depth,
            feature_layers=settings.feature_layers,
            point_token=settings.point_token,
            attention=settings.attention,
            head=settings.head,
            norm=settings.norm,
            dropout=settings.dropout,
            drop_path=settings.drop_path,
            prompt=settings.prompt,
            mask_form=settings.mask_form,
            maft_layers=settings.maft_layers,
            pos_embed=pos_embed,
        )
    )


def load_weights(model: PointViT, settings: TrainSettings, weights: Path | str) -> None:
    """Put pre-trained weights into the backbone: a file's, timm's own ("hub"), or none ("from scratch").

    Raises:
        InputError: unreadable, or not to be fetched.
        IncompatibleError: of another backbone.
    """
    if isinstance(weights, Path):
        load_backbone_weights(model, read_backbone(weights), weights.name)
    elif weights == "hub":
        try:
            size = model.backbone.patch_embed.img_size  # timm knows how each table is to be resampled
            hub = create_vit(settings.backbone, size, pretrained=True)
        except Exception as error:  # no network, no such weights, no room: each raises its own exception
            raise InputError(
                f"{settings.backbone}: its weights could not be fetched ({str(error).splitlines()[0]})",
                "Give a local file as `weights`",
            ) from error
        load_backbone_weights(model, hub.state_dict(), settings.backbone)
