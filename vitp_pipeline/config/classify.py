"""[classify]: the classifier, the points it classifies, and how its scores of a mask are averaged."""

from typing import Annotated, Literal

from vitp_pipeline.config.choices import Average, Precision
from vitp_pipeline.config.generate_proposals import PolicyName
from vitp_pipeline.validation.constraints import Device, FolderName, within
from vitp_pipeline.validation.keys import Key
from vitp_pipeline.validation.tables import table

RELEASED = (".pth", ".pt")
"""Endings of files in the layout of released classifiers, which are converted before they are used."""


@table
class ClassifySettings:
    """[classify]: which classifier scores which points."""

    name: Annotated[FolderName, Key("Classifier trained in this run.", enters="content")] = "default"
    classifier: Annotated[
        str,
        Key(
            "Classifier from elsewhere in place of `name`: a file, by path or name (hf:…); also a released .pth.",
            enters="content",
        ),
    ] = ""
    points: Annotated[PolicyName, Key("Policy whose points are classified; several of a mask are averaged.")] = "max"
    frame: Annotated[
        Literal["image", "view", "cells"],
        Key("Classify points in the image, in the generator's padded input, or as mask cells of the image."),
    ] = "image"
    flip: Annotated[bool, Key("Average log-probabilities with those of the horizontally flipped image.")] = False
    temperature: Annotated[
        float,
        within(0, 1000, "(]"),
        Key("Softmax temperature of a mask's scores; below 1 sharpens.", "factor"),
    ] = 1.0
    precision: Annotated[Precision, Key("Precision of forward passes; auto = bfloat16 on GPUs that have it.")] = "auto"
    batch_size: Annotated[int, within(1, 4096), Key("Images per forward pass.", "images", "not")] = 4
    device: Annotated[Device, Key("Device: auto, cpu, cuda, cuda:1.", enters="not")] = "auto"
    chunk: Annotated[
        int,
        within(0, 10**6),
        Key("Points per forward pass, padded with random ones as in the released code; 0 = all.", "points"),
    ] = 0
    average: Annotated[
        Average,
        Key("Average over a mask's points; auto = the policy's own: log-probabilities for local_maxima."),
    ] = "auto"
    feature_cache: Annotated[
        float,
        within(0, 10**6),
        Key("Largest size of the stored features of a frozen backbone; 0 = none are stored.", "GB", "not"),
    ] = 8.0
