"""Manifests and readers of images and ground truth."""

from vitp_pipeline.datasets.dataset import Dataset, GroundTruthSegment, Sample
from vitp_pipeline.datasets.spec import IGNORE, ClassInfo, DatasetSpec, load_manifest

__all__ = ["IGNORE", "ClassInfo", "Dataset", "DatasetSpec", "GroundTruthSegment", "Sample", "load_manifest"]
