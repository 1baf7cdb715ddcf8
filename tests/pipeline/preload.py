"""Imported once by the fork server of the restart tests, so that a kill meets work and not an import."""

# ruff: noqa: E402, F401
from vitp_pipeline.generators.mmcv_ops import prepare_mmcv

prepare_mmcv()

import mmdet.models
import mmengine.runner
import mmseg.models
import pyarrow.parquet
import scipy.ndimage
import timm
import torch
import zarr

import vitp_pipeline.classifier.discriminant
import vitp_pipeline.classifier.predict
import vitp_pipeline.generators.openmmlab
import vitp_pipeline.stages.results
