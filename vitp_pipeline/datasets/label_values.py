"""Decide what the samples of a dataset's label images mean, by one rule (explained in docs/datasets.md).

Gray levels of 8 or more bits are the labels. Of a palette of colors the indices are; of a palette of grays the levels
that it shows, since optimizers of PNG files make such palettes of gray levels. Samples of 1, 2 and 4 bits are the
labels as stored where all files of the dataset have them. What could as well be something else, by the dataset's other
files and the manifest's labels, is refused unless the manifest says `values`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_files import GRAY_BITS, ColorsError, LabelFile, read_label_file
from vitp_pipeline.datasets.spec import UNKNOWN, DatasetSpec
from vitp_pipeline.errors import InputError

SURVEYED = 64
"""Label images that are looked at, evenly spread, to know how a dataset stores its labels."""

SAY = 'set values = "stored" (indices, samples as they are) or "shown" (gray levels) under [labels] in the manifest'


@dataclass(frozen=True)
class Survey:
    """Storage forms of a dataset's label images.

    Attributes:
        forms: those of `LabelFile.form` that occur.
        palettes: the different palettes of colors, each with the first file that has it.
        conflict: two files whose palettes give an index different colors, and that index.
        credible: palettes that no PNG optimizer has renumbered (`_is_credible`).
        optimized: some gray palettes are no drawn ramps: an optimizer has made them of gray levels.
        colored: a file of colors without a palette.
    """

    forms: frozenset[str] = frozenset()
    palettes: tuple[tuple[Path, np.ndarray], ...] = ()
    conflict: str = ""
    credible: tuple[np.ndarray, ...] = ()
    optimized: bool = False
    colored: Path | None = None


def survey(paths: Iterable[Path]) -> Survey:
    """Survey label images. Unreadable files are skipped: they are reported when they are read."""
    palettes: dict[bytes, tuple[Path, np.ndarray]] = {}
    forms, files, optimized, colored = set(), [], False, None
    for path in paths:
        try:
            if path.suffix == ".json":
                continue
            mode = open_image(path, "label image", decode=False).raw_mode
            if mode in GRAY_BITS and mode != "LA":
                forms.add(f"{GRAY_BITS[mode]}-bit gray")
                continue
            file = read_label_file(path)
        except ColorsError:
            colored = path
        except InputError:
            continue
        else:
            forms.add(file.form)
            if file.form == "color palette":
                assert file.palette is not None
                palettes.setdefault(file.palette.tobytes(), (path, file.palette))
                files.append(file)
            elif file.form == "gray palette":
                optimized |= not _is_ramp(_grays(file)) and not _is_identity(_grays(file))
    found = sorted(palettes.values(), key=lambda entry: -len(entry[1]))
    conflict = next((why for file in files for path, palette in found if (why := _clash(file, path, palette))), "")
    credible = tuple(file.palette for file in files if file.palette is not None and _is_credible(file))
    return Survey(frozenset(forms), tuple(found), conflict, credible, optimized and not found, colored)


class LabelReader:
    """Read label images of one dataset by one rule. Safe in threads.

    Args:
        files: gives the label images of the dataset that a survey looks at; called once, when it is needed.
        known: (L,) bool: which values are labels of the manifest, others than these being unknown; None = all may be.
        values: `stored` or `shown`, where the manifest says so.
        upright: turn label images by the orientation that they state.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[Path]],
        known: np.ndarray | None = None,
        values: str = "",
        upright: bool = True,
    ) -> None:
        self._files, self._known, self._values, self._upright = files, known, values, upright
        self._survey: Survey | None = None
        self._lock = Lock()

    @classmethod
    def of(cls, spec: DatasetSpec, files: Callable[[], Iterable[Path]]) -> LabelReader:
        """Make the reader of a manifest's label images."""
        return cls(files, spec.label_lut != UNKNOWN, spec.values, spec.orientation != "stored")

    def read(self, path: Path) -> np.ndarray:
        """Read a label image as (H, W) int32 label values.

        Raises:
            InputError: as `read_label_file`, or it can be read in more than one way.
        """
        return self.labels(self.open(path))[0]

    def open(self, path: Path) -> LabelFile:
        """Read the samples of a label image. Raises InputError."""
        return read_label_file(path, self._upright)

    def labels(self, file: LabelFile) -> tuple[np.ndarray, str]:
        """((H, W) int32 label values, `stored` or `shown`). Raises InputError where there is more than one way."""
        if file.bits > 8 or self._values == "stored" or (file.form == "8-bit gray" and self._is_plain()):
            return file.samples.astype(np.int32), "stored"
        used = np.flatnonzero(np.bincount(file.samples.ravel(), minlength=1))
        way, labels = self._decide(file, used)
        table = np.zeros(int(used[-1]) + 1, np.int32)
        table[used] = labels
        return table[file.samples], way

    @property
    def survey(self) -> Survey:
        with self._lock:
            if self._survey is None:
                self._survey = survey(self._files())
            return self._survey

    def _is_plain(self) -> bool:
        """Nothing speaks against reading gray of 8 bits as it is."""
        return self._values == "shown" or not (self.survey.palettes or self._has_wide())

    def _has_wide(self) -> bool:
        """Labels of 16 bits, which an optimizer stores in 8 bits where all of a file's are multiples of 257."""
        return (self._known is None or len(self._known) > 257) and "16-bit gray" in self.survey.forms

    def _decide(self, file: LabelFile, used: np.ndarray) -> tuple[str, np.ndarray]:
        """Decide how to read a file; return that and the labels of the samples that occur."""
        ways = self._ways(file, used)
        usable = {way: labels for way, labels in ways.items() if self._are_known(labels)}
        if not usable:  # unknown values, in whichever way: the first is what is told
            return next(iter(ways.items()))
        (way, labels), *others = usable.items()
        if self.survey.forms == {file.form} and file.bits < 8:
            return way, labels
        others += (
            [] if self._values else [(how, rival) for how, rival in self._rivals(file, used) if self._are_known(rival)]
        )
        for how, rival in others:
            if (rival != labels).any():
                raise _open_question(
                    file,
                    f"its labels can be read as {_listed(labels)} ({way}) or as {_listed(rival)} ({how}); it is "
                    f"{file.form} among {', '.join(sorted(self.survey.forms))}",
                )
        return way, labels

    def _ways(self, file: LabelFile, used: np.ndarray) -> dict[str, np.ndarray]:
        """Return the labels of the samples that occur by each possible reading, the likelier one first."""
        if file.form == "color palette":
            self._require_one_palette(file)
            return {"stored": used}
        grays = _grays(file)
        stored, shown = {"stored": used}, {"shown": grays[used]}
        if self._values:
            return shown
        if file.palette is not None:
            return shown if self.survey.optimized or not _is_ramp(grays) else shown | stored
        if file.bits < 8:
            return shown if self.survey.optimized else stored | shown
        if file.form != "8-bit gray" and self.survey.colored is not None:
            raise InputError(
                f"{file.path}: its channels are equal, but {self.survey.colored} has colors: convert those to ids first"
            )
        return stored

    def _require_one_palette(self, file: LabelFile) -> None:
        if self._values == "shown":
            raise _open_question(file, 'it has a palette of colors, and the manifest says values = "shown"')
        clashes = (_clash(file, *entry) for entry in self.survey.palettes)
        if why := self.survey.conflict or next(filter(None, clashes), ""):
            raise _open_question(file, f"palettes of the dataset differ, so palette indices cannot be class ids: {why}")
        if not self.survey.palettes:
            raise _open_question(file, "it has a palette of colors, unlike the dataset's other label images")
        if not _is_credible(file) and not any(_confirms(each, file) for each in self.survey.credible):
            raise _open_question(
                file,
                "its palette has colors for what occurs and for nothing else, like all of the dataset, so that an "
                "optimizer could have renumbered them",
            )

    def _rivals(self, file: LabelFile, used: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """List possible sources of an optimized file: other indices into a palette of colors, or 16-bit gray."""
        colors = file.palette[used] if file.palette is not None else np.repeat(_grays(file)[used][:, None], 3, 1)
        found = []
        for path, palette in self.survey.palettes:
            if file.palette is None or not np.array_equal(palette, file.palette):
                indices = [
                    self._index_of(color, own, palette) for color, own in zip(colors, used.tolist(), strict=True)
                ]
                if None not in indices:
                    found.append((f"indices of {path.name}", np.array(indices)))
        if file.form != "color palette" and self._has_wide():
            found.append(("16 bits made 8", 257 * _grays(file)[used].astype(np.int64)))
        return found

    def _index_of(self, color: np.ndarray, own: int, palette: np.ndarray) -> int | None:
        """Find a known index of a color, preferring one other than its own."""
        places = [n for n in np.flatnonzero((palette == color).all(1)).tolist() if self._are_known(np.array([n]))]
        return next((n for n in places if n != own), places[0] if places else None)

    def _are_known(self, labels: np.ndarray) -> bool:
        if self._known is None:
            return True
        return bool(labels.max() < len(self._known) and self._known[labels].all())


def _open_question(file: LabelFile, what: str) -> InputError:
    return InputError(f"{file.path}: {what}; {SAY}")  # in the message: reasons of failed images have no other fix


def _grays(file: LabelFile) -> np.ndarray:
    """(N,) int64 gray levels 0..255 that samples of up to 8 bits show."""
    if file.palette is not None:
        return np.asarray(file.palette[:, 0], np.int64)
    return np.arange(1 << file.bits, dtype=np.int64) * (255 // ((1 << file.bits) - 1))


def _is_identity(grays: np.ndarray) -> bool:
    return bool((grays == np.arange(len(grays))).all())


def _is_ramp(grays: np.ndarray) -> bool:
    """Tell if a palette is an even ramp from black to white, made to show indices; it may be padded with black."""
    end = int(np.flatnonzero(grays)[-1]) + 1 if grays.any() else 1
    for count in {end, min(end + 1, len(grays))}:
        even = np.linspace(0, 255, count) if count > 1 else np.array([255.0])
        if any(np.abs(grays[:count] - steps).max() <= 1 for steps in (even, even[::-1])):
            return True
    return False


def _is_credible(file: LabelFile) -> bool:
    """True if a palette has colors that do not occur: optimizers, which renumber colors, drop those.
    Black entries at its end may pad it.
    """
    assert file.palette is not None
    colors = int(np.flatnonzero(file.palette.any(1))[-1]) + 1
    return not np.bincount(file.samples.ravel(), minlength=colors)[:colors].all()


def _confirms(palette: np.ndarray, file: LabelFile) -> bool:
    """True if another file's palette gives the same colors to all indices that a file uses."""
    assert file.palette is not None
    used = np.flatnonzero(np.bincount(file.samples.ravel()))
    return bool(used[-1] < len(palette) and (palette[used] == file.palette[used]).all())


def _clash(file: LabelFile, path: Path, palette: np.ndarray) -> str:
    """Describe how a palette gives an index that a file uses another color than the file's own; else ""."""
    assert file.palette is not None
    used = np.flatnonzero(np.bincount(file.samples.ravel()))
    used = used[used < len(palette)]
    other = used[((palette[used] != file.palette[used]) & (palette[used] >= 0) & (file.palette[used] >= 0)).any(1)]
    if not len(other):
        return ""
    n = int(other[0])
    return f"index {n} is {tuple(file.palette[n].tolist())} in {file.path} and {tuple(palette[n].tolist())} in {path}"


def _listed(labels: np.ndarray) -> str:
    return ", ".join(map(str, labels[:6].tolist())) + (" …" if len(labels) > 6 else "")
