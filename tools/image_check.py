"""Build the Dockerfile's image without a Docker daemon, check its content, and run its entry point as its user.

    python tools/image_check.py                        # torch from PyTorch's index, the base from a registry
    python tools/image_check.py --debootstrap          # the base is Debian 12 with Debian's Python
    python tools/image_check.py --debootstrap --stand-in 2.13.0 0.28.0

Needs root and Debian's buildah, for --debootstrap also debootstrap, and access to PyPI. Builds the tracked files of the
working tree. All output lies in a folder that is removed at the end (--keep leaves it, with the images).

--stand-in is for a machine without access to PyTorch's index of CPU wheels: these versions of torch and torchvision
take the place of the locked ones. `torch==VERSION+cpu` must be a wheel that pip finds by its settings. torchvision is
PyPI's without its compiled operators, which need CUDA's libraries; timm needs it to be imported, and the
demo none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CA = Path("/etc/ssl/certs/ca-certificates.crt")
"""What this machine trusts. Its network may sign for PyPI itself, so pip trusts the same during the build."""
CUDA = re.compile(r"/lib(cu|nv|nccl|torch_cuda|c10_cuda)[^/]*\.so|/site-packages/(nvidia|triton|cuda)[^/]*$")
MADE_OF = re.compile(r"^(gcc|cc|git|make)$")
LEFT_OVER = ("src", "wheels", "run/vitp", "etc/pip.conf", "tmp/wanted.txt", "root/.cache", "run/secrets")
STRANGER = "4242:4242"
"""A user that the image does not know, as `docker run --user` may name."""
NMS = """
_stand_in = torch.library.Library("torchvision", "FRAGMENT")
_stand_in.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_stand_in.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""torchvision cannot be imported where these operators are not at least declared."""


def missing(debootstrap: bool) -> str:
    """Return the reason why it cannot run here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in ("buildah", *(["debootstrap"] if debootstrap else [])) if not shutil.which(name)]
    return f"needs {' and '.join(lacking)} (of Debian's packages)" if lacking else ""


class Workshop:
    """A folder with images, containers and what they are made of; nothing outside of it changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def buildah(self, *words: str | Path, show: bool = False) -> str:
        places = ["--root", self.folder / "images", "--runroot", self.folder / "run"]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)}
        done = subprocess.run(
            ["buildah", *places, *words],
            env=environment,
            text=True,
            stdout=None if show else subprocess.PIPE,
            check=True,
        )
        return done.stdout or ""

    def base(self) -> str:
        """An image of Debian 12 with Debian's Python, in the place of python:3.11-slim-bookworm. Returns its name."""
        tree, archive = self.folder / "debian", self.folder / "debian.tar"
        packages = "--include=python3,python3-venv,ca-certificates"
        run("debootstrap", "--variant=minbase", packages, "bookworm", tree, quiet=True)
        for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(tree / waste)
        run("tar", "-C", tree, "-cf", archive, ".")
        shutil.rmtree(tree)
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", container, archive, "/")
        archive.unlink()
        self.buildah("commit", "--rm", container, "vitp-base")
        return "localhost/vitp-base"

    def context(self) -> Path:
        """The tracked files, as they stand."""
        context = self.folder / "context"
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, context / name)
        return context

    def stand_in(self, context: Path, torch: str, torchvision: str) -> Path:
        """CPU wheels as an index that pip reads, and their versions in the context's lock."""
        index = self.folder / "index"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        run(*pip, index / "torch", f"torch=={torch}+cpu")
        run(*pip, self.folder, f"torchvision=={torchvision}")
        (wheel,) = self.folder.glob("torchvision-*.whl")
        (index / "torchvision").mkdir()
        without_operators(wheel, index / "torchvision" / wheel.name.replace(torchvision, f"{torchvision}+cpu", 1))
        for package in index.iterdir():
            links = [f'<a href="{path.name.replace("+", "%2B")}">{path.name}</a>' for path in package.iterdir()]
            (package / "index.html").write_text("\n".join(links), encoding="utf-8")
        lock = context / "requirements.lock"
        text = re.sub(r"^torch==.*$", f"torch=={torch}", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
        lock.write_text(re.sub(r"^torchvision==.*$", f"torchvision=={torchvision}", text, flags=re.MULTILINE))
        return index

    def build(self, context: Path, base: str, variant: str, index: Path | None) -> str:
        """Return the image's name. What this machine needs to reach PyPI is shown to the build, and not kept."""
        settings = self.folder / "pip.conf"
        settings.write_text(f"[global]\ncert = /run/vitp/{CA.name}\n", encoding="utf-8")
        words = [
            "bud",
            "--layers",
            "--network",
            "host",
            "--secret",
            f"id=pip,src={settings}",
            "--volume",
            f"{CA}:/run/vitp/{CA.name}:ro",
        ]
        words += ["--build-arg", f"VARIANT={variant}"]
        if base:
            words += ["--build-arg", f"BASE={base}"]
        if index:
            words += ["--volume", f"{index}:/run/vitp/index:ro", "--build-arg", "TORCH_INDEX=file:///run/vitp/index"]
        self.buildah(*words, "--tag", f"vitp:{variant}", context, show=True)
        return f"localhost/vitp:{variant}"

    def container(self, image: str) -> str:
        return self.buildah("from", image).strip()

    def run(self, container: str, *words: str, user: str = "") -> None:
        """What `docker run` does: the entry point, with these words or the image's own."""
        about = self.about(container)
        command = [*about["Entrypoint"], *(words or about["Cmd"])]
        print(f"$ docker run {f'--user {user} ' if user else ''}vitp {' '.join(words)}", flush=True)
        self.buildah("run", *(["--user", user] if user else []), container, "--", *command, show=True)

    def about(self, container: str) -> dict:
        return json.loads(self.buildah("inspect", container))["OCIv1"]["config"]


def run(*words: str | Path, quiet: bool = False) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL if quiet else None)


def without_operators(wheel: Path, out: Path) -> None:
    """A wheel of torchvision that loads on a torch without CUDA, under the version that `out` names."""
    _, version, *_ = out.name.split("-")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if ".so" in Path(name).name or name.endswith(("/", "/RECORD")):
                continue
            if name == "torchvision/extension.py":
                content += NMS.encode()
            _, _, file = name.partition(".dist-info/")
            if file == "METADATA":
                content = re.sub(
                    rb"^Version: .*$", f"Version: {version}".encode(), content, count=1, flags=re.MULTILINE
                )
            new.writestr(f"torchvision-{version}.dist-info/{file}" if file else name, content)
        new.writestr(f"torchvision-{version}.dist-info/RECORD", "")


def faults(tree: Path, about: dict, lock: str, variant: str) -> list[str]:
    """Problems of an image's files and settings."""
    found = [f"left over: /{name}" for name in LEFT_OVER if _holds_bytes(tree / name)]
    if (user := about.get("User", "")) != "1000:1000":
        found.append(f"the user is {user!r}")
    places = [tree / "opt/vitp", *(tree / "opt/vitp").rglob("*")]
    found += [f"others may write {path}" for path in places if not path.is_symlink() and path.stat().st_mode & 0o002]
    if variant == "cpu":
        found += [f"of CUDA: {path}" for path in places if CUDA.search(path.as_posix())]
    found += [f"a compiler: {path}" for path in (tree / "usr/bin").iterdir() if MADE_OF.match(path.name)]
    pinned = {_plain(line) for line in lock.splitlines()}
    for path in (tree / "opt/vitp/lib").glob("python3.*/site-packages/*.dist-info"):
        name, version = path.name.removesuffix(".dist-info").rsplit("-", 1)
        if name not in ("pip", "vitp_pipeline") and _plain(f"{name}=={version.removesuffix('+cpu')}") not in pinned:
            found.append(f"not as locked: {name} {version}")
    return found


def pinned(context: Path) -> str:
    """Expected packages of the image."""
    return "".join(
        (context / name).read_text(encoding="utf-8") for name in ("requirements.lock", "container/cuda.lock")
    )


def _holds_bytes(place: Path) -> bool:
    """Empty files and folders are where the build's mounts were."""
    return any(path.is_file() and path.stat().st_size for path in (place, *place.rglob("*")))


def _plain(pin: str) -> str:
    return re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() + "==" + pin.partition("==")[2]


def check(folder: Path, variant: str, debootstrap: bool, stand_in: tuple[str, str] | None) -> None:
    """Raise AssertionError where the image is not what it should be."""
    began, shop = time.monotonic(), Workshop(folder)
    context = shop.context()
    index = shop.stand_in(context, *stand_in) if stand_in else None
    base = shop.base() if debootstrap else ""
    print(f"{time.monotonic() - began:.0f} s: base and context", flush=True)
    image = shop.build(context, base, variant, index)
    print(
        f"{time.monotonic() - began:.0f} s: built; {shop.buildah('images', '--format', '{{.Name}}:{{.Tag}} {{.Size}}')}"
    )
    container = shop.container(image)
    tree = Path(shop.buildah("mount", container).strip())
    found = faults(tree, shop.about(container), pinned(context), variant)
    assert not found, "\n".join(found)
    shop.run(shop.container(image), "doctor", user=STRANGER)  # its own: each user has caches there that are his alone
    shop.run(container, "bash", "-c", "id -u && command -v vitp torchrun")
    shop.run(container)
    (result,) = (tree / "work/runs/demo/run/evaluation").glob("*/result.json")
    print(f"{time.monotonic() - began:.0f} s: the demo's figures lie in {result.relative_to(tree)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--debootstrap", action="store_true", help="make the base image from Debian's packages")
    parser.add_argument("--stand-in", nargs=2, metavar=("TORCH", "TORCHVISION"))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here, and leave everything")
    given = parser.parse_args()
    if why := missing(given.debootstrap):
        raise SystemExit(f"image_check: {why}")
    if given.keep:
        given.keep.mkdir(parents=True)
        check(given.keep.resolve(), given.variant, given.debootstrap, given.stand_in)
        return
    with tempfile.TemporaryDirectory(prefix="vitp-image-") as folder:
        try:
            check(Path(folder), given.variant, given.debootstrap, given.stand_in)
        finally:
            Workshop(Path(folder)).buildah("rm", "--all")  # also unmounts


if __name__ == "__main__":
    main()
