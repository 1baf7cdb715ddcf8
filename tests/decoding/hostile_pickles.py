"""Pickles that want more than data, and a process that reads them with little memory: a crash shows in its exit code.

    python -m tests.decoding.hostile_pickles FOLDER MUTATIONS

reads all files of FOLDER, then so many mutations of each, and prints JSON: by file what was said of it, the number of
mutations that could be read, and the memory that the process had at most beyond what it began with, in MiB.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

MEMORY = 2 << 30
"""Bytes that the reading process may have beyond those of its libraries."""


class Calls:
    """Pickled, it asks for a call; with a state, for that to be set."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def array(dtype: Any, content: bytes, shape: tuple[int, ...] = (4,)) -> Calls:
    """A numpy array of any dtype made of any bytes."""
    reconstruct = np.zeros(1).__reduce__()[0]
    return Calls(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))


def dtype(code: str, *state: Any) -> Calls:
    return Calls(np.dtype, (code, False, True), state)


POINTERS = struct.pack("<4Q", 0x4141414141414141, 1, 2, 3)
FLOAT = np.dtype("f8")


def hostile_pickles() -> dict[str, bytes]:
    """By name the bytes of pickles, none of which is data."""
    made = {
        "call": Calls(__import__("os").mkdir, ("was-here",)),
        "eval": Calls(eval, ("1 + 1",)),
        "getattr": Calls(getattr, (np.ndarray, "tofile")),
        "encoding": Calls(__import__("codecs").encode, ("uryyb", "rot13")),
        "pointers": array(dtype("O8", 3, "|", None, None, None, -1, -1, 0), POINTERS),
        "flags": array(dtype("f8", 3, "<", None, None, None, -1, -1, 63), POINTERS),
        "fields": array(dtype("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27), POINTERS),
        "subarray": array(dtype("f8", 3, "<", (FLOAT, (2,)), None, None, -1, -1, 0), POINTERS),
        "objects": np.array([{}, None], dtype=object),
        "text array": np.array(["a", "b"]),
        "beyond": array(FLOAT, POINTERS, (1 << 40,)),
        "negative": array(FLOAT, POINTERS, (-4,)),
        "no bytes": array(FLOAT, 7),  # type: ignore[arg-type]
        "state of a function": Calls(__import__("codecs").encode, ("a", "latin1"), {"__doc__": "x"}),
        "partial": Calls(__import__("functools").partial, (print, "x")),
        "operator": Calls(__import__("operator").attrgetter, ("a",)),
        "array of numpy": Calls(np.zeros, ((1 << 40,),)),
        "bytearray": Calls(bytearray, (1 << 40,)),
    }
    protocol2: dict[str, bytes] = {}
    for name, content in made.items():
        protocol2[name] = pickle.dumps({"model": {"a": content}}, protocol=2)
    big = b"X" + struct.pack("<I", 200_000) + b"a" * 200_000
    item = b"h\x00\x8c\x06latin1\x86R"  # encode(the text of memo 0, "latin1")
    named, set_of_memo_0 = b"c_codecs\nencode\nq\x01", b"cbuiltins\nset\nh\x00\x85R"
    written = {
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
        "bytearray of a size": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"N.",
        "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        "long": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\x01.",
        "many copies": b"\x80\x02" + big + b"q\x000" + named + b"0](" + (b"h\x01" + item) * 20_000 + b"e.",
        "many tables": b"\x80\x02](" + b"K\x01K\x01\x86" * 20_000 + b"eq\x000](" + set_of_memo_0 * 5000 + b"e.",
        "nested": b"\x80\x02" + b"]" * 5001 + b"a" * 5000 + b".",
        "itself": b"\x80\x02]q\x00h\x00a.",
        "persistent": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "instance": b"(icollections\nOrderedDict\n.",
        "object": b"(ccollections\nOrderedDict\no.",
        "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "new object with words": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
        "extension": b"\x80\x02\x82\x01.",
        "buffer": b"\x80\x05\x97.",
        "attribute of a module": b"\x80\x04\x8c\x02os\x8c\tpath.join\x93.",
        "changed class": b"\x80\x02ccollections\nOrderedDict\nN}X\x03\x00\x00\x00popK\x01s\x86b.",
        "changed function": b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__NsN\x86b.",
        "call of data": b"\x80\x02K\x01)R.",
        "sizes": b"\x80\x02ctorch\nSize\nK\x01\x85R.",
    }
    return {**protocol2, **written}


def hostile_torch_files() -> dict[str, bytes]:
    """By name the bytes of files of torch.save, of both kinds, that are more than data or not what they say."""
    tensor = {"a": torch.arange(4.0)}
    made: dict[str, bytes] = {}
    for name, content in hostile_pickles().items():  # the same programs, as that of an archive
        made[f"archive: {name}"] = archive(tensor, lambda _, content=content: content)
    for kind, saved_ in (("archive", archive), ("stream", stream)):
        size, count = b"K\x04\x85", b"K\x04tq" if kind == "archive" else b"K\x04N"
        made[f"{kind}: larger tensor"] = saved_(tensor, lambda d, s=size: d.replace(s, b"J\x40\x42\x0f\x00\x85"))
        made[f"{kind}: tensor without end"] = saved_(
            tensor,
            lambda d, s=size: d.replace(s + b"q\x08K\x01", b"\x8a\x05\0\0\0\0\x10\x85q\x08K\0").replace(
                s + b"q\x09K\x01", b"\x8a\x05\0\0\0\0\x10\x85q\x09K\0"
            ),
        )
        for larger in (b"J\x40\x42\x0f\x00", b"\x8a\x05\0\0\0\0\x10", b"J\xff\xff\xff\xff"):
            made[f"{kind}: storage {larger!r}"] = saved_(tensor, lambda d, c=count, n=larger: d.replace(c, n + c[2:]))
        made[f"{kind}: module"] = saved_(
            tensor, lambda d: d.replace(b"\x07\x00\x00\x00storage", b"\x06\x00\x00\x00module")
        )
        made[f"{kind}: storage of a function"] = saved_(
            tensor, lambda d: d.replace(b"torch\nFloatStorage", b"os\nsystem")
        )
    made["archive: compressed"] = archive({"a": torch.zeros(10_000_000)}, compress=zipfile.ZIP_DEFLATED)
    made["archive: big-endian"] = archive(tensor, order=b"big")
    made["archive: two programs"] = archive(tensor, more={"b/data.pkl": b"N."})
    made["archive: whole model"] = saved(torch.nn.Linear(2, 2))
    made["archive: sparse"] = saved({"a": torch.zeros(4, 4).to_sparse()})
    return made


def archive(
    content: Any,
    edit: Callable[[bytes], bytes] | None = None,
    compress: int = zipfile.ZIP_STORED,
    order: bytes = b"little",
    more: dict[str, bytes] | None = None,
) -> bytes:
    """What torch.save writes, with another program, byte order, compression or more members."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as source, zipfile.ZipFile(out, "w", compress) as target:
        for info in source.infolist():
            member = source.read(info)
            if edit and info.filename.endswith("data.pkl"):
                member = edit(before := member)
                assert member != before
            target.writestr(info.filename, order if info.filename.endswith("byteorder") else member)
        for name, member in (more or {}).items():
            target.writestr(name, member)
    return out.getvalue()


def stream(content: Any, edit: Callable[[bytes], bytes]) -> bytes:
    changed = edit(before := saved(content, zipped=False))
    assert changed != before
    return changed


def saved(content: Any, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def results() -> list[dict[str, Any]]:
    """As `tools/test.py --out` of mmdetection writes them."""
    generator = np.random.default_rng(0)
    return [
        {
            "img_id": number,
            "img_path": f"images/{number}.jpg",
            "ori_shape": (48, 64),
            "pred_instances": {
                "labels": torch.arange(3),
                "scores": torch.rand(3),
                "bboxes": generator.random((3, 4), np.float32),
                "masks": [{"size": [48, 64], "counts": generator.bytes(30)} for _ in range(3)],
            },
        }
        for number in range(4)
    ]


def mutated(content: bytes, draw: random.Random, words: list[bytes]) -> bytes:
    """The bytes with one to four changes: flips, cuts, repeats, and pieces of other programs put in."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, to = sorted(draw.randrange(len(changed) + 1) for _ in range(2))
        to = min(to, at + 64)
        match draw.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1 if at < len(changed):
                changed[at] = draw.randrange(256)
            case 2:
                del changed[at:to]
            case 3:
                changed[at:at] = changed[at:to]
            case 4:
                changed[at:at] = draw.choice(words)
            case _:
                changed[at : at + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"))
    return bytes(changed)


def main(folder: Path, mutations: int) -> None:
    from vitp_pipeline.decoding.torch_file import read_torch_file
    from vitp_pipeline.errors import InputError
    from vitp_pipeline.generators.safe_pickle import read_numpy_pickle, read_result_pickle

    readers = {".pkl": (read_numpy_pickle, read_result_pickle), ".pth": (read_torch_file,)}

    def said(path: Path) -> str:
        for read in readers[path.suffix]:
            try:
                return repr(read(path))[:300]
            except InputError as error:
                text = f"InputError: {error.message}"[:300]
        return text

    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    draw, words = random.Random(0), [w for w in hostile_pickles().values() if len(w) < 1000]
    told = {path.name: said(path) for path in sorted(folder.iterdir())}
    read = {}
    for path in sorted(folder.glob("good*")):
        content, changed = path.read_bytes(), path.with_name(f"changed{path.suffix}")
        read[path.name] = 0
        for _ in range(mutations):
            changed.write_bytes(mutated(content, draw, words))
            read[path.name] += not said(changed).startswith("InputError")
        changed.unlink()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) >> 10
    print(json.dumps({"told": told, "read": read, "peak": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
