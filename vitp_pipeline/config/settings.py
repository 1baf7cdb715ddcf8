"""The tables of a recipe by name."""

from __future__ import annotations

from typing import TypeVar

from vitp_pipeline.config.classify import ClassifySettings
from vitp_pipeline.config.evaluate import EvaluateSettings
from vitp_pipeline.config.generate_proposals import ProposalSettings
from vitp_pipeline.config.train_classifier import TrainSettings

__all__ = ["TABLES", "ClassifySettings", "EvaluateSettings", "ProposalSettings", "Settings", "TrainSettings"]

TABLES: dict[str, type] = {
    "generate-proposals": ProposalSettings,
    "train-classifier": TrainSettings,
    "classify": ClassifySettings,
    "evaluate": EvaluateSettings,
}

Settings = TypeVar("Settings", ProposalSettings, TrainSettings, ClassifySettings, EvaluateSettings)
