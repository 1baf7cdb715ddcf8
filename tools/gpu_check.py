"""Check vitp on a GPU, in at most five minutes and without a network, and write what was found as one JSON.

    make gpu-wheels GPU_PYTHON=3.12                                       # here: what that machine lacks
    python tools/gpu_check.py --wheels build/gpu-wheels --out gpu.json   # there, which has torch 2.11 or newer

Every check (`tools/gpu_checks.py`) runs in a process of its own: one that fails, hangs or breaks the GPU's context is
written with its error, and the others go on. Exit code 0: all passed; 1: some failed or there was no time for them.
`python tools/gpu_check.py --table docs/measured/gpu.json` prints the table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS, OF_A_CHECK, LEAST = 290, 120, 10
"""All the time, the most for one check, and the least that one is started with."""


def main() -> int:
    options = parse()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if options.wheels:
            install(options.wheels, work / "site")
        if str(ROOT) not in sys.path:  # a script's own folder is there, not the checkout
            sys.path.insert(0, str(ROOT))
        if options.run:
            run_one(options, work)
            return 0
        results = run_all(options, work)
    failed = [name for name, found in results["checks"].items() if not found["passed"]]
    print(f"{len(results['checks']) - len(failed)} passed, {len(failed)} failed{': ' if failed else ''}", *failed)
    return 1 if failed else 0


def install(wheels: Path, site: Path) -> None:
    """Install wheels into a folder, for this process and its children."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    ]
    files = [str(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    subprocess.run([*command, "--no-compile", "--target", str(site), *files], check=True)
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))


def run_all(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the checks, one process after the other, and write the results after each."""
    from tools.gpu_checks import CHECKS

    began = time.monotonic()
    results: dict[str, Any] = {"machine": machine(options.device), "device": options.device, "small": options.small}
    results["checks"] = {}
    for name in options.only or CHECKS:
        left = options.seconds - (time.monotonic() - began)
        found = alone(options, work, name, min(OF_A_CHECK, left)) if left >= LEAST else failure("no time was left")
        results["checks"][name] = found
        results["seconds"] = round(time.monotonic() - began, 1)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(
            f"{name}: {'passed' if found['passed'] else 'FAILED, ' + found['error']}, {found['seconds']} s", flush=True
        )
    return results


def alone(options: argparse.Namespace, work: Path, name: str, seconds: float) -> dict[str, Any]:
    """Run a check in a process of its own; return its entry of the results."""
    file, began = work / f"{name}.json", time.monotonic()
    command = [sys.executable, __file__, "--run", name, "--work", str(work), "--device", options.device]
    command += ["--small"] if options.small else []
    file.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            command, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else failure(last_line(done))
    except subprocess.TimeoutExpired:
        found = failure(f"not done after {seconds:.0f} s")
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return f"exit code {done.returncode}, {lines[-1] if lines else 'without a word'}"


def failure(error: str, where: str = "") -> dict[str, Any]:
    return {"passed": False, "seconds": 0.0, "figures": {}, "error": error, "traceback": where}


def run_one(options: argparse.Namespace, work: Path) -> None:
    """Run a check in this process and write its entry; an exception of any kind is one."""
    from tools.gpu_bench import Bench
    from tools.gpu_checks import CHECKS

    try:
        figures = CHECKS[options.run](Bench(options.device, work, options.small))
        found = {"passed": True, "seconds": 0.0, "figures": figures, "error": "", "traceback": ""}
    except Exception as error:  # whatever it is, the other checks go on
        text = (str(error).splitlines() or [""])[0]
        found = failure(f"{type(error).__name__}: {text}", traceback.format_exc())
    (work / f"{options.run}.json").write_text(json.dumps(found), encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    """The environment of the results."""
    import torch

    about: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if device != "cpu" and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.device(device))
        about |= {"gpu": gpu.name, "memory_gb": round(gpu.total_memory / 1e9), "cuda": torch.version.cuda}
        about |= {"capability": f"{gpu.major}.{gpu.minor}"}
    return about


def table(results: dict[str, Any]) -> str:
    """Markdown: the machine, the checks, and speed and memory where they were measured."""
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    lines = [f"Measured by `tools/gpu_check.py` on `{results['device']}` ({about}), in {results['seconds']:.0f} s.", ""]
    lines += [
        "| check | | images/s | bare | ratio | MB | bare | figures (limit) |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, found in results["checks"].items():
        figures = found["figures"]
        limits = {limit.removesuffix("_least"): value for limit, value in figures.get("limits", {}).items()}
        said = ", ".join(f"{key} {figures[key]:.3g} ({limit:g})" for key, limit in limits.items()) or found["error"]
        keys = ("images_per_second", "bare_images_per_second", "ratio", "megabytes", "bare_megabytes")
        numbers = [f"{figures[key]:.4g}" if key in figures else "" for key in keys]
        state = "passed" if found["passed"] else "failed"
        lines.append(f"| {name} | {state} | " + " | ".join(numbers) + f" | {said.replace('|', '/')} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    parser.add_argument(
        "--wheels", type=Path, help="folder that `make gpu-wheels` filled: installed into a temporary one"
    )
    parser.add_argument("--out", type=Path, help="write the results here, after every check")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="these checks alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--small", action="store_true", help="sizes of a test")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print these results as a table, and check nothing")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
