"""Names of arrays: one for every view of every image, whatever its id is; nodes of one level in a Zarr store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from vitp_pipeline.artifacts.array_names import array_name, without_view
from vitp_pipeline.artifacts.partial_part import _join_archives
from vitp_pipeline.artifacts.parts import ArrayReader, ArrayWriter, array_of

ODD = ["a", "a@1", "s", "s/c", "s/zarr.json", "s/c/0", "", "%", "%2E", ".", "..", "...", ".zgroup", "__a", "_a"]
ODD += ["zarr.json", "zarr%2Ejson", "c", "c/0/0", "/", "//", "a/", "/a", "A", "ä", "a\u0308", "١", "1", "01", " 1"]
ODD += ["1.0", "-1", "None", "a b", "a%20b", "a\0b", "a\nb", "\ud800", "x" * 9999, "x" * 9998 + "y", "ü" * 9999, "a\\b"]
ODD += ["18446744073709551617", "x" * 150, "x" * 151, "a~", "%~", "a@", "@1", "1@1", "😀"]
IDS = st.one_of(st.sampled_from(ODD), st.text(), st.text("/@%._~-c01 aA", max_size=12), st.integers().map(str))


@pytest.mark.parametrize("image_id", ["0016E5_07959", "000000000139", "139", "frankfurt_000000_000294", "a.b-c~", "-1"])
def test_ordinary_ids_are_their_own_names(image_id: str) -> None:
    assert array_name(image_id) == image_id and array_name(image_id, 3) == f"{image_id}@3"


@given(IDS, IDS, st.integers(0, 20), st.integers(0, 20))
def test_no_two_images_or_views_share_a_name(one: str, other: str, first: int, second: int) -> None:
    assert (array_name(one, first) == array_name(other, second)) == ((one, first) == (other, second))
    assert (without_view(array_name(one, first)) == array_name(other)) == (one == other)


@given(IDS, st.integers(0, 20))
def test_names_are_nodes_of_one_level(image_id: str, view: int) -> None:
    name = array_name(image_id, view)
    assert name.isascii() and name.isprintable() and 0 < len(name) < 250 and not set(name) & set("/\\ ")
    assert not name.startswith(("__", ".")) and name != "zarr.json"
    assert array_of(f"masks/{name}/zarr.json") == array_of(f"masks/{name}/c/0/0") == f"masks/{name}"
    if "%~" not in name and image_id:
        assert unquote(without_view(name), errors="surrogatepass") == image_id


def test_a_store_holds_them_all(tmp_path: Path) -> None:
    path, keys = tmp_path / "part-0000.zarr.zip", [(i, v) for i in ODD for v in (0, 1)]
    writer = ArrayWriter(path, {})
    for number, (image_id, view) in enumerate(keys):
        for group in ("masks", "class_logits"):
            writer.add(f"{group}/{array_name(image_id, view)}", np.full(3, number), ["q"])
    writer.close()
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert len(list(group["masks"].array_keys())) == len(keys) and not list(group["masks"].group_keys())
    with ArrayReader(path) as reader:
        for number, key in enumerate(keys):
            assert reader.read(f"masks/{array_name(*key)}").tolist() == [number] * 3
            assert group[f"class_logits/{array_name(*key)}"][...].tolist() == [number] * 3


def test_a_stopped_part_is_joined_as_if_made_in_one_go(tmp_path: Path) -> None:
    def write(name: str, images: list[str]) -> Path:
        writer = ArrayWriter(tmp_path / name, {})
        for image in images:
            for view in (0, 1):
                for group in ("masks", "class_logits"):
                    writer.add(f"{group}/{array_name(image, view)}", np.full(2, ODD.index(image)), ["q"])
        writer.close()
        return tmp_path / name

    first, rest = ODD[::3], [i for n, i in enumerate(ODD) if n % 3]
    sources = {write("first.zip", first): first, write("rest.zip", rest): rest}
    _join_archives(sources, ODD, tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == write("whole.zip", ODD).read_bytes()


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "part-0000.zarr.zip", {})
    writer.add("masks/a", np.zeros(3), ["q"])
    with pytest.raises(ValueError, match="masks/a is there already"):
        writer.add("masks/a", np.ones(3), ["q"])
    writer.abandon()
