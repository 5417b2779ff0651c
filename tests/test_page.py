"""The page in a real browser, against a real server over rendered videos whose events are known."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import pytest

import everyframe as ef
from everyframe.library import make_thumbnails
from everyframe.synthetic import synthesize
from serve_cases import Server, running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; it is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to drive")

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FIRST_IS = "name => document.querySelector('.moment-name')?.textContent === name"
DESKTOP, PHONE, NARROW = (1280, 860), (390, 844), (320, 640)
SECONDS = 24.0
PATIENCE = 40  # seconds; only a machine that does much else needs them

# What the worlds of these seeds show, and what the bundled model finds in them.
STILL, PAN, HANDHELD, OLD = "synthetic-301000", "synthetic-302000", "synthetic-303000", "synthetic-305000"
TRIANGLE = "a small black triangle"  # in STILL, 17.9 to 24 s
CROSS = "a blue cross"  # in PAN, 4 to 16.2 s


@dataclass
class World:
    """Rendered videos: `library` holds some, `fresh` is one that it does not hold."""

    folder: Path
    fresh: Path
    truth: dict[tuple[str, str], list[list[float]]]

    def video(self, name: str) -> Path:
        return next(self.folder.rglob(f"{name}.mp4"))

    @property
    def library(self) -> Path:
        return self.folder / "library"


def render(folder: Path, style: str, seed: int, **options: object) -> Path:
    list(synthesize(folder, videos=1, seed=seed, style=style, **{"seconds": SECONDS, **options}))  # type: ignore[arg-type]
    return next(folder.glob("*.mp4"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("page")
    videos = [
        render(folder / "still", "still", 301),
        render(folder / "pan", "pan", 302),
        render(folder / "handheld", "handheld", 303, seconds=8.0),
        render(folder / "old", "still", 305, codec="mpeg4", seconds=4.0),  # no browser plays this codec
    ]
    encoder = ef.ReuseEncoder(ef.load("bundled"))
    with ef.Library(folder / "library") as library:
        for video in videos:
            library.add(ef.encode_video(video, encoder, fps=3.0), thumbnails=make_thumbnails(video))
    lines = [line for file in folder.rglob("annotations.jsonl") for line in file.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    truth = {(event["vid"], event["query"]): event["relevant_windows"] for event in events}
    return World(folder, render(folder / "fresh", "still", 304, seconds=6.0), truth)


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    with running(world.library) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What must not happen on any page. `expected`: a part of console errors that a test provokes."""

    origin: str
    errors: list[str] = field(default_factory=list)
    expected: str | None = None

    def follow(self, page: sync_api.Page) -> None:
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)

    def _console(self, message: sync_api.ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"console: {message.text}")

    def _request(self, request: sync_api.Request) -> None:
        if not request.url.startswith((self.origin + "/", "blob:", "data:")):
            self.errors.append(f"request to {request.url}")

    def check(self) -> None:
        unexpected = [error for error in self.errors if not (self.expected and self.expected in error)]
        assert not unexpected


@pytest.fixture
def watch(server: Server) -> Iterator[Watch]:
    watch = Watch(server.url)
    yield watch
    watch.check()  # script errors, violations of the content security policy, requests to elsewhere


@pytest.fixture
def open_page(browser: sync_api.Browser, server: Server, watch: Watch) -> Iterator[Callable[..., sync_api.Page]]:
    contexts = []

    def open_(path: str = "/", size: tuple[int, int] = DESKTOP, scheme: str = "light") -> sync_api.Page:
        # Reduced motion: nothing on the page is half-way when it is looked at.
        context = browser.new_context(
            base_url=server.url,
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        watch.follow(page)
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()


def wait_until(page: sync_api.Page, expression: str, argument: object = None) -> None:
    """Until an expression is true in the page. playwright's wait_for_function needs eval, which the page forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"never became true: {expression}"
        page.wait_for_timeout(30)


def search(page: sync_api.Page, text: str) -> None:
    """Type, and wait for the answer to this text."""
    with page.expect_response(lambda answer: "/api/search" in answer.url):
        page.fill("#query", text)
    page.wait_for_selector(".moment")


def first_moment(page: sync_api.Page) -> tuple[str, float, float]:
    """Video and span of the first result, as a reader sees them."""
    row = page.locator(".moment").first
    minutes = re.findall(r"(\d+):(\d\d)", row.locator(".moment-time").inner_text())
    start, end = (int(minute) * 60 + int(second) for minute, second in minutes[:2])
    return row.locator(".moment-name").inner_text(), start, end


def time_of(page: sync_api.Page) -> float:
    return page.evaluate("document.querySelector('#player video').currentTime")


def wait_playing(page: sync_api.Page) -> None:
    wait_until(
        page,
        "(v => v.readyState > 1 && v.currentTime > 0 && !v.seeking && (!v.paused || v.ended))"
        "(document.querySelector('#player video'))",
    )


def shows(page: sync_api.Page, first: float, last: float) -> None:
    """The video on the screen is between these seconds, with a little room for playing on."""
    wait_until(
        page,
        "([a, b]) => (v => !v.seeking && v.currentTime >= a - 0.2 && v.currentTime <= b + 1.5)"
        "(document.querySelector('#player video'))",
        [first, last],
    )


def overlaps(world: World, video: str, query: str, start: float, end: float) -> bool:
    return any(min(end, last) > max(start, first) for first, last in world.truth[video, query])


# --- search


def test_typing_finds_the_right_video_and_asks_seldom(open_page: Callable[..., sync_api.Page], world: World) -> None:
    page = open_page()
    page.wait_for_selector(".tile")
    assert page.locator(".tile").count() == 4
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/search" in request.url else None)
    page.keyboard.press("/")  # already in the box: typed, not a shortcut
    assert page.input_value("#query") == "/"
    page.fill("#query", "")
    with page.expect_response(re.compile("black.triangle")):
        page.locator("#query").press_sequentially(TRIANGLE, delay=10)
    page.wait_for_selector(".moment")
    name, start, end = first_moment(page)
    assert name == f"{STILL}.mp4"
    assert overlaps(world, STILL, TRIANGLE, start, end)
    assert len(asked) < len(TRIANGLE) / 2  # not one for each letter; how many depends on how fast they come
    assert re.search(r"^\d+ moments in \d videos, took [\d.]+ m?s$", page.inner_text("#count"))
    assert page.evaluate("new URL(location).searchParams.get('q')") == TRIANGLE
    row = page.locator(".moment").first
    assert 1 <= row.locator(".strip img").count() <= 6
    wait_until(page, "[...document.querySelectorAll('.moment img')].slice(0, 4).every(i => i.naturalWidth > 0)")
    assert "score" in row.inner_text().lower()

    # Another text: its answer replaces the old one, and Enter asks at once.
    page.fill("#query", CROSS)
    page.keyboard.press("Enter")
    wait_until(page, FIRST_IS, f"{PAN}.mp4")


def test_answers_that_come_late_are_dropped(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page()
    held: list[sync_api.Route] = []
    page.route(re.compile("q=a\\+small"), lambda route: held.append(route))  # as if the server took its time
    with page.expect_request(re.compile("q=a\\+small")):
        page.fill("#query", TRIANGLE)
    while not held:
        page.wait_for_timeout(20)
    search(page, CROSS)
    with contextlib.suppress(sync_api.Error):  # the page has given the request up already: as good
        held[0].continue_()
    page.wait_for_timeout(300)
    assert first_moment(page)[0] == f"{PAN}.mp4"


def test_back_forward_reload_and_links_keep_the_search(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page()
    search(page, TRIANGLE)
    page.keyboard.press("Enter")
    search(page, CROSS)
    page.keyboard.press("Enter")
    page.click(".moment-link >> nth=0")
    page.wait_for_selector("#player[open]")
    page.go_back()
    page.wait_for_selector("#player", state="hidden")
    assert page.input_value("#query") == CROSS
    page.go_back()
    wait_until(page, FIRST_IS, f"{STILL}.mp4")
    assert page.input_value("#query") == TRIANGLE
    page.go_back()
    page.wait_for_selector(".tile")
    assert page.input_value("#query") == ""
    page.go_forward()
    page.wait_for_selector(".moment")
    assert page.title().startswith(TRIANGLE)
    page.reload()
    page.wait_for_selector(".moment")
    assert first_moment(page)[0] == f"{STILL}.mp4"
    linked = open_page(page.locator(".moment-link").first.get_attribute("href"))
    wait_playing(linked)
    assert linked.input_value("#query") == TRIANGLE


def test_negative_and_combined_words_reach_the_server(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page()
    with page.expect_request(re.compile("/api/search")) as sent:
        page.fill("#query", 'a ring -"a black triangle"')
    assert "-%22a+black+triangle%22" in sent.value.url
    page.wait_for_selector(".moment")
    page.fill("#query", "a heart")
    page.click("#combine")
    assert page.input_value("#query") == ""
    with page.expect_request(re.compile("q=a\\+heart&q=a\\+blue\\+cross")):
        page.fill("#query", CROSS)
    assert page.locator(".chip").all_inner_texts() == ["a heart"]
    page.click("[aria-label='Remove a heart']")
    page.wait_for_selector(".chip", state="detached")


def test_filters_and_grouping(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page(f"/?q={TRIANGLE}")
    page.wait_for_selector(".moment")
    page.click("#group")
    page.wait_for_selector(".group h2")
    names = page.locator(".group h2").all_inner_texts()
    assert names[0] == f"{STILL}.mp4" and len(names) == len(set(names))
    page.click("#toggle-filters")
    with page.expect_request(re.compile("per_video=1(&|$)")):
        page.select_option("#filter-per", "1")
    wait_until(page, "document.querySelectorAll('.group').length === document.querySelectorAll('.moment').length")
    with page.expect_request(re.compile("path=.*302")):
        page.fill("#filter-path", "*302*")
    wait_until(page, "document.querySelectorAll('.moment').length === 1")
    assert page.inner_text(".group h2") == f"{PAN}.mp4"
    with page.expect_request(re.compile("min_seconds=60(&|$)")):
        page.fill("#filter-min", "1")
    page.wait_for_selector(".state.nothing")
    assert "filters" in page.inner_text(".state")
    assert page.inner_text("#filter-count") == "3"
    page.click(".state button")
    page.wait_for_selector(".moment")
    assert page.locator("#filter-count").is_hidden()
    with page.expect_request(re.compile(r"before=2001-02-03T23%3A59%3A59Z")):
        page.fill("#filter-before", "2001-02-03")
    page.wait_for_selector(".state.nothing")


# --- player


def test_a_click_plays_the_moment_and_the_timeline_seeks(open_page: Callable[..., sync_api.Page], world: World) -> None:
    page = open_page()
    search(page, CROSS)
    _, start, end = first_moment(page)
    page.click(".moment-link >> nth=0")
    wait_playing(page)
    shows(page, start, end)
    assert overlaps(world, PAN, CROSS, time_of(page), time_of(page) + 1)
    assert page.inner_text("#player-title") == f"{PAN}.mp4"
    assert "256 × 192 · h264" in page.inner_text("#player header")

    page.wait_for_selector(".curve-line")
    band = page.locator(".band.active").bounding_box()
    track = page.locator(".track").bounding_box()
    assert band["x"] == pytest.approx(track["x"] + track["width"] * start / SECONDS, abs=track["width"] / SECONDS)
    slider = page.get_by_role("slider")
    assert float(slider.get_attribute("aria-valuemax")) == pytest.approx(SECONDS, abs=0.2)
    assert "seconds of 24 seconds" in slider.get_attribute("aria-valuetext")

    page.keyboard.press("k")
    wait_until(page, "document.querySelector('#player video').paused")
    slider.click(position={"x": track["width"] / 4, "y": 20})
    shows(page, SECONDS / 4, SECONDS / 4)
    page.mouse.move(track["x"] + track["width"] / 2, track["y"] + 20)
    page.wait_for_selector(".tip img")
    wait_until(page, "document.querySelector('.tip img').naturalWidth > 0")
    assert page.inner_text(".tip") == "0:12"
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] * 0.75, track["y"] + 30, steps=4)
    page.mouse.up()
    shows(page, SECONDS * 0.75, SECONDS * 0.75)
    slider.focus()
    page.keyboard.press("Home")
    shows(page, 0, 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    shows(page, 11, 11)
    assert "11" in slider.get_attribute("aria-valuetext")

    page.keyboard.press("Home")
    page.keyboard.press("n")  # the next moment is the one found
    shows(page, start, end)
    wait_playing(page)
    page.click("text=Frame kinds")
    assert page.locator(".kinds path").count() >= 2
    assert re.search(r"I computed in full: \d+", page.inner_text(".legend"))
    page.keyboard.press("o")
    assert page.get_by_role("button", name="Loop moment").get_attribute("aria-pressed") == "true"
    page.evaluate("time => (document.querySelector('#player video').currentTime = time)", end - 0.2)
    shows(page, start, start + 2)

    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    assert "video=" not in page.url
    assert page.evaluate("document.activeElement.className") == "moment-link"


def test_the_keyboard_is_enough(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page(f"/?q={CROSS}")
    page.wait_for_selector(".moment")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("ArrowDown")
    focused = "[...document.querySelectorAll('.moment-link')].indexOf(document.activeElement)"
    assert page.evaluate(focused) == 0
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == 1
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    wait_playing(page)
    page.keyboard.press("Space")  # the play button has the focus
    wait_until(page, "document.querySelector('#player video').paused")
    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    assert page.evaluate(focused) == 0
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys", state="hidden")
    with page.expect_request(re.compile("/api/search.*like=")):
        page.keyboard.press("l")
    wait_until(page, "document.querySelector('.chip')?.textContent.includes('302000')")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tile")


def test_more_like_the_frame_on_screen(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page()
    page.click(f".tile:has-text('{PAN}')")
    wait_playing(page)
    page.evaluate("document.querySelector('#player video').pause()")
    page.get_by_role("slider").focus()
    page.keyboard.press("PageUp")
    shows(page, 10, 11)
    with page.expect_request(re.compile(r"/api/search.*like=\d+%401\d\.")):
        page.get_by_role("button", name="More like this").click()
    page.wait_for_selector(".moment")
    name, start, end = first_moment(page)
    assert name == f"{PAN}.mp4" and start <= 12 and end >= 10
    page.click(".moment-link >> nth=0")  # the curve of a frame, too
    page.wait_for_selector(".curve-line")
    page.go_back()
    page.go_back()
    page.wait_for_selector("#player[open]")  # back to the video it came from


def test_a_codec_browsers_do_not_play_gets_a_preview(open_page: Callable[..., sync_api.Page], watch: Watch) -> None:
    page = open_page()
    page.click(f".tile:has-text('{OLD}')")
    wait_playing(page)
    assert page.evaluate("document.querySelector('#player video').currentSrc").endswith("/preview")
    assert page.evaluate("document.querySelector('#player video').duration") == pytest.approx(4, abs=0.3)


def test_a_file_that_moved_is_told(open_page: Callable[..., sync_api.Page], world: World, watch: Watch) -> None:
    watch.expected = "404"
    file = world.video(HANDHELD)
    page = open_page()
    page.wait_for_selector(".tile")
    file.rename(file.with_suffix(".moved"))
    try:
        page.click(f".tile:has-text('{HANDHELD}')")
        page.wait_for_selector(".notice:not([hidden])")
        assert re.search("moved|changed|not where", page.inner_text(".notice"))
    finally:
        file.with_suffix(".moved").rename(file)


# --- images


def picture_of(video: Path, seconds: float) -> bytes:
    """One frame as PNG, decoded here."""
    with av.open(str(video)) as container:
        frame = next(frame for frame in container.decode(video=0) if frame.time >= seconds)
        codec = av.CodecContext.create("png", "w")
        codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "rgb24"
        codec.time_base = 1
        packets = codec.encode(frame.reformat(format="rgb24")) + codec.encode()
    return b"".join(bytes(packet) for packet in packets)


GIVE = """([kind, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type }));
  if (kind === "paste") {
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true }));
    return null;
  }
  const tell = (name) =>
    document.body.dispatchEvent(new DragEvent(name, { dataTransfer: files, bubbles: true, cancelable: true }));
  tell("dragenter");
  const shown = document.getElementById("drop").hidden ? null : document.getElementById("drop-text").textContent;
  tell("dragover");
  tell("drop");
  return shown;
}"""


def give(page: sync_api.Page, kind: str, name: str, mime: str, data: bytes) -> str | None:
    """Drop or paste a file onto the page; what the overlay said."""
    return page.evaluate(GIVE, [kind, name, mime, base64.b64encode(data).decode()])


def test_an_image_finds_its_moment(open_page: Callable[..., sync_api.Page], world: World, tmp_path: Path) -> None:
    png = picture_of(world.video(PAN), 10.0)
    (tmp_path / "frame.png").write_bytes(png)
    page = open_page()
    page.set_input_files("#image-file", tmp_path / "frame.png")
    page.wait_for_selector(".moment")
    name, start, end = first_moment(page)
    assert name == f"{PAN}.mp4" and start <= 10 <= end
    assert "frame.png" in page.inner_text(".chip")
    page.click(".moment-link >> nth=0")
    wait_playing(page)
    page.wait_for_selector(".curve-line")
    page.keyboard.press("Escape")
    page.click(".chip button")
    page.wait_for_selector(".tile")

    assert give(page, "drop", "other.png", "image/png", png) == "Drop an image to search by it"
    page.wait_for_selector(".moment")
    assert page.locator("#drop").is_hidden()
    assert first_moment(page)[0] == f"{PAN}.mp4"
    page.click("#clear")
    page.wait_for_selector(".tile")

    give(page, "paste", "", "image/png", png)
    page.wait_for_selector(".moment")
    assert first_moment(page)[0] == f"{PAN}.mp4"
    page.reload()  # a picture is not part of the address
    page.wait_for_selector(".tile")


def test_what_is_no_image_is_told(open_page: Callable[..., sync_api.Page], watch: Watch) -> None:
    watch.expected = "the server responded with a status of 4"
    page = open_page()
    page.wait_for_selector(".tile")
    give(page, "drop", "broken.png", "image/png", b"this is no picture")
    page.wait_for_selector(".state.problem")
    assert len(page.inner_text(".state p")) > 20
    give(page, "drop", "notes.txt", "text/plain", b"hello")
    assert page.inner_text("#toast") == "notes.txt is neither an image nor a video."


# --- adding and removing


def test_adding_a_video_shows_progress_and_then_it_is_found(
    open_page: Callable[..., sync_api.Page], world: World, tmp_path: Path, watch: Watch
) -> None:
    watch.expected = "the server responded with a status of 4"
    fresh = tmp_path / "fresh.mp4"
    shutil.copy(world.fresh, fresh)
    large = tmp_path / "cancelled.mp4"
    large.write_bytes(world.video(PAN).read_bytes() + b"\0\0\0\x08free")  # else it is known already
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no video" * 100)
    page = open_page()
    page.wait_for_selector(".tile")
    page.evaluate(
        """() => {
          window.seen = new Set();
          new MutationObserver(() => {
            for (const line of document.querySelectorAll(".job .muted")) window.seen.add(line.textContent);
          }).observe(document.getElementById("jobs"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.set_input_files("#video-files", [fresh, bad])
    page.wait_for_selector(".job:has-text('fresh.mp4') >> text=/Waiting for its turn|Encoding/")
    page.set_input_files("#video-files", large)
    row = page.locator(".job", has_text="cancelled.mp4")
    row.get_by_text(re.compile("Waiting for its turn|Encoding")).wait_for()
    with page.expect_request(lambda request: request.method == "DELETE"):
        row.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".job.cancelled:has-text('cancelled.mp4')")
    page.wait_for_selector(".job.failed")
    assert "bad.mp4" in page.inner_text(".job.failed .job-name")
    assert len(page.inner_text(".job.failed .muted")) > 20
    page.wait_for_selector(".job.done", timeout=90_000)
    seen = page.evaluate("[...window.seen]")
    assert any(line.startswith("Encoding") for line in seen), seen
    page.wait_for_selector(".tile:has-text('fresh.mp4')")
    assert page.locator(".tile").count() == 5

    with page.expect_response(re.compile("/api/search/image")):
        give(page, "paste", "frame.png", "image/png", picture_of(world.fresh, 4.0))
    page.wait_for_selector(".moment")
    assert first_moment(page)[0] == "fresh.mp4"
    page.click(".job.done >> text=Play")
    wait_playing(page)
    page.keyboard.press("Escape")
    page.click("[aria-label^='Hide the finished']")
    assert page.locator("#jobs").is_hidden()

    page.click("#open-videos")
    page.fill("#videos-filter", "fresh")
    wait_until(page, "document.querySelectorAll('.record').length === 1")
    page.get_by_role("button", name="Remove fresh.mp4").click()
    page.click(".question >> text=Keep")
    page.get_by_role("button", name="Remove fresh.mp4").click()
    page.click(".question >> text=Remove")
    page.wait_for_selector(".record", state="detached")
    page.fill("#videos-filter", "")
    wait_until(page, "document.querySelectorAll('.record').length === 4")
    page.click(f".record-open:has-text('{PAN}')")
    wait_playing(page)


# --- states


def test_sentences_of_the_server_are_shown(open_page: Callable[..., sync_api.Page], watch: Watch) -> None:
    watch.expected = "the server responded with a status of 4"
    page = open_page()
    page.fill("#query", "word " * 600)
    page.wait_for_selector(".state.problem")
    assert "200 words" in page.inner_text(".state p")
    page.fill("#query", "word " * 150)  # longer than the text tower reads: an answer, with a note
    page.wait_for_selector(".moment")
    assert page.inner_text("#note")
    page.goto("/?like=nothing")
    page.wait_for_selector(".state.problem")
    page.goto("/?video=1&at=3")  # a video that was removed
    page.wait_for_selector(".notice:not([hidden])")
    assert "no video" in page.inner_text(".notice")


def test_token_empty_archive_and_a_server_that_goes_away(
    browser: sync_api.Browser, world: World, tmp_path: Path
) -> None:
    with running(tmp_path / "new", "--token", "a-secret-of-this-test") as server:
        context = browser.new_context(base_url=server.url, reduced_motion="reduce")
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        watch = Watch(server.url, expected="Failed to load resource")
        watch.follow(page)
        page.goto("/")
        page.wait_for_selector("#token")
        serious(page, "token")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=That is not the token")
        page.fill("#token", "a-secret-of-this-test")
        page.keyboard.press("Enter")
        page.wait_for_selector(".state.empty")
        assert "a-secret-of-this-test" not in page.url
        assert "everyframe index" in page.inner_text(".state")
        serious(page, "empty archive")
        server.stop()
        page.fill("#query", TRIANGLE)
        page.wait_for_selector(".state.gone")
        serious(page, "server gone")
        with running(tmp_path / "new", "--token", "a-secret-of-this-test", "--port", str(server.port)):
            page.wait_for_selector(".state.empty")  # it went on by itself
        watch.check()
        context.close()


# --- look


def serious(page: sync_api.Page, what: str) -> None:
    found = axe.Axe().run(page).response["violations"]
    bad = [(v["id"], [n["target"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
    assert not bad, what


def fits(page: sync_api.Page, what: str) -> None:
    """No sideways scrolling, and nothing to press is smaller than 40 pixels."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), what
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, [role=slider]")]
          .filter((node) => node.checkVisibility())
          .filter((node) => node.closest("dialog[open]") === document.querySelector("dialog[open]"))
          .map((node) => [node.id || node.className || node.textContent, node.getBoundingClientRect()])
          .filter(([, box]) => box.width && (box.width < 39.5 || box.height < 39.5))
          .map(([name, box]) => `${name} ${box.width}x${box.height}`)"""
    )
    assert not small, what


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_fits(open_page: Callable[..., sync_api.Page], scheme: str) -> None:
    page = open_page("/", scheme=scheme)
    page.wait_for_selector(".tile")

    def look(what: str) -> None:
        for width, height in (NARROW, PHONE, DESKTOP):
            page.set_viewport_size({"width": width, "height": height})
            fits(page, f"{what} {width}")
            if (width, height) != NARROW:
                serious(page, f"{what} {width}")

    look("home")
    search(page, "a ring")
    page.click("#toggle-filters")
    page.click("#group")
    look("results")
    page.click(".moment-link >> nth=0")
    page.wait_for_selector(".curve-line")
    page.get_by_role("button", name="Frame kinds").click()
    page.wait_for_selector(".kinds path")
    look("player")
    page.keyboard.press("Escape")
    page.click("#open-videos")
    page.wait_for_selector(".record")
    page.click(".record [aria-label^='Remove'] >> nth=0")
    look("videos")


def test_the_chosen_theme_stays(open_page: Callable[..., sync_api.Page]) -> None:
    page = open_page()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    dark = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == dark
