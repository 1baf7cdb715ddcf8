"""Run a generator on images: whole, or by a plan of scales, flipping and sliding windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vitp_pipeline.errors import UsageError
from vitp_pipeline.generators.base import Generator, Proposals
from vitp_pipeline.geometry import Size, View, Window, size_of


@dataclass(frozen=True)
class ViewPlan:
    """Views of every image that a generator sees: scale by scale, plain then flipped, windows in rows.

    Attributes:
        scales: factors on the generator's own test size.
        flip: whether every frame is seen flipped, too.
        window, stride: (height, width) of the windows in the resized image and of the step from one to the next; the
            last one of a row or column ends at the image's edge. None = the frame is seen whole.
        rescaled: whether frames are resized from the image at the generator's own test size, as detectron2's test-time
            augmentation does; else from the image.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: Size | None = None
    stride: Size | None = None
    rescaled: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise UsageError(f"scales = {list(self.scales)} are not one or more positive factors")
        if self.window is None:
            return
        if self.stride is None or not all(0 < s <= w for s, w in zip(self.stride, self.window, strict=True)):
            raise UsageError(
                f"windows of {self.window} with a stride of {self.stride}",
                "Strides lie between 1 and the window's own height and width",
            )

    @property
    def one_whole(self) -> bool:
        """True for one view, of the whole upright image."""
        return len(self.scales) == 1 and not self.flip and self.window is None


def slide(size: Size, window: Size, stride: Size) -> list[Window]:
    """List the windows of an image of `size`, as mmsegmentation slides them: row by row, the last ones moved inside."""
    places = []
    for length, extent, step in zip(size, window, stride, strict=True):
        extent = min(extent, length)
        count = -(-(length - extent) // step) + 1
        places.append([(min(i * step, length - extent), extent) for i in range(count)])
    return [(top, left, height, width) for top, height in places[0] for left, width in places[1]]


def propose(generator: Generator, images: Sequence[np.ndarray], scale: float = 1.0) -> list[Proposals]:
    """Propose masks for every image, seen whole, in order.

    Args:
        images: RGB uint8 (H, W, 3), each of any size.
        scale: factor on the generator's own test size.
    Raises:
        InputError: an image is of another shape or type.
    """
    return propose_frames(generator, [frame_of(generator, image, ViewPlan((scale,))) for image in images])


def frame_of(generator: Generator, image: np.ndarray, plan: ViewPlan) -> Frame:
    """Prepare the generator's input for an image seen whole, by a plan of one view. Raises InputError as `propose`."""
    (frame,) = _frames(generator, image, plan)
    return frame


def propose_frames(generator: Generator, frames: Sequence[Frame]) -> list[Proposals]:
    """Propose masks for frames, in order."""
    return list(_forward(generator, frames))


def propose_views(generator: Generator, image: np.ndarray, plan: ViewPlan, batch_size: int = 1) -> Iterator[Proposals]:
    """Propose masks for all views of an image, in the order of the plan.

    Args:
        image: RGB uint8 (H, W, 3).
        batch_size: views in a forward; so many views' masks are alive at once.
    Raises:
        InputError: the image is of another shape or type.
    """
    waiting: list[Frame] = []
    for frame in _frames(generator, image, plan):
        waiting.append(frame)
        if len(waiting) == batch_size:
            yield from _forward(generator, waiting)
            waiting = []
    yield from _forward(generator, waiting)


@dataclass(frozen=True)
class Frame:
    """Generator input made from an image, and its place in it."""

    original: Size
    resized: Size
    pixels: np.ndarray
    window: Window | None = None
    flip: bool = False
    through: Size | None = None


def _frames(generator: Generator, image: np.ndarray, plan: ViewPlan) -> Iterator[Frame]:
    first = generator.resize(image) if plan.rescaled else None
    through = None if first is None else size_of(first)
    for scale in plan.scales:
        upright = generator.resize(image, scale) if first is None else _resize_again(generator, first, scale)
        size = size_of(upright)
        windows = slide(size, plan.window, plan.stride) if plan.window and plan.stride else []
        for flip in (False, True) if plan.flip else (False,):
            pixels = np.ascontiguousarray(upright[:, ::-1]) if flip else upright
            if len(windows) < 2:
                yield Frame(size_of(image), size, pixels, None, flip, through)
                continue
            for top, left, height, width in windows:
                part = np.ascontiguousarray(pixels[top : top + height, left : left + width])
                yield Frame(size_of(image), size, part, (top, left, height, width), flip, through)


def _resize_again(generator: Generator, frame: np.ndarray, scale: float) -> np.ndarray:
    """Resize a frame of the test size. Raises UsageError where the generator cannot."""
    if (again := getattr(generator, "resize_again", None)) is None:
        raise UsageError("this generator resizes no frame again", 'Leave scaled_from = "frame" out')
    resized: np.ndarray = again(frame, scale)
    return resized


def _forward(generator: Generator, frames: Sequence[Frame]) -> Iterator[Proposals]:
    found = generator.forward([frame.pixels for frame in frames]) if frames else []
    for frame, output in zip(frames, found, strict=True):
        _, height, width = output.mask_logits.shape
        view = View(
            frame.original, frame.resized, output.padded, (height, width), frame.window, frame.flip, frame.through
        )
        yield Proposals(output.mask_logits, output.class_logits, view)
