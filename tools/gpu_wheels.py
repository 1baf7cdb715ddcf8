"""Collect what vitp needs and a machine with a GPU lacks, as wheels that can be carried there.

    python tools/gpu_wheels.py --python 3.12 --out build/gpu-wheels

Such a machine has torch and what comes with it, and no network. Versions are those of requirements.lock; `--has` names
the packages that are there already (one a line, as `pip freeze` writes them). `tools/gpu_check.py --wheels` reads them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LIMIT = 60 * 10**6
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
OF_A_GPU_MACHINE = """
torch torchvision triton numpy scipy pillow pyarrow sympy mpmath networkx jinja2 markupsafe fsspec filelock
typing-extensions packaging pyyaml tqdm requests urllib3 idna certifi charset-normalizer regex safetensors setuptools
matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six rich markdown-it-py mdurl pygments typer
click shellingham platformdirs
"""
"""Packages that images for such machines have, in whatever version."""


def needed(has: Iterable[str], python: str, extras: Iterable[str] = ("hf",)) -> list[str]:
    """Names of all packages that vitp needs on Linux with a version of Python, directly or not, without those there.

    Not the extra openmmlab, whose OpenCV alone is larger than `LIMIT`: stage one is checked with transformers.
    """
    known = {canonicalize_name(name) for name in has}
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "platform_system": "Linux"}
    waiting, found = [("vitp-pipeline", extra) for extra in ("", *extras)], set[str]()
    while waiting:
        name, extra = waiting.pop()
        try:
            lines = requires(name) or []
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is not installed here: run this by the Python of `make install`") from error
        for requirement in map(Requirement, lines):
            own = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})
            if wanted and own not in known and not own.startswith(("nvidia-", "cuda-")):
                known.add(own)
                found.add(own)
                waiting += [(own, extra) for extra in ("", *requirement.extras)]
    return sorted(found)


def pinned(names: Iterable[str], lock: str) -> list[str]:
    """Lines NAME==VERSION of requirements.lock for some names; raises SystemExit if one is not there."""
    lines = [line for line in lock.splitlines() if "==" in line and not line.startswith("#")]
    versions = {canonicalize_name(line.partition("==")[0]): line.strip() for line in lines}
    if lacking := [name for name in names if name not in versions]:
        raise SystemExit(f"requirements.lock has no {', '.join(lacking)}")
    return [versions[name] for name in names]


def main() -> None:
    options = parse()
    has = options.has.read_text(encoding="utf-8").split() if options.has else OF_A_GPU_MACHINE.split()
    names = needed((line.partition("==")[0] for line in has), options.python)
    wanted = pinned(names, (ROOT / "requirements.lock").read_text(encoding="utf-8"))
    if options.list:
        print("\n".join(wanted))
        return
    shutil.rmtree(options.out, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", options.python]
    command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    subprocess.run([*command, "--dest", str(options.out), *wanted], check=True)
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(options.out.iterdir())}
    print(f"{options.out}: {len(sizes)} wheels for Python {options.python}, {sum(sizes.values()) / 1e6:.1f} MB")
    if sum(sizes.values()) > LIMIT:
        largest = sorted(sizes, key=sizes.__getitem__)[-3:]
        raise SystemExit(f"more than {LIMIT // 10**6} MB; the largest: {', '.join(reversed(largest))}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=here, help="version of Python on the other machine; as here")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-wheels")
    parser.add_argument("--has", type=Path, help="pip freeze of the other machine; as images for such machines are")
    parser.add_argument("--list", action="store_true", help="print what would be downloaded")
    return parser.parse_args()


if __name__ == "__main__":
    main()
