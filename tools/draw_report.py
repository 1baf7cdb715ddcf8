"""A picture of a report: a page opened in Chromium, at one of its sections.

python tools/draw_report.py runs/demo/run/report.html --out docs/images/report-overview.png
python tools/draw_report.py runs/demo/run/report.html --section gallery --out docs/images/report-demo.png
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from PIL import Image

from vitp_pipeline.datasets.images import read_rgb

WIDTH, HEIGHT = 1180, 1010
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="output of `vitp report` or `vitp compare`")
    parser.add_argument("--section", default="summary", help="id of the section at the top: summary, classes, gallery")
    parser.add_argument("--point", action="store_true", help="at the fused map of the first image, for its details")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true", help="390 pixels wide")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    options = parser.parse_args()
    options.out.write_bytes(screenshot(options))
    Image.fromarray(read_rgb(options.out)).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


def screenshot(options: argparse.Namespace) -> bytes:
    """PNG."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("VITP_BROWSER") or next((b for b in map(shutil.which, BROWSERS) if b), None)
    if found is None:
        raise SystemExit("needs Chromium (apt-get install chromium), or VITP_BROWSER naming one")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        size = {"width": 390 if options.phone else WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, color_scheme="dark" if options.dark else "light")
        page.goto(options.page.resolve().as_uri())
        for _ in range(3):  # charts and pictures are drawn when they come near the screen, and then need their place
            if options.section != "summary":  # that one has the title above it
                page.locator(f"#{options.section}").evaluate("section => section.scrollIntoView()")
            page.wait_for_timeout(700)
        if options.point:
            page.locator("#gallery .view").nth(3).hover()
            page.wait_for_timeout(300)
        return page.screenshot()


if __name__ == "__main__":
    main()
