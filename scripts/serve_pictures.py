"""Take the pictures of the page that the docs show: docs/images/serve-*.png.

    python scripts/serve_pictures.py

Renders a few videos of the synthetic world, puts them into a library, serves it, and drives an installed Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import everyframe as ef
from everyframe.library import Library, make_thumbnails
from everyframe.synthetic import synthesize

STYLES = ("still", "pan", "handheld", "lecture", "cuts", "action")
QUERY = "a green heart"
LARGEST = 250_000  # bytes of one picture


def fill(folder: Path) -> Path:
    """A library of videos of several styles, with names as people give them."""
    encoder = ef.ReuseEncoder(ef.load("bundled"), plan="adaptive")
    library = folder / "library"
    with Library(library) as archive:
        for number, style in enumerate(STYLES):
            made = folder / "made" / style
            list(synthesize(made, videos=1, seconds=60, seed=700 + number, style=style))
            video = folder / f"{style} {2019 + number}.mp4"
            next(made.glob("*.mp4")).rename(video)
            archive.add(ef.encode_video(video, encoder, fps=3.0), thumbnails=make_thumbnails(video))
            print(video.name, flush=True)
    return library


@contextmanager
def served(library: Path) -> Iterator[str]:
    """The address of a server over it."""
    command = [sys.executable, "-m", "everyframe.cli", "serve", "--library", str(library), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("everyframe serve: "):
            raise SystemExit(f"the server did not start: {line}")
        yield line.strip().partition(": ")[2]
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def page_of(
    browser: Browser, address: str, *, size: tuple[int, int], dark: bool = False, scale: int = 1
) -> Iterator[Page]:
    context = browser.new_context(
        base_url=address,
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        is_mobile=size[0] < 600,
        has_touch=size[0] < 600,
        reduced_motion="reduce",
    )
    page = context.new_page()
    yield page
    context.close()


def results(page: Page, query: str) -> None:
    page.goto(f"/?q={query}")
    page.wait_for_selector(".moment")
    page.wait_for_load_state("networkidle")
    page.evaluate("document.activeElement.blur()")


def player(page: Page, query: str, *, kinds: bool) -> None:
    """Paused in the middle of the best moment."""
    results(page, query)
    page.click(".moment-link >> nth=0")
    page.wait_for_selector(".curve-line")
    if kinds:
        page.get_by_role("button", name="Frame kinds").click()
    page.wait_for_timeout(2500)
    page.evaluate("document.querySelector('#player video').pause()")
    page.wait_for_timeout(300)


def take(page: Page, file: Path) -> None:
    page.screenshot(path=file)
    with Image.open(file) as picture:  # 256 colours are plenty, and a third of the size
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file}: {size / 1000:.0f} kB")
    if size > LARGEST:
        raise SystemExit(f"{file} is larger than {LARGEST / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--query", default=QUERY)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("there is no chromium on the PATH")
    with (
        tempfile.TemporaryDirectory() as folder,
        served(fill(Path(folder))) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with page_of(browser, address, size=(1200, 780)) as page:
            results(page, "a ring")  # the first search of a server waits for the model
            results(page, arguments.query)
            take(page, arguments.out / "serve-search.png")
        with page_of(browser, address, size=(1200, 840)) as page:
            player(page, arguments.query, kinds=True)
            take(page, arguments.out / "serve-player.png")
        with page_of(browser, address, size=(1200, 780), dark=True) as page:
            page.goto(f"/?q={arguments.query}&group=1")
            page.wait_for_selector(".group")
            page.wait_for_load_state("networkidle")
            page.evaluate("document.activeElement.blur()")
            take(page, arguments.out / "serve-dark.png")
        with page_of(browser, address, size=(390, 844)) as page:
            player(page, arguments.query, kinds=False)
            take(page, arguments.out / "serve-phone-player.png")
            results(page, arguments.query)
            take(page, arguments.out / "serve-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
