"""Run the benchmarks, one process per row, and print one table; a full run also writes docs/performance.md.

    python -m benchmarks --data data
    python -m benchmarks --data data --only semantic-camvid pq
    python -m benchmarks --data data --quick
    python -m benchmarks --data data --only classify train --update
    python -m benchmarks --page

--data holds the folders camvid and coco, and `weights` lies beside it (or VITP_WEIGHTS says where). Ratios are of
medians of 5 pairs, both sides in turn in one process; the range is that of single pairs. --quick runs the rows on
little data; its figures are meaningless. --update puts the rows of --only into the figures and the page of the last
full run; --page makes the page from those figures alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.lines import Line, Options
from benchmarks.page import machine, page, table
from benchmarks.suite import ROWS

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "measured/performance.json"
FIGURES_PAGE = DOCS / "performance.md"


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    os.environ.setdefault("VITP_WEIGHTS", str(((options.data or Path()) / "../weights").resolve()))
    if options.row:
        row = ROWS[options.row](Options(options.data, options.threads, options.quick))
        options.json.write_text(json.dumps([asdict(line) for line in row]), encoding="utf-8")
        return
    if options.page:
        FIGURES_PAGE.write_text(page(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    found: dict[str, list[Line]] = {}
    failed, began = [], time.time()
    for name in options.only or ROWS:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            found[name] = run(name, options)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(error.stderr[-2000:], file=sys.stderr, flush=True)
        if options.json:
            write(options.json, results_of(found, began, options.threads))
    print(table([line for lines in found.values() for line in lines]))
    results = results_of(found, began, options.threads)
    if options.update:
        results = replaced(json.loads(FIGURES.read_text(encoding="utf-8")), results)
    if not options.json and (options.update or not (options.only or options.quick or failed)):
        write(FIGURES, results)
        FIGURES_PAGE.write_text(page(results), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def results_of(found: dict[str, list[Line]], began: float, threads: int) -> dict:
    entries = {name: [asdict(line) | {"reached": line.reached} for line in lines] for name, lines in found.items()}
    return {"machine": machine(threads), "minutes": (time.time() - began) / 60, "rows": entries}


def replaced(before: dict, after: dict) -> dict:
    """The figures of a full run with those of some rows measured anew; raise SystemExit where the machine differs."""
    if before["machine"] != after["machine"]:
        sys.exit(f"--update: the figures are of another machine or versions: {before['machine']}")
    again = sorted({*before.get("again", []), *after["rows"]})
    rows = before["rows"] | after["rows"]
    return {**before, "again": again, "rows": {name: rows[name] for name in ROWS if name in rows}}


def run(name: str, options: argparse.Namespace) -> list[Line]:
    """A row in a process of its own."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        words = ["--data", str(options.data), "--threads", str(options.threads), "--row", name, "--json", str(file)]
        command = [sys.executable, "-m", "benchmarks", *words, *(["--quick"] if options.quick else [])]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        return [Line(**line) for line in json.loads(file.read_text())]


def write(path: Path, results: dict) -> None:
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder that holds camvid and coco")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="little work, once")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (default: all)")
    parser.add_argument("--json", type=Path, help="write the figures here after each row, not into docs")
    parser.add_argument("--update", action="store_true", help="replace these rows in docs")
    parser.add_argument("--page", action="store_true", help="make the page from the figures in docs, measure nothing")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None and not options.page:
        parser.error("--data is required")
    if options.update and not options.only:
        parser.error("--update needs --only")
    return options


if __name__ == "__main__":
    main()
