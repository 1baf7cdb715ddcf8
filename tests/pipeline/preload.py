"""Imported once by the fork server of the restart tests, so that a kill meets work and not an import."""

# ruff: noqa: E402, F401
from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

prepare_mmcv()

import mmdet.models
import mmengine.runner
import mmseg.models
import pyarrow.parquet
import scipy.ndimage
import timm
import torch
import zarr

import vitp_pipeline.classifier.inference
import vitp_pipeline.classifier.training.lda
import vitp_pipeline.evaluation.summary
import vitp_pipeline.generators.openmmlab.adapter
