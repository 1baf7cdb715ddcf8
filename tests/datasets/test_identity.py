"""Which image is meant: right, or refused, for any ids and paths; never another image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.datasets import making
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.identity import (
    Claims,
    ImageIndex,
    image_key,
    image_ranks,
    json_ids,
    result_names,
    split_name,
)
from vitp_pipeline.datasets.label_kinds.semantic_png import read_values
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.errors import InputError


def index(images: dict[str, str], root: str = "data") -> ImageIndex:
    """Of paths below the split's folder by id."""
    paths = list(images.values())
    return ImageIndex(list(images), lambda place: (f"{root}/{paths[place]}", paths[place]), "keys.json")


# ---- ids ------------------------------------------------------------------------------------------------------------

KEYS = [
    (1, "1"), ("1", "1"), (1.0, "1"), ("01", "01"), ("1.0", "1.0"), (-3, "-3"), (0, "0"), (-0.0, "0"), ("", ""),
    (10**20, "100000000000000000000"), (2**64 + 1, "18446744073709551617"), (" 1 ", " 1 "), ("١", "١"), ("..", ".."),
    ("/etc/passwd", "/etc/passwd"), ("a\0b", "a\0b"), (np.int64(7), "7"), (np.uint64(2**64 - 1), str(2**64 - 1)),
    ("e\u0301", "e\u0301"), ("é", "é"), ("x" * 9999, "x" * 9999), ("true", "true"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), KEYS)
def test_ids_as_text(value: object, text: str) -> None:
    assert image_key(value) == text


@pytest.mark.parametrize("value", [None, True, False, 1.5, 1e300, float("nan"), float("inf"), [], {}, [1], "\ud800"])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(ValueError, match=r"not an image id|UTF-8"):
        image_key(value)


@given(st.lists(st.integers(), unique=True) | st.lists(st.integers().map(str) | st.text(), unique=True))
def test_ids_as_cocos_files_have_them_are_the_same_ids(values: list[int] | list[str]) -> None:
    assume(all(isinstance(value, int) or value.isprintable() for value in values))
    ids = [image_key(value) for value in values]
    written = json.loads(json.dumps(list(json_ids(ids).values())))
    assert [image_key(value) for value in written] == ids and len({type(value) for value in written}) < 2
    assert not values or isinstance(values[0], str) or written == values


@pytest.mark.parametrize("text", ["01", "+1", "1.0", "-0", "١", "1 ", "1_0", "", "--1", "9" * 5000, "1e3"])
def test_ids_that_are_no_numbers_stay_text_and_so_do_all_others(text: str) -> None:
    assert json_ids([text, "7"]) == {text: text, "7": "7"} and json_ids(["7"]) == {"7": 7}


@given(st.lists(st.integers(-(10**25), 10**25) | st.integers(-9, 99), unique=True))
def test_numbers_of_any_length_are_in_their_order(numbers: list[int]) -> None:
    assert np.argsort(image_ranks([str(n) for n in numbers])).tolist() == np.argsort(np.array(numbers, object)).tolist()


@pytest.mark.parametrize("ids", [["b", "a"], ["10", "9", "a"], ["1", "01"], ["ü", "z", "Z"], [], ["2", "10", "1.0"]])
def test_other_ids_are_in_the_order_that_pycocotools_gives_them(ids: list[str]) -> None:
    assert [ids[n] for n in np.argsort(image_ranks(ids))] == np.unique(ids).tolist()


# ---- keys -----------------------------------------------------------------------------------------------------------

SEQUENCES = {"1": "s1/0001.png", "2": "s2/0001.png", "3": "s2/0003.png", "0004": "a/7.png", "x": "a/b.c.png"}
FOUND = [
    ("1", "1"), ("2", "2"), ("s1/0001.png", "1"), ("./s2//0001.png", "2"), ("data/s2/0001.png", "2"), ("0003.png", "3"),
    ("/mnt/set/data/s1/0001.png", "1"), ("0003", "3"), ("s2/0003", "3"), ("s2/0001", "2"), ("7.png", "0004"),
    ("7", "0004"), ("a/b.c.png", "x"), ("b.c", "x"), ("s2\\0001.png", "2"),
    ("D:\\set\\data\\s1\\0001.png", "1"),
]  # fmt: skip
NOTHING = [
    "01",
    "0002",
    "s3/0001.png",
    "s3/0003.png",
    "train/s1/0001.png",
    "S1/0001.png",
    "0003.PNG",
    "0003.jpg",
    "1.0",
]
NOTHING += [
    "../s1/0001.png",
    "s1/../s1/0001.png",
    "",
    "/",
    "s1",
    "s1/",
    "x/s2/0003",
    "s2/x",
    "b",
    "0001.png.png",
    "é",
    "a/0004",
    "a/x",
]


@pytest.mark.parametrize(("key", "image_id"), FOUND)
def test_keys_that_mean_an_image(key: str, image_id: str) -> None:
    images = index(SEQUENCES)
    place = images.find(key)
    assert place is not None and images.image_ids[place] == image_id


@pytest.mark.parametrize("key", NOTHING)
def test_keys_that_mean_none(key: str) -> None:
    images = index(SEQUENCES)
    assert images.find(key) is images.agreed(key) is images.by_path(key) is None


AMBIGUOUS = [
    ({"a": "s1/0.png", "b": "s2/0.png"}, "0.png"),
    ({"a": "s1/0.png", "b": "s2/0.png"}, "0"),
    ({"a": "0.png", "b": "0.jpg"}, "0"),
    ({"a": "x/s/0.png", "b": "y/s/0.png"}, "s/0.png"),
    ({"a": "x/s/0.png", "b": "y/s/0.png"}, "s/0"),
    ({"a": "s/0.png", "b": "data/s/0.png"}, "data/s/0.png"),
    ({"a": "s/1.png", "b": "data/s/1.png"}, "/mnt/data/data/s/1.png"),
    ({"s1/0": "s1/0_x.png", "s2/0": "s2/0_x.png"}, "0"),
    ({"a": "q/0.c.png", "b": "r/0.c.jpg"}, "0.c"),
    ({"ü": "s1/ü.png", "u": "s2/ü.png"}, "ü.png"),
]


@pytest.mark.parametrize(("images", "key"), AMBIGUOUS)
def test_two_images_that_a_key_could_mean_are_named(images: dict[str, str], key: str) -> None:
    one, other = images
    for find in (index(images).find, index(images).agreed):
        with pytest.raises(InputError, match=r"^keys\.json: ") as info:
            find(key)
        assert f"{one!r} (data/{images[one]})" in str(info.value) and f"{other!r} (data/" in str(info.value)


@pytest.mark.parametrize(
    "images",
    [
        {"0": "1.png", "1": "2.png"},
        {"1": "10.png", "10": "1.png"},
        {"a": "b.png", "b": "a.png"},
        {"a.png": "b.png", "b": "a.png"},
        {"01": "1.png", "1": "01.png"},
    ],
)
def test_an_id_that_is_another_images_name(images: dict[str, str]) -> None:
    """By itself the id wins; where keys are ids or names, as the tool liked, nothing can be said."""
    found = index(images)
    for image_id in images:
        assert found.image_ids[found.find(image_id)] == image_id
    with pytest.raises(InputError, match="could mean image"):
        for image_id in images:
            found.agreed(image_id)
    for place, path in enumerate(images.values()):  # what the message tells to do helps
        assert found.agreed(f"data/{path}") == found.by_path(path) == place


def test_two_keys_for_one_image_are_named() -> None:
    claims = Claims(index(SEQUENCES))
    assert claims.add("1", 0) == claims.add("1", 0) == "1" and claims.add("zz", None) is None
    with pytest.raises(
        InputError, match=r"keys\.json: '1' and 's1/0001\.png' both mean image '1' \(data/s1/0001\.png\)"
    ):
        claims.add("s1/0001.png", 0)
    assert claims.known == {"1": "1"} and claims.strangers == ["zz"]


NAMES = st.sampled_from(["0", "1", "01", "a", "b", "a.b", "A", "é", "e\u0301", "0.png", "a@1", ".", "..", " "])
PATHS = st.builds(
    lambda folders, name, ending: "/".join([*folders, name + ending]),
    st.lists(NAMES.filter(lambda n: n not in (".", "..")), max_size=2),
    NAMES,
    st.sampled_from([".png", ".jpg"]),
)
IDS = st.one_of(NAMES, PATHS, PATHS.map(lambda path: split_name(path)[0]), st.text(max_size=3), st.just(""))
SPLITS = st.lists(st.tuples(IDS, PATHS), unique_by=(lambda i: i[0], lambda i: i[1]), min_size=1, max_size=6)


@given(SPLITS, st.data())
def test_no_key_of_an_image_ever_means_another(split: list[tuple[str, str]], data: st.DataObject) -> None:
    """A tool worked on some of these images and calls them by id, by path or by stem; only some are in our split."""
    ours = dict(data.draw(st.lists(st.sampled_from(split), min_size=1, unique=True)))
    images = index(ours)

    def never_another(meant: int | None, image_id: str) -> None:
        assert meant is None or images.image_ids[meant] == image_id

    for image_id, path in split:
        known = image_id in ours
        assert (images.by_id(image_id) is not None) == known
        never_another(images.by_id(image_id), image_id)
        for find in (images.by_path, images.find, images.agreed):
            try:
                place = find(f"data/{path}")
                # an id may be another image's path; a path is never taken for an id
                if find is images.by_path or f"data/{path}" not in ours:
                    never_another(place, image_id)
            except InputError as error:
                assert "could mean" in str(error)


@given(SPLITS, st.sampled_from(["id", "path", "stem"]), st.integers(0, 5))
def test_mask_files_called_in_one_way_are_right_or_refused(split: list[tuple[str, str]], way: str, left: int) -> None:
    """Of npz files nobody says whether they are called by ids or by names; some may be missing."""
    split = [(i, p) for i, p in split if ".." not in p.split("/") and ".." not in i.split("/")]
    images = index(dict(split))
    claims, meant = Claims(images), {}
    try:
        for image_id, path in split[:left]:
            key = {"id": image_id, "path": path, "stem": path.rpartition(".")[0]}[way]
            meant[image_id] = claims.add(key, images.agreed(key))
    except InputError as error:
        assert "could mean image" in str(error) or "both mean image" in str(error)
        return
    assert all(found in (None, image_id) for image_id, found in meant.items())


# ---- names of results -----------------------------------------------------------------------------------------------

RESULTS = [
    (["v/a.png", "v/b.png"], ["a", "b"]),
    (["v/s1/1.png", "v/s2/1.png"], ["s1/1", "s2/1"]),
    (["v/s1/1.png", "v/s2/1.png", "v/2.png"], ["s1/1", "s2/1", "2"]),
    (["s1/1.png", "s2/1.png"], ["s1/1", "s2/1"]),
    (["v/x/s/1.png", "v/y/s/1.png"], ["x/s/1", "y/s/1"]),
    (["1.png", "s/1.png"], ["1", "s/1"]),
    (["a/1.jpg", "b/1.png"], ["a/1", "b/1"]),
    (["v/.a.png", "v/a.b.png"], [".a", "a.b"]),
    (["v/a.png"], ["a"]),
    (["v/b.png", "v/a.png", "v/a.jpg"], ["b.png", "a.png", "a.jpg"]),
    (["v/s/a.png", "v/s/a.jpg", "v/t/a.png"], ["s/a.png", "s/a.jpg", "t/a.png"]),
    (["a.png", "a.png.png", "a.jpg"], ["a.png", "a.png.png", "a.jpg"]),
    (["v/...png", "v/s/...png"], ["..", "s/.."]),
    (["/x/y/s1/1.png", "/x/y/s2/1.png"], ["s1/1", "s2/1"]),
    (["/1.png", "/x/1.png"], ["1", "x/1"]),
    ([], []),
]


@pytest.mark.parametrize(("paths", "names"), RESULTS)
def test_results_keep_folders_where_names_recur(paths: list[str], names: list[str]) -> None:
    assert result_names(paths) == names


@settings(max_examples=200, deadline=None)
@given(SPLITS, st.booleans())
def test_names_of_results_are_never_one_file(split: list[tuple[str, str]], own: bool) -> None:
    """Not with what is appended to them either; and a name leads from its image's common folder to it."""
    paths = [path for path in dict.fromkeys(str(PurePosixPath(p)) for _, p in split) if ".." not in path.split("/")]
    names = result_names(paths, ["x"] * len(paths) if own else [])
    assert len({f"{name}.json" for name in names}) == len(paths)
    if len(paths) > 1 or not own:
        assert all(path.startswith(name) or f"/{name}" in path for path, name in zip(paths, names, strict=True))


LABELS: dict[str, tuple[list[str], str, str, bool]] = {
    "stems": (["a.png", "b.png"], "*.png", "{stem}.png", True),
    "one file": (["a.png", "b.png"], "*.png", "all.png", False),
    "one file of one image": (["a.png"], "*.png", "all.png", True),
    "sequences": (["s1/1.png", "s2/1.png"], "{seq}/{id}.png", "{seq}/{id}.png", True),
    "sequences without their folders": (["s1/1.png", "s2/1.png"], "{seq}/{id}.png", "{id}.png", False),
    "sequences by stem": (["s1/1.png", "s2/1.png"], "*/*.png", "{stem}.png", False),
    "sequences by stem that differ": (["s1/1.png", "s2/2.png"], "*/*.png", "{stem}.png", True),
    "sequences by folder": (["s1/1.png", "s2/1.png"], "*/*.png", "{dir}/{stem}.png", True),
    "one a sequence": (["s1/1.png", "s1/2.png", "s2/1.png"], "{seq}/{id}.png", "{seq}.png", False),
    "one a sequence of one image": (["s1/1.png", "s2/2.png"], "{seq}/{id}.png", "{seq}.png", True),
    "a part of the name": (["a_1_x.png", "a_2_y.png", "b_1_x.png"], "{m}_{n}_{k}.png", "{m}_{n}.png", True),
    "too small a part": (["a_1_x.png", "a_1_y.png"], "{m}_{n}_{k}.png", "{m}_{n}.png", False),
    "names": (["s1/a.png", "s2/b.png"], "**/*.png", "{name}", True),
    "names that recur": (["s1/a.png", "s2/a.png"], "**/*.png", "{name}", False),
}


@pytest.mark.parametrize("key", ["labels", "labels_coarse"])
@pytest.mark.parametrize("name", LABELS)
def test_no_two_images_have_one_label_file(tmp_path: Path, name: str, key: str) -> None:
    files, pattern, template, distinct = LABELS[name]
    for file in files:
        making.write_png(tmp_path / "images" / file, np.zeros((2, 3, 3), np.uint8))
    split = SplitSpec(**{"images": f"images/{pattern}", key: f"labels/{template}"})
    spec = making.semantic_spec(splits={"val": split})
    if distinct:
        assert len(Dataset(spec, tmp_path, "val")) == len(files)
    else:
        with pytest.raises(InputError, match=r"images/.* and .*images/.* would have one label file, .*labels/"):
            Dataset(spec, tmp_path, "val")


# ---- annotation files -----------------------------------------------------------------------------------------------


def coco(root: Path, kind: str, listed: list[object], annotated: list[object]) -> Dataset:
    """A data set of COCO's kinds whose image n has n + 1 segments or objects, annotated under another writing of its id
    (None: not at all).
    """
    spec = making.coco_spec(kind=kind)
    images = [{"id": i, "file_name": f"{n}.png", "height": 4, "width": 4} for n, i in enumerate(listed)]
    annotations: list[dict] = []
    for n, image_id in enumerate(annotated):
        segments = [{"id": 1 + k, "category_id": making.CATEGORIES[0], "bbox": [0, 0, 2, 2]} for k in range(n + 1)]
        if kind == "coco-panoptic":
            annotations.append({"image_id": image_id, "file_name": f"{n}.png", "segments_info": segments})
        else:
            annotations += [s | {"image_id": image_id, "id": len(annotations) + k} for k, s in enumerate(segments)]
    making.write_annotations(root, {"images": images, "annotations": annotations, "categories": []})
    return Dataset(spec, root, "val")


KINDS = pytest.mark.parametrize("kind", ["coco-panoptic", "coco-instances"])
SAME = [
    ([1, 2], ["1", "2"]),
    (["1", "2"], [1, 2]),
    ([1.0, 2.0], [1, 2]),
    ([1, "01"], ["1", "01"]),
    ([-1, 1], ["-1", 1]),
    ([10**19 + 7, 10**19 + 8], [str(10**19 + 7), 10**19 + 8]),
    (["", " "], ["", " "]),
    (["a", "a@1"], ["a", "a@1"]),
    (["s", "s/c"], ["s", "s/c"]),
    (["../x", "/etc/passwd"], ["../x", "/etc/passwd"]),
    (["é", "e\u0301"], ["é", "e\u0301"]),
]


@KINDS
@pytest.mark.parametrize(("listed", "annotated"), SAME)
def test_numbers_and_text_are_one_id(tmp_path: Path, kind: str, listed: list, annotated: list) -> None:
    data = coco(tmp_path, kind, listed, annotated)
    assert data.image_ids == tuple(map(image_key, listed))
    assert [len(sample.annotation.segments) for sample in data.samples] == [1, 2]


ODD = [
    ([1, 1], [1], r"image id '1' occurs twice: 0\.png and 1\.png"),
    ([1, "1"], [1], r"image id '1' occurs twice: 0\.png and 1\.png"),
    ([3, 1, 2, 1.0], [3], r"image id '1' occurs twice: 1\.png and 3\.png"),
    ([None, 1], [1], r"'0\.png': 'None' is not an image id.*Correct its `id`"),
    ([1, True], [1], r"'1\.png': 'True' is not an image id"),
    ([1, 1.5], [1], r"'1\.png': '1\.5' is not an image id"),
    ([1, [2]], [1], r"'1\.png': '\[2\]' is not an image id"),
    ([1, "\ud800"], [1], r"'1\.png': the image id '\\ud800' is not UTF-8"),
    ([1, 2], [None], r"'None' is not an image id.*Correct its `image_id`"),
    ([1, 2], [{"a": 1}], r"is not an image id.*Correct its `image_id`"),
    ([1, float("nan")], [1], r"'nan' is not an image id|not JSON"),
]


@KINDS
@pytest.mark.parametrize(("listed", "annotated", "said"), ODD)
def test_ids_that_cannot_be_are_told_with_their_file(
    tmp_path: Path, kind: str, listed: list, annotated: list, said: str
) -> None:
    with pytest.raises(InputError, match=said) as info:
        coco(tmp_path, kind, listed, annotated)
    assert "panoptic_val.json: " in str(info.value) and str(info.value).isprintable()


@pytest.mark.parametrize("stray", [2, "01", "1 ", "١", -1])
def test_an_objects_image_that_is_not_listed(tmp_path: Path, stray: object) -> None:
    with pytest.raises(InputError, match=r"panoptic_val\.json: annotation 0 is of image .*, which is not listed"):
        coco(tmp_path, "coco-instances", [1], [stray])


# ---- splits ---------------------------------------------------------------------------------------------------------


def sequences(root: Path, files: list[str], images: str, labels: str, **more) -> Dataset:
    """A split of label PNGs."""
    for number, file in enumerate(files):
        making.write_png(root / "images" / file, np.full((4, 6, 3), number, np.uint8))
        making.write_png(root / "labels" / f"{file.rpartition('.')[0]}.png", np.full((4, 6), 1 + number % 3, np.uint8))
    return Dataset(making.semantic_spec(splits={"val": SplitSpec(images, labels, **more)}), root, "val")


FRAMES = ["s1/1.png", "s1/2.png", "s2/1.png"]
PATTERNS = [
    ("images/{seq}/{id}.png", "labels/{seq}/{id}.png"),
    ("images/{seq}/*.png", "labels/{seq}/{stem}.png"),
    ("images/*/*.png", "labels/{dir}/{stem}.png".replace("{dir}", "{seq}")),
    ("images/**/*.png", None),
]


@pytest.mark.parametrize(("images", "labels"), [p for p in PATTERNS if p[1] and "{seq}" in p[0]])
def test_frames_of_sequences_keep_their_folder(tmp_path: Path, images: str, labels: str) -> None:
    data = sequences(tmp_path, FRAMES, images, labels)
    assert data.image_ids == ("s1/1", "s1/2", "s2/1")
    assert [int(data.read_image(s)[0, 0, 0]) for s in data.samples] == [0, 1, 2]
    assert [int(read_values(data, s)[0, 0]) for s in data.samples] == [1, 2, 3]


def test_names_that_do_not_recur_are_ids_alone(tmp_path: Path) -> None:
    data = sequences(tmp_path, ["s1/1.png", "s2/2.png"], "images/{seq}/{id}.png", "labels/{seq}/{id}.png")
    assert data.image_ids == ("1", "2")


def test_splits_joined_keep_the_folders_of_both(tmp_path: Path) -> None:
    data = sequences(tmp_path, ["a/1.png", "a/2.png", "b/s/1.png"], "images/a/*.png", "labels/a/{stem}.png")
    splits = {
        **data.spec.splits,
        "more": SplitSpec("images/b/{seq}/*.png", "labels/b/{seq}/{stem}.png"),
        "all": SplitSpec((), of=("val", "more")),
    }
    spec = replace(data.spec, splits=splits)
    both = Dataset(spec, tmp_path, "all")
    assert both.image_ids == ("a/1", "a/2", "b/s/1") and Dataset(spec, tmp_path, "more").image_ids == ("1",)
    assert [int(read_values(both, both.sample(i))[0, 0]) for i in both.image_ids] == [1, 2, 3]


BLANKS = ["a.png", " a.png", "a .png", "\ta.png", "\u3000a.png", "b.png ", "  b.png", "c d.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_of_names_with_blanks(tmp_path: Path, end: str, mark: str) -> None:
    """As editors of Windows write them, too; every name is its own image's."""
    (tmp_path / "images").mkdir()
    for name in BLANKS:
        (tmp_path / "images" / name).write_bytes(b"")
    spec = making.semantic_spec(splits={"val": SplitSpec("images/*", list="val.txt")})
    for name in BLANKS:
        (tmp_path / "val.txt").write_bytes(f"{mark}{name}{end}".encode())
        (sample,) = Dataset(spec, tmp_path, "val").samples
        assert sample.image.name == name
    (tmp_path / "val.txt").write_bytes((mark + "".join(name + end for name in BLANKS)).encode())
    assert len(Dataset(spec, tmp_path, "val")) == len(BLANKS)


LINES = ["f_1", "f_1_left.png", "f/f_1_left.png", "images/f/f_1_left.png", "f/f_1", "f_1_left", "f/f_1_left", " f_1 \r"]
LINES += ["./f/f_1_left.png", "/data/images/f/f_1_left.png", "f_1\u2003"]


@pytest.mark.parametrize("line", LINES)
def test_a_list_names_images_as_people_do(tmp_path: Path, line: str) -> None:
    (tmp_path / "val.txt").write_text(f"{line}\n\n{line}")
    files = ["f/f_1_left.png", "f/f_2_left.png"]
    data = sequences(tmp_path, files, "images/{city}/{id}_left.png", "labels/{city}/{stem}.png", list="val.txt")
    assert data.image_ids == ("f_1",) and data.index("x").by_path("f_1_left.png") == 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("1.png", r"val\.txt: '1\.png' could mean image 's1/1' \(images/s1/1\.png\) or image 's2/1'"),
        ("1", "'1' could mean image"),
        ("s1/2\n2.png", r"'s1/2' and '2\.png' both mean image 's1/2' \(images/s1/2\.png\)"),
        ("s3/1.png", r"'s3/1\.png' is not an image of the split \('s3/1\.png' is not "),
        ("nothing", "'nothing' is not an image of the split"),
    ],
)
def test_a_list_that_cannot_be_followed(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "val.txt").write_text(lines)
    with pytest.raises(InputError, match=said):
        sequences(tmp_path, FRAMES, "images/{seq}/{id}.png", "labels/{seq}/{id}.png", list="val.txt")


def test_the_index_knows_what_a_limit_leaves_out(tmp_path: Path) -> None:
    data = sequences(tmp_path, FRAMES, "images/{seq}/{id}.png", "labels/{seq}/{id}.png")
    few = Dataset(data.spec, tmp_path, "val", limit=1)
    assert few.image_ids == ("s1/1",) and few.index("x").find("s2/1") == 2
