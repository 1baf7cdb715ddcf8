"""Drawn scenes with panoptic ground truth, in the layout of COCO panoptic.

Twelve classes in five groups. The classes of a group have the same shape and overlapping colors; what tells them
apart for certain is a fine texture of four pixels' period, made to cancel when the scene is halved. So a network that
sees a scene at half its size finds every region by shape and color, and must guess classes from shades. This mimics
the paper's setting: a mask generator with good masks and poor classification.

A scene is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitp_pipeline.storage.atomic_files import refusals
from vitp_pipeline.storage.fs_ops import make_folder

SIZE = (192, 256)
VOID_ID = 0
MIN_AREA = 100
"""A thing with fewer visible pixels is unlabeled: it could not be classified."""

Array = np.ndarray


@dataclass(frozen=True)
class Category:
    """One class: `group` fixes shape and range of colors, `texture` tells it from the others of its group.

    `tones` are the parameters of the beta distribution of where in the group's range its colors lie. Those of a
    group overlap: a classifier that uses only the shade is right for 84 % of two classes and 64 % of three.
    """

    id: int
    group: str
    texture: str
    isthing: bool
    color: tuple[int, int, int]
    tones: tuple[float, float]

    @property
    def name(self) -> str:
        return f"{self.group}-{self.texture}"


LOW, MID, HIGH = (1.2, 3.0), (4.0, 4.0), (3.0, 1.2)
CATEGORIES: tuple[Category, ...] = (
    Category(1, "water", "rows", False, (64, 138, 178), LOW),
    Category(2, "water", "slants", False, (96, 196, 204), HIGH),
    Category(3, "sand", "columns", False, (214, 190, 140), LOW),
    Category(4, "sand", "dots", False, (176, 148, 104), HIGH),
    Category(5, "ball", "rows", True, (228, 96, 72), LOW),
    Category(6, "ball", "columns", True, (246, 148, 84), MID),
    Category(7, "ball", "checks", True, (176, 56, 64), HIGH),
    Category(8, "box", "rows", True, (120, 88, 168), LOW),
    Category(9, "box", "slants", True, (168, 128, 208), MID),
    Category(10, "box", "dots", True, (84, 60, 116), HIGH),
    Category(11, "star", "columns", True, (96, 168, 88), LOW),
    Category(12, "star", "checks", True, (52, 120, 76), HIGH),
)
STUFF = tuple(c for c in CATEGORIES if not c.isthing)
THINGS = tuple(c for c in CATEGORIES if c.isthing)

# The two ends of the colors of each group, RGB.
GROUP_COLORS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "water": ((72, 132, 172), (142, 202, 208)),
    "sand": ((186, 152, 108), (232, 212, 166)),
    "ball": ((206, 74, 66), (244, 158, 92)),
    "box": ((92, 74, 142), (178, 142, 204)),
    "star": ((58, 122, 82), (156, 192, 96)),
}


@dataclass(frozen=True)
class Segment:
    """One labeled region of a scene. `bbox` is (x, y, width, height) as COCO has it, `area` counts pixels."""

    id: int
    category: Category
    bbox: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class Scene:
    """image: RGB uint8 (H, W, 3). ids: int32 (H, W), segment ids, 0 where unlabeled."""

    image: Array
    ids: Array
    segments: tuple[Segment, ...]


# ---- textures: (row, column) in pixels -> zero mean, unit root mean square
#
# All repeat every four pixels along both axes and start (up to JITTER) at the phase that averages of 2 x 2 pixels
# cancel. So they are plain at full size, also to the linear patch embedding of a vision transformer (patches of a
# multiple of four pixels), which learns them within a minute, and nearly gone at half size.

PERIOD = 4
JITTER = 0.45


def _wave(position: Array, phase: float) -> Array:
    wave: Array = np.sin(position * np.float32(2 * np.pi / PERIOD) + np.float32(phase))
    return wave


def _rows(y: Array, x: Array, phases: Array) -> Array:
    return _wave(y, phases[0]) * np.float32(2**0.5)


def _columns(y: Array, x: Array, phases: Array) -> Array:
    return _wave(x, phases[0]) * np.float32(2**0.5)


def _slants(y: Array, x: Array, phases: Array) -> Array:
    # A diagonal wave cancels in 2 x 2 pixels from another phase on: 3/4 pi further.
    return _wave(x + y, phases[0] + 0.75 * np.pi) * np.float32(2**0.5)


def _checks(y: Array, x: Array, phases: Array) -> Array:
    checks: Array = _wave(x, phases[0]) * _wave(y, phases[1]) * 2
    return checks


def _dots(y: Array, x: Array, phases: Array) -> Array:
    # Peaks of w = (1 + sin)(1 + sin) / 4, squared to set them apart; w² has mean 9/64 and deviation 0.23446.
    w = (1 + _wave(x, phases[0])) * (1 + _wave(y, phases[1])) / 4
    dots: Array = (w * w - np.float32(9 / 64)) / np.float32(0.23446)
    return dots


TEXTURES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "rows": _rows,
    "columns": _columns,
    "slants": _slants,
    "checks": _checks,
    "dots": _dots,
}


def texture(name: str, y: Array, x: Array, rng: np.random.Generator) -> Array:
    """Evaluate the texture at pixels (y, x) of the scene, float32, with a random phase."""
    phases: Array = -np.pi / 4 + rng.uniform(-JITTER, JITTER, 2)
    return TEXTURES[name](y, x, phases)


# ---- shapes: signed distance to the outline in pixels, negative inside


def _ball(y: Array, x: Array, radius: float, rng: np.random.Generator) -> Array:
    squash = rng.uniform(0.9, 1.0)
    return np.hypot(x * squash, y / squash) - np.float32(radius)


def _box(y: Array, x: Array, radius: float, rng: np.random.Generator) -> Array:
    angle, aspect = rng.uniform(-0.5, 0.5), rng.uniform(0.65, 1.0)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    corner = 0.18 * radius
    a = np.abs(c * x + s * y) - np.float32(0.95 * radius - corner)
    b = np.abs(c * y - s * x) - np.float32(0.95 * radius * aspect - corner)
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - np.float32(corner)


def _star(y: Array, x: Array, radius: float, rng: np.random.Generator) -> Array:
    arms, depth = 5, 0.17
    angle = arms * np.arctan2(y, x) + np.float32(rng.uniform(0, 2 * np.pi))
    outline = radius * (0.9 + depth * np.cos(angle))
    slope = radius * depth * arms * np.sin(angle) / outline
    distance: Array = (np.hypot(x, y) - outline) / np.sqrt(1 + slope * slope)
    return distance


SHAPES: dict[str, Callable[[Array, Array, float, np.random.Generator], Array]] = {
    "ball": _ball,
    "box": _box,
    "star": _star,
}


# ---- painting


def _color(category: Category, rng: np.random.Generator) -> Array:
    low, high = (np.array(end, np.float32) for end in GROUP_COLORS[category.group])
    color: Array = low + np.float32(rng.beta(*category.tones)) * (high - low) + rng.uniform(-8, 8, 3).astype(np.float32)
    return color


def _curve(y: Array, x: Array, level: float, angle: float, rng: np.random.Generator) -> Array:
    """Signed distance (about) to a wavy line across the scene; `level` in [0, 1] says how far along `angle`."""
    height, width = y.shape
    c, s = math.cos(angle), math.sin(angle)
    along = c * (y - height / 2) + s * (x - width / 2)
    across = c * (x - width / 2) - s * (y - height / 2)
    reach = abs(c) * height / 2 + abs(s) * width / 2
    bend = np.zeros_like(across)
    for length, amplitude in ((width * 0.9, 12), (width * 0.4, 5)):
        bend += rng.uniform(0.5, 1) * amplitude * np.sin(across * (2 * np.pi / length) + rng.uniform(0, 2 * np.pi))
    distance: Array = along - (2 * level - 1) * reach + bend
    return distance


def _background(y: Array, x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw two or three bands of stuff divided by wavy lines: (canvas float32 (H, W, 3), category id (H, W))."""
    bands = int(rng.integers(2, 4))
    # Neighbors are of different groups: edges are plain to see whatever the names.
    groups = [[c for c in STUFF if c.group == group] for group in ("water", "sand")]
    orders = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    first = int(rng.integers(2))
    angle = rng.uniform(-0.6, 0.6) + (np.pi / 2 if rng.random() < 0.25 else 0)
    canvas = np.zeros((*y.shape, 3), np.float32)
    label = np.zeros(y.shape, np.int32)
    for band in range(bands):
        category = orders[(first + band) % 2][band // 2]
        light = 1 + 0.13 * texture(category.texture, y, x, rng)
        paint = _color(category, rng) * light[..., None]
        if band == 0:
            canvas[:], label[:] = paint, category.id
            continue
        distance = _curve(y, x, band / bands + rng.uniform(-0.06, 0.06), angle, rng)
        # A soft shadow on the far side of the edge.
        canvas *= 1 - 0.22 * np.exp(-np.square(np.minimum(distance, 0) / 5))[..., None]
        canvas += np.clip(distance + 0.5, 0, 1)[..., None] * (paint - canvas)
        label[distance >= 0] = category.id
    return canvas, label


def _window(center: tuple[float, float], radius: float, size: tuple[int, int]) -> tuple[slice, slice]:
    (cy, cx), margin = center, int(radius * 1.15) + 8
    return (
        slice(max(0, int(cy) - margin), min(size[0], int(cy) + margin + 1)),
        slice(max(0, int(cx) - margin), min(size[1], int(cx) + margin + 1)),
    )


def _paste(canvas: Array, distance: Array, paint: Array, lift: float = 3.0) -> None:
    """Blend `paint` into `canvas` where distance < 0, with a darker rim and a drop shadow below right."""
    shift = round(lift)
    shadow = np.full_like(distance, 99)
    shadow[shift:, shift:] = distance[:-shift, :-shift]
    canvas *= 1 - 0.38 / (1 + np.exp(np.clip(shadow, -20, 20) * 0.7))[..., None]
    rim = 1 - 0.35 * np.clip((distance + 2.2) / 1.6, 0, 1)
    canvas += np.clip(0.5 - distance, 0, 1)[..., None] * (paint * rim[..., None] - canvas)


def _place(
    rng: np.random.Generator, size: tuple[int, int], radius: float, taken: list[tuple[float, float, float]]
) -> tuple[float, float] | None:
    """Find a center at which a shape overlaps existing ones only in part; None after twenty tries."""
    for _ in range(20):
        cy, cx = rng.uniform(8, size[0] - 8), rng.uniform(8, size[1] - 8)
        if all(np.hypot(cy - y, cx - x) > 0.72 * (radius + r) for y, x, r in taken):
            return cy, cx
    return None


def _pebble(canvas: Array, y: Array, x: Array, radius: float, rng: np.random.Generator) -> Array:
    """Draw a plain pale pebble, which has no class. Returns its mask, bool."""
    distance = _ball(y * 1.15, x * 0.9, radius, rng)
    light = 1 - 0.14 * (y + x) / radius
    _paste(canvas, distance, np.array([214, 210, 204], np.float32) * light[..., None])
    return distance < 0


def _things(canvas: Array, y: Array, x: Array, rng: np.random.Generator) -> tuple[Array, list[Category | None]]:
    """Paint three to eight things, later ones over earlier ones, and now and then an unlabeled pebble.

    Returns (H, W) int32 with 0 for background and n + 1 where object n is on top, and the categories (None: no class).
    """
    size = y.shape
    on_top = np.zeros(size, np.int32)
    objects: list[Category | None] = []
    taken: list[tuple[float, float, float]] = []
    kinds: list[Category | None] = list(THINGS)
    # A scene uses a few classes, so that one class often occurs several times.
    kinds = [kinds[i] for i in rng.choice(len(kinds), int(rng.integers(2, 6)), replace=False)]
    todo: list[Category | None] = [kinds[i] for i in rng.integers(0, len(kinds), int(rng.integers(3, 9)))]
    if rng.random() < 0.3:
        todo.insert(int(rng.integers(len(todo) + 1)), None)
    for category in todo:
        radius = rng.uniform(16, 30)
        center = _place(rng, size, radius, taken)
        if center is None:
            continue
        taken.append((*center, radius))
        window = _window(center, radius, size)
        wy, wx = y[window], x[window]
        dy, dx = wy - np.float32(center[0]), wx - np.float32(center[1])
        objects.append(category)
        if category is None:
            inside = _pebble(canvas[window], dy, dx, radius * 0.8, rng)
        else:
            distance = SHAPES[category.group](dy, dx, radius, rng)
            light = 1 - 0.16 * (dy + dx) / radius + 0.16 * texture(category.texture, wy, wx, rng)
            _paste(canvas[window], distance, _color(category, rng) * light[..., None])
            inside = distance < 0
        on_top[window][inside] = len(objects)
    return on_top, objects


# ---- scenes


def _segment(ids: Array, mask: Array, category: Category, number: int) -> Segment:
    red, green, blue = category.color
    segment_id = (red + 3 * number) % 256 + 256 * green + 65536 * blue
    ids[mask] = segment_id
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    return Segment(segment_id, category, box, int(np.count_nonzero(mask)))


def draw_scene(seed: int, split: str, index: int, size: tuple[int, int] = SIZE) -> Scene:
    """Draw scene `index` of a split. `size` is (height, width); the same arguments give the same scene."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    y, x = (grid.astype(np.float32) for grid in np.mgrid[: size[0], : size[1]])
    canvas, label = _background(y, x, rng)
    on_top, objects = _things(canvas, y, x, rng)

    ids = np.full(size, VOID_ID, np.int32)
    segments: list[Segment] = []
    for category in STUFF:  # one segment per stuff class, however many pieces it is in
        mask = (label == category.id) & (on_top == 0)
        if np.count_nonzero(mask) >= MIN_AREA:
            segments.append(_segment(ids, mask, category, 0))
    for number, thing in enumerate(objects, start=1):
        mask = on_top == number
        if thing is not None and np.count_nonzero(mask) >= MIN_AREA:
            segments.append(_segment(ids, mask, thing, number))

    vignette = 1 - 0.16 * (np.square(y / size[0] - 0.5) + np.square(x / size[1] - 0.5))
    canvas *= vignette[..., None]
    canvas += 3 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Scene(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), ids, tuple(segments))


def id_to_rgb(ids: Array) -> Array:
    """Encode segment ids, int (H, W), as uint8 (H, W, 3) of a COCO panoptic PNG: id = R + 256 G + 65536 B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def draw_scenes(root: Path, split: str, count: int, seed: int, size: tuple[int, int] = SIZE) -> None:
    """Write `count` scenes of a split below `root`, in the layout of COCO panoptic.

    `images/{split}/000000.png`, `panoptic_{split}/000000.png` and `annotations/panoptic_{split}.json`.
    Scenes of different splits differ although the seed is the same. There are no crowds.
    """
    image_dir, panoptic_dir = root / "images" / split, root / f"panoptic_{split}"
    for folder in (image_dir, panoptic_dir, root / "annotations"):
        with refusals(folder):
            make_folder(folder)
    images, annotations = [], []
    for index in range(count):
        scene = draw_scene(seed, split, index, size)
        file_name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(image_dir / file_name, compress_level=1)
        Image.fromarray(id_to_rgb(scene.ids)).save(panoptic_dir / file_name, compress_level=1)
        images.append({"id": index, "file_name": file_name, "height": size[0], "width": size[1]})
        segments_info = [
            {
                "id": segment.id,
                "category_id": segment.category.id,
                "iscrowd": 0,
                "bbox": list(segment.bbox),
                "area": segment.area,
            }
            for segment in scene.segments
        ]
        annotations.append({"image_id": index, "file_name": file_name, "segments_info": segments_info})
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)} for c in CATEGORIES]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(document), encoding="utf-8")
