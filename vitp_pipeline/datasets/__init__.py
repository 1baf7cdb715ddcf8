"""Read images and ground truth as a manifest describes them.

Enters: a manifest (TOML) and a data root. Leaves: samples, RGB arrays, label maps, segments and instances. Start with
`dataset`; `prepare/` derives files that a dataset does not ship.
"""

from vitp_pipeline.datasets.annotations import GroundTruthSegment
from vitp_pipeline.datasets.dataset import Dataset
from vitp_pipeline.datasets.label_kinds.kind import Sample
from vitp_pipeline.datasets.label_kinds.truth import GroundTruthInstance
from vitp_pipeline.datasets.manifest import load_manifest
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
