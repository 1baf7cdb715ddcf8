"""Manifests and readers of images and ground truth."""

from vitp_pipeline.datasets.annotations import GroundTruthSegment
from vitp_pipeline.datasets.dataset import Dataset, GroundTruthInstance
from vitp_pipeline.datasets.manifest import load_manifest
from vitp_pipeline.datasets.samples import Sample
from vitp_pipeline.datasets.spec import IGNORE, ClassInfo, DatasetSpec

__all__ = [
    "IGNORE",
    "ClassInfo",
    "Dataset",
    "DatasetSpec",
    "GroundTruthInstance",
    "GroundTruthSegment",
    "Sample",
    "load_manifest",
]
