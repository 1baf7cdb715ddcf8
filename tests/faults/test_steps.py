"""No write goes by another way than `storage.fs_ops`, where a fault can meet it, but for those named here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitp_pipeline
from vitp_pipeline.storage.fs_ops import Step

PACKAGE = Path(vitp_pipeline.__file__).parent
MODULE = "storage/fs_ops.py"

OTHERS = {
    "artifacts/parts.py:ArrayWriter.__init__": "a zip in a file of `writes.new_file`",
    "artifacts/partial_part.py:_join_archives": "a zip in a file of `writes.new_file`",
    "artifacts/parts.py:_by_zarr": "an array in a MemoryStore",
    "report/bar_figure.py:write_figure": "a picture in memory, written by `write_whole`",
    "storage/object_store.py:_scratch_folder": "a scratch folder, made anew by every process",
    "storage/object_store.py:_drop": "as above",
    "storage/object_store.py:ObjectStore.look_again": "copies in a scratch folder",
    "decoding/torch_file.py:_mapped": "a file that is read: what is changed in memory never reaches it",
    "classifier/training/checkpoints.py:TrainingFolder._tensorboard": "curves, where tensorboard is installed",
    "cluster/local.py:_open_log": "what a task prints goes into its log, for people",
    "config/reference.py:": "a page of the docs, where a developer runs the module",
    "demo/picture.py:draw_result": "a picture for people, drawn at every run of the demo",
    "demo/run.py:run_demo": "scenes are drawn anew until the file `complete` is there",
    "demo/scenes.py:draw_scenes": "as above; the demo alone calls it",
    "generators/huggingface/from_detectron2.py:_write_folder": "transformers fills a temporary folder itself",
    "runtime/output.py:guard_streams": "/dev/null in place of a standard stream that is closed",
    "runtime/output.py:tell_at_once": "standard error",
    "runtime/output.py:_Descriptor.write": "standard output and error",
    "generators/openmmlab/convert.py:import_openmmlab": "safetensors fills a temporary file itself, with gigabytes",
}
"""Writes outside of `storage.fs_ops`, by file and function, and why that is right."""

WRITERS = (
    # the system's
    "touch unlink rmdir removedirs mkdir makedirs mkfifo mknod rename renames symlink symlink_to hardlink_to link "
    "write_text write_bytes truncate ftruncate pwrite pwritev writev fsync fdatasync fallocate posix_fallocate "
    "sendfile copy_file_range chmod rmtree copy2 copyfile copyfileobj copytree move make_archive unpack_archive "
    "mkstemp mkdtemp NamedTemporaryFile SpooledTemporaryFile TemporaryDirectory TemporaryFile extractall "
    # libraries'
    "memmap open_memmap savez savez_compressed savetxt tofile save_file save_pretrained save_to_disk SummaryWriter "
    "write_table write_dataset write_feather ParquetWriter OSFile to_csv to_parquet to_zarr create_array create_group "
    "open_group save_array save_group imwrite imsave savefig write_html"
)
"""What changes a disk, whatever it is of."""
OF_MODULES = {
    "os": {"remove", "replace", "write"},
    "shutil": {"copy"},
    "json": {"dump"},
    "pickle": {"dump"},
    "torch": {"save"},
    "np": {"save"},
}
"""Names that are common elsewhere: of these modules alone."""
OPENERS = {"open", "fdopen", "FileIO", "_File", "ZipFile", "TarFile", "GzipFile", "BZ2File", "LZMAFile"}
"""These count with a mode that writes."""
NAMES = {*WRITERS.split(), *OPENERS, *set().union(*OF_MODULES.values())}


def writes_in(source: str) -> Iterator[tuple[str, ast.Call]]:
    """(function, call) of every write in a module; one into an `io.BytesIO()` of the same function is none."""
    own: set[str] = set()  # what is imported from the package: its inside is looked at where it is defined

    def walk(node: ast.AST, name: str, memory: set[str]) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield from walk(child, f"{name}.{child.name}".lstrip("."), set(memory))
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("vitp_pipeline"):
                own.update(alias.asname or alias.name for alias in child.names)
            if isinstance(child, ast.Assign) and ast.unparse(child.value) == "io.BytesIO()":
                memory.update(ast.unparse(target) for target in child.targets)
            if isinstance(child, ast.Call) and getattr(child.func, "id", "") not in own and _is_write(child, memory):
                yield name, child
            yield from walk(child, name, memory)

    return walk(ast.parse(source), "", set())


def _is_write(call: ast.Call, memory: set[str]) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in NAMES:
        return False
    of = ast.unparse(call.func).rpartition(".")[0]
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if memory.intersection(map(ast.unparse, given)):
        return False
    words = [word.value for word in given if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    if name in WRITERS.split() or name in OF_MODULES.get(of, ()):
        return True
    if name == "save":  # an image's: to be told from the package's own by what it is of
        return bool(of) and not re.search(r"files$|folder$|validation$", of)
    if name == "open" and of == "os":
        return re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND", ast.unparse(call)) is not None
    if name in OPENERS:
        return any(re.fullmatch("[rbt]*[wax+][bt+]*(:gz|:bz2|:xz)?", word) for word in words)
    # of a path: one argument; of text two, of a dataclass keywords
    return name == "replace" and len(call.args) == 1 and not call.keywords


def writes_of_the_package() -> dict[str, list[ast.Call]]:
    """By file and function."""
    found: dict[str, list[ast.Call]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, call in writes_in(path.read_text(encoding="utf-8")):
            found.setdefault(f"{path.relative_to(PACKAGE).as_posix()}:{name}", []).append(call)
    return found


def test_every_write_of_the_package_is_a_step() -> None:
    found = {place: calls for place, calls in writes_of_the_package().items() if not place.startswith(f"{MODULE}:")}
    strays = [f"{place}: {ast.unparse(call)}" for place in found.keys() - OTHERS.keys() for call in found[place]]
    assert not strays, "use storage.fs_ops, or say in OTHERS why not:\n" + "\n".join(strays)
    assert not (gone := OTHERS.keys() - found.keys()), f"no longer there: {gone}"


def test_every_write_of_the_module_is_announced_first() -> None:
    """A function of `storage.fs_ops` that changes a disk has its step, and every step has a function."""
    module = ast.parse((PACKAGE / MODULE).read_text(encoding="utf-8"))
    first: dict[str, int] = {}
    steps = set()
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "_at":
                steps.add(ast.unparse(call.args[0]).removeprefix("Step."))
                first[function.name] = min(call.lineno, first.get(function.name, call.lineno))
    for name, call in writes_in((PACKAGE / MODULE).read_text(encoding="utf-8")):
        assert first[name.rpartition(".")[2]] <= call.lineno, name
    assert steps == set(Step.__members__)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("path.write_text('x')", True),
        ("open(path, 'ab')", True),
        ("path.open(mode='w', encoding='utf-8')", True),
        ("path.open('rb')", False),
        ("path.open(encoding='utf-8')", False),
        ("os.open(path, os.O_RDWR | os.O_CREAT)", True),
        ("os.open(folder, os.O_RDONLY)", False),
        ("source.replace(target)", True),
        ("text.replace('a', 'b')", False),
        ("replace(settings, masks='all')", False),
        ("torch.save(state, path)", True),
        ("content = io.BytesIO()\ntorch.save(state, content)", False),
        ("def f():\n    content = io.BytesIO()\ndef g(content):\n    torch.save(state, content)", True),
        ("Image.fromarray(array).save(path)", True),
        ("self.folder.save(state)", False),
        ("from vitp_pipeline.storage.fs_ops import rename\nrename(a, b)", False),
        ("from os import rename\nrename(a, b)", True),
        ("zipfile.ZipFile(path, 'w')", True),
        ("zipfile.ZipFile(path)", False),
        ("tarfile.open(path, 'w:gz')", True),
        ("shutil.rmtree(folder)", True),
        ("names.remove(name)", False),
        ("os.remove(name)", True),
    ],
)
def test_what_counts_as_a_write(source: str, expected: bool) -> None:
    assert bool(list(writes_in(source))) == expected
