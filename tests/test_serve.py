"""everyframe serve: what its API answers, over HTTP from a real server, and whom it answers."""

import asyncio
import io
import json
import re
import shutil
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

import everyframe as ef
from everyframe.cli import main
from everyframe.library import Library, Query
from everyframe.serve import Settings, parse_size
from everyframe.serve import server as server_module
from everyframe.serve.security import CSP, Guard, Rules, allowed_hosts
from serve_cases import in_process, rendered, shared


@pytest.fixture(scope="module")
def archive():
    return shared()[1]


@pytest.fixture(scope="module")
def library(archive):
    with Library(archive) as library:
        yield library


@pytest.fixture(scope="module")
def model():
    return ef.load("bundled", device="cpu")


@pytest.fixture(scope="module")
def server():
    server, _ = shared()
    yield server
    assert not server.errors, server.errors


@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ids(library):
    return {record.name: str(record.id) for record in library.videos()}


FIRST, SECOND = "synthetic-31000.mp4", "synthetic-31001.mp4"


def pairs(moments):
    return [(m["video"], (m["start"], m["end"], m["score"])) for m in moments]


def hits(found):
    """What `pairs` gives for these; a batch of other texts moves the last bits of a score, which no rounding hides."""
    return [(str(hit.id), pytest.approx((hit.start, hit.end, float(hit.score)), abs=2e-4)) for hit in found]


# --- search ----------------------------------------------------------------------------------------------


def test_search_answers_what_the_library_does(api, library, model):
    vector = model.encode_text(["a red circle"])[0]
    answer = api.get("/api/search", params={"q": "a red circle", "top": 4}).json()
    assert pairs(answer["moments"]) == hits(library.search(vector, top=4))
    assert answer["took_ms"] > 0 and answer["note"] is None
    assert answer["collection"]["id"] == library.collection().id and answer["collection"]["default"]
    for moment in answer["moments"]:
        assert moment["start"] <= moment["peak"] < moment["end"] and moment["playable"]
        inside = [t for t in library.thumbnails(int(moment["video"])) if moment["start"] <= t < moment["end"]]
        assert [each["time"] for each in moment["thumbnails"]] == inside[: len(inside)][:6]
        assert moment["thumbnail"] in [each["url"] for each in moment["thumbnails"]]
        assert moment["duration"] == pytest.approx(12, abs=0.2)


def test_search_combines_texts_and_takes_negatives(api, library, model):
    """Every word in every place it can stand gives the linear query of the library."""
    red, blue, dots = model.encode_text(["a red circle", "blue", "small dots"])
    found = api.get("/api/search", params={"q": ["a red circle -blue", '-"small dots"'], "top": 3}).json()["moments"]
    assert pairs(found) == hits(library.search(Query((red,), (blue, dots)), top=3))
    both = api.get("/api/search", params={"q": ["a red circle", "small dots"], "top": 3}).json()["moments"]
    assert pairs(both) == hits(library.search(Query((red, dots)), top=3))


def test_search_like_a_frame_finds_that_frame(api, library, ids):
    found = api.get("/api/search", params={"like": f"{ids[SECOND]}@5.0", "top": 1}).json()["moments"][0]
    assert found["video"] == ids[SECOND] and found["start"] <= 5.0 < found["end"]
    assert hits(library.search(library.frame(int(ids[SECOND]), 5.0), top=1)) == pairs([found])


def picture(video, seconds, format="PNG", **options):
    """A frame of a rendered video as a picture file, decoded here."""
    sampled = next(
        sample for sample in ef.video.sample_frames(rendered() / video, 8.0, start=seconds, motion=False)
    ).pixels  # fmt: skip
    file = io.BytesIO()
    Image.fromarray(sampled).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_search_by_image_finds_its_frame(api, ids, format):
    answer = api.post("/api/search/image?top=1", files={"image": ("x", picture(FIRST, 6.0, format))})
    assert answer.status_code == 200, answer.text
    found = answer.json()["moments"][0]
    assert found["video"] == ids[FIRST] and found["score"] > 0.9


def test_search_by_image_is_remembered_and_equals_the_frame_in_full(api, library, model):
    data = picture(FIRST, 3.0)
    first = api.post("/api/search/image?top=3", files={"image": ("frame.png", data)}).json()
    again = api.get("/api/search", params={"image": first["image"], "top": 3}).json()
    assert pairs(again["moments"]) == pairs(first["moments"]) and again["image"] == first["image"]
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    vector = ef.DenseEncoder(model).encode(model.preprocess(pixels[None]))[0]
    assert pairs(first["moments"]) == hits(library.search(vector, top=3))
    curve = api.get(f"/api/videos/{first['moments'][0]['video']}/curve", params={"image": first["image"]})
    assert max(curve.json()["scores"]) == pytest.approx(first["moments"][0]["score"], abs=0.05)
    forgotten = api.get("/api/search", params={"image": "0" * 24})
    assert forgotten.status_code == 410 and "send it again" in forgotten.json()["detail"]


@pytest.mark.parametrize(
    ("data", "status", "part"),
    [
        (b"#EXTM3U\nfile:///etc/passwd\n", 415, "must be a PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "must be a PNG"),
        (b"", 415, "must be a PNG"),
        (b"\x89PNG\r\n\x1a\n" + b"nonsense" * 30, 422, "cannot be read"),
        (b"GIF89a\n#EXTM3U\n", 422, "cannot be read"),
        (b"\xff\xd8\xff" + bytes(10_100_000), 413, "10 MB"),
    ],
    ids=["playlist", "svg", "empty", "broken", "polyglot", "large"],
)
def test_search_by_image_refuses(api, data, status, part):
    answer = api.post("/api/search/image", files={"image": ("x.png", data)})
    assert answer.status_code == status and part in answer.json()["detail"]


def test_search_by_image_refuses_too_many_pixels(api):
    file = io.BytesIO()
    Image.new("L", (8000, 8000)).save(file, "PNG")
    answer = api.post("/api/search/image", files={"image": ("x.png", file.getvalue())})
    assert answer.status_code == 422 and "50 million" in answer.json()["detail"]


def test_search_filters(api, library, ids):
    def names(**params):
        answer = api.get("/api/search", params={"q": "a circle", "top": 50, **params})
        assert answer.status_code == 200, answer.text
        return {moment["name"] for moment in answer.json()["moments"]}

    assert names() == {FIRST, SECOND}
    assert names(path="31000") == names(path="*31000*") == names(path=str(rendered() / FIRST)) == {FIRST}
    assert names(path=str(rendered())) == {FIRST, SECOND}
    assert names(path="nowhere") == set()
    day = library.videos()[0].date.strftime("%Y-%m-%d")
    assert names(after=day, before=day) == {FIRST, SECOND}  # a day alone is meant as a whole
    assert names(after="2100-01-01T00:00:00Z") == names(before="1999-12-31") == set()
    assert names(min_seconds=5, max_seconds=20) == {FIRST, SECOND} and names(min_seconds=500) == set()
    one = api.get("/api/search", params={"q": "a circle", "top": 50, "per_video": 1}).json()["moments"]
    assert len(one) == 2
    videos = api.get("/api/search", params={"q": "a circle", "level": "video"}).json()["moments"]
    assert {m["video"] for m in videos} == set(ids.values())


@pytest.mark.parametrize(
    "query",
    ["красный круг", "红色圆圈", "دائرة حمراء", "🔴", "a\x00red\x1fcircle", "ＲＥＤ", "e\u0301\u0302\u0303" * 20],
    ids=["russian", "chinese", "arabic", "emoji", "control", "wide", "marks"],
)
def test_search_takes_any_language(api, query):
    answer = api.get("/api/search", params={"q": query, "top": 3})
    assert answer.status_code == 200 and answer.json()["moments"]


def test_search_ignores_what_cannot_be_seen(api):
    assert (
        api.get("/api/search", params={"q": "a\x00red\ncircle"}).json()["moments"]
        == (api.get("/api/search", params={"q": "a red circle"}).json()["moments"])
    )


def test_search_says_when_a_text_was_cut(api):
    long = "a red circle and " * 30
    assert "longer than the model reads" in api.get("/api/search", params={"q": long}).json()["note"]
    assert api.get("/api/search", params={"q": "a red circle"}).json()["note"] is None


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [
        ("/api/search", 422, "query is empty"),
        ("/api/search?q=%20%00", 422, "query is empty"),
        ("/api/search?q=-people", 422, "only what to leave out"),
        ("/api/search?q=" + "word+" * 10_000, 422, "10000 words"),
        ("/api/search?q=" + "x" * 2001, 422, "2001 letters"),
        ("/api/search?q=a" * 1 + "&q=a" * 9, 422, "at most 8 texts"),
        ("/api/search?q=a&top=1000000000000000000000", 422, "top: "),
        ("/api/search?q=a&top=0", 422, "top: "),
        ("/api/search?q=a&top=many", 422, "top: "),
        ("/api/search?q=a&level=frame", 422, "level: "),
        ("/api/search?q=a&level=clip", 422, "holds frames, not clips"),
        ("/api/search?q=a&collection=other", 422, "no collection other"),
        ("/api/search?q=a&after=2025-02-31", 422, "is no date"),
        ("/api/search?q=a&after=yesterday", 422, "after: 'yesterday' is not a date"),
        ("/api/search?like=movie.mp4@30", 422, "is not the id of a video and seconds"),
        ("/api/search?q=a&after=2025-02-03&before=2025-02-01", 422, "no video"),
        ("/api/search?q=a&min_seconds=nan", 422, "min_seconds"),
        ("/api/search?q=a&min_seconds=9&max_seconds=3", 422, "no video"),
        ("/api/search?like=1@x", 422, "like: "),
        ("/api/search?like=12345@1.0", 404, "no video 12345"),
        ("/api/search?q=a+-a&q=-a&q=-a&q=-a", 200, ""),
        ("/api/videos/1", 404, "no video 1"),
        ("/api/videos/99999999999999999999", 422, "video: "),
        ("/api/videos/..%2f..%2fetc%2fpasswd", 404, "nothing at"),
        ("/api/videos/abc", 422, "video: "),
        ("/api/videos?limit=0", 422, "limit: "),
        ("/api/jobs/0123456789abcdef", 404, "no job"),
        ("/api/nothing", 404, "nothing at /api/nothing"),
        ("/static/../../../pyproject.toml", 404, ""),
        ("/static/%2e%2e/app.py", 404, ""),
        ("/static/..%2fapp.py", 404, ""),
        ("/static/", 404, ""),
        ("/media/1", 404, "no video 1"),
        ("/media/%2fetc%2fpasswd", 404, ""),
    ],
)
def test_bad_requests_get_one_sentence(api, path, status, part):
    answer = api.get(httpx.URL(str(api.base_url)).copy_with(raw_path=path.encode()))
    assert answer.status_code == status, answer.text[:200]
    if status != 200:
        assert set(answer.json()) == {"detail"}
        assert part in answer.json()["detail"] and "\n" not in answer.json()["detail"]


# --- videos ----------------------------------------------------------------------------------------------


def test_videos_are_listed(api, ids):
    listed = api.get("/api/videos").json()
    assert listed["total"] == 2 and {each["name"]: each["video"] for each in listed["videos"]} == ids
    assert [each["name"] for each in api.get("/api/videos?limit=1&offset=1").json()["videos"]] == [FIRST]
    assert api.get("/api/videos?q=31001").json()["total"] == 1
    one = api.get(f"/api/videos/{ids[FIRST]}").json()
    assert one in listed["videos"]
    assert (one["codec"], one["width"], one["height"], one["playable"], one["available"]) == (
        "h264", 160, 120, True, True,
    )  # fmt: skip
    assert one["frames"] == 36 and one["duration"] == pytest.approx(12, abs=0.2)


def test_thumbnails_show_their_frame(api, ids):
    answer = api.get(f"/api/videos/{ids[FIRST]}/thumbnail?t=4.1")
    assert answer.headers["content-type"] == "image/jpeg" and "immutable" in answer.headers["cache-control"]
    shown = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB").resize((40, 30)), float)
    frames = [
        np.asarray(Image.open(io.BytesIO(picture(FIRST, t))).resize((40, 30)), float) for t in (0.0, 4.0, 8.0, 11.0)
    ]
    assert np.argmin([np.abs(shown - frame).mean() for frame in frames]) == 1


def test_curve_is_that_of_the_library(api, library, model, ids):
    id = int(ids[FIRST])
    times, scores = library.curve(id, model.encode_text(["a blue square"])[0])
    answer = api.get(f"/api/videos/{id}/curve", params={"q": "a blue square"}).json()
    np.testing.assert_allclose(answer["times"], times, atol=1e-4)
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-3)
    assert answer["roles"] == library.roles(id) and answer["duration"] == pytest.approx(12, abs=0.2)
    assert answer["moments"] and max(band["score"] for band in answer["moments"]) <= max(answer["scores"])
    few = api.get(f"/api/videos/{id}/curve", params={"q": "a blue square", "points": 5}).json()
    assert len(few["times"]) == len(few["scores"]) == len(few["roles"]) == 5
    assert max(few["scores"]) == pytest.approx(max(answer["scores"]))
    for t, s, r in zip(few["times"], few["scores"], few["roles"], strict=True):
        row = answer["times"].index(t)
        assert (answer["scores"][row], answer["roles"][row]) == (s, r)


def test_status_counts(api):
    status = api.get("/api/status").json()
    assert (status["videos"], status["frames"], status["hours"]) == (2, 72, pytest.approx(24 / 3600, abs=1e-3))
    assert status["index"] == {"kind": "exact", "frames": 72, "indexed": 0, "building": False}
    assert status["model"] == "bundled" and status["can_add"] and not status["token"]
    assert status["max_upload"] == 2 * 10**9 and len(status["collections"]) == 1


def test_fifty_clients_at_once_get_the_same_as_one(server, api):
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "white") for shape in ("circle", "square")]

    async def ask():
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            params = [{"q": texts[number % len(texts)] + " here", "top": 3} for number in range(50)]
            return await asyncio.gather(*(client.get("/api/search", params=each) for each in params))

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200}
    for number, answer in enumerate(answers[: len(texts)]):
        alone = api.get("/api/search", params={"q": texts[number] + " here", "top": 3}).json()
        assert pairs(alone["moments"]) == pairs(answer.json()["moments"])


def test_query_finds_what_the_world_knows(api):
    """The synthetic world tells what is on screen when: the best event's own words find it."""
    events = [json.loads(line) for line in (rendered() / "annotations.jsonl").read_text().splitlines()]
    found = 0
    for event in events:
        best = api.get("/api/search", params={"q": event["query"], "top": 3}).json()["moments"]
        windows = event["relevant_windows"]
        found += any(
            m["name"].startswith(event["vid"]) and any(m["start"] < end and start < m["end"] for start, end in windows)
            for m in best
        )
    assert found >= 0.7 * len(events)


# --- pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_work_offline_and_without_inline_code(api, path):
    answer = api.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == CSP
    text = answer.text
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", text)
    for link in re.findall(r"(?:src|href)=\"(/[^\"]*)\"", text):
        assert api.get(link).status_code == 200, link


def test_static_files_are_asked_for_anew_and_typed(api):
    script = api.get("/static/app.js")
    assert "javascript" in script.headers["content-type"] and script.headers["cache-control"] == "no-cache"
    assert api.get("/static/app.js", headers={"if-none-match": script.headers["etag"]}).status_code == 304
    assert api.get("/favicon.ico").headers["content-type"].startswith("image/svg+xml")


def test_every_answer_has_the_headers(api, ids):
    for path in ("/", "/api/status", "/api/nothing", f"/media/{ids[FIRST]}", "/static/app.js"):
        headers = api.get(path).headers
        assert headers["content-security-policy"] == CSP and headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer" and headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert re.fullmatch("[0-9a-f]{12}", headers["x-request-id"]) and "server" not in headers


def test_openapi_declares_what_is_promised(api):
    document = api.get("/openapi.json").json()
    assert {"/api/search", "/api/search/image", "/api/videos", "/media/{video}", "/api/encode", "/api/jobs/{job}"} <= (
        set(document["paths"])
    )
    assert "HTTPValidationError" not in json.dumps(document)


# --- who is answered -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"host": "evil.example:8765"}, 400),
        ({"host": "127.0.0.1.evil.example"}, 400),
        ({"host": "127.0.0.2"}, 400),
        ({"host": "[::1]:1"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "localhost:9000"}, 200),
        ({"host": "localhost@evil.example"}, 400),
        ({"host": "["}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
    ids=str,
)
def test_only_own_pages_and_own_names_are_answered(api, headers, status):
    assert api.get("/api/status", headers=headers).status_code == status


def test_foreign_pages_may_link_to_the_page_but_not_embed_or_post(api, ids):
    cross = {"sec-fetch-site": "cross-site"}
    assert api.get("/", headers={**cross, "sec-fetch-mode": "navigate"}).status_code == 200
    assert api.get("/static/app.js", headers={**cross, "sec-fetch-mode": "no-cors"}).status_code == 403
    assert api.get(f"/media/{ids[FIRST]}", headers={**cross, "sec-fetch-mode": "navigate"}).status_code == 403
    for headers in ({"origin": "http://evil.example"}, cross, {"origin": "null"}):
        assert api.delete(f"/api/videos/{ids[FIRST]}", headers=headers).status_code == 403
        assert api.post("/api/encode", json={"path": "x"}, headers=headers).status_code == 403
    assert api.get(f"/api/videos/{ids[FIRST]}").status_code == 200


async def echo(scope, receive, send):
    """Reads the body, answers with its length."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@contextmanager
def guarded(app=echo, **rules):
    settings = {"hosts": frozenset({"test"}), "addresses": False, "token": None, "cookie": "c", "bodies": {}, **rules}
    transport = httpx.ASGITransport(Guard(app, Rules(**settings)))

    class Sync:
        def request(self, method, path, **options):
            async def ask():
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    return await client.request(method, path, **options)

            return asyncio.run(ask())

    yield Sync().request


TOKEN = "correct-horse-battery"


def test_token_opens_by_header_and_by_cookie():
    with guarded(token=TOKEN) as request:
        refused = request("GET", "/api/status")
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert request("GET", "/").status_code == request("GET", "/static/app.js").status_code == 200
        for wrong in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é".encode()):
            assert request("GET", "/api/status", headers={"authorization": wrong}).status_code == 401
        assert request("GET", "/api/status", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert request("GET", f"/api/status?token={TOKEN}").status_code == 401  # in addresses for the page alone
        assert request("GET", "/?token=wrong").status_code == 401
        handed = request("GET", f"/?q=red+circle&token={TOKEN}")
        assert handed.status_code == 303 and handed.headers["location"] == "/?q=red+circle"
        cookie = handed.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        value = cookie.partition(";")[0]
        assert request("GET", "/api/status", headers={"cookie": value}).status_code == 200
        assert request("GET", "/api/status", headers={"cookie": value + "0"}).status_code == 401
        assert request("POST", "/api/x", headers={"cookie": value, "origin": "http://evil"}).status_code == 403


def test_bodies_are_limited_whatever_the_header_says():
    async def pieces(count):
        for _ in range(count):
            yield bytes(1000)

    with guarded(bodies={"/large": 5000}) as request:
        assert request("POST", "/large", content=bytes(5000)).text == "5000"
        assert request("POST", "/large", content=bytes(5001)).status_code == 413
        assert request("POST", "/large", content=pieces(5)).text == "5000"  # chunked: no length at all
        assert request("POST", "/large", content=pieces(6)).status_code == 413
        assert request("POST", "/other", content=pieces(66)).status_code == 413


def test_unforeseen_errors_say_nothing_of_the_inside(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("secret /path")

    with guarded(broken) as request:
        answer = request("GET", "/api/status")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert answer.headers["x-request-id"] in caplog.text and "secret" in caplog.text


def test_allowed_hosts():
    assert allowed_hosts("127.0.0.1", ["Nas.Local"]) == (
        frozenset({"127.0.0.1", "localhost", "::1", "nas.local"}), False,
    )  # fmt: skip
    names, addresses = allowed_hosts("0.0.0.0", [])
    assert addresses and socket.gethostname().lower() in names


def test_connections_without_a_request_are_closed(monkeypatch):
    """A client that sends its header slower than anyone needs, and one that sends nothing."""
    monkeypatch.setattr(server_module, "_HEADER_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        echo, http=server_module._PatientNoMore, lifespan="off", log_config=None, timeout_keep_alive=1
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nSlow: ", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"):
            with socket.create_connection(listener.getsockname(), timeout=20) as client:
                client.sendall(sent)
                got = b""
                while piece := client.recv(4096):
                    got += piece
                assert got.count(b"200 OK") == sent.count(b"\r\n\r\n")
        with socket.create_connection(listener.getsockname(), timeout=20) as client:  # a slow body is another matter
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n12")
            time.sleep(0.6)
            client.sendall(b"34")
            assert b"200 OK" in client.recv(4096)
    finally:
        running.should_exit = True
        thread.join(20)


# --- starting and stopping -------------------------------------------------------------------------------


def test_an_empty_library_is_served(tmp_path):
    with in_process(tmp_path / "new", model="bundled") as api:
        status = api.get("/api/status").json()
        assert (status["videos"], status["index"], status["can_add"], status["model"]) == (0, None, True, "bundled")
        answer = api.get("/api/search?q=red").json()
        assert answer["moments"] == [] and "empty" in answer["note"]
        assert api.get("/api/videos").json() == {"videos": [], "total": 0}
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, "PNG")
        assert api.post("/api/search/image", files={"image": ("x", image.getvalue())}).json()["moments"] == []
    assert not (tmp_path / "new").exists()  # nothing is made before something is added


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--library", "{foreign}"], "holds"),
        (["--library", "{new}", "--token", "short"], "--token must be"),
        (["--library", "{new}", "--port", "70000"], "--port must be"),
        (["--library", "{new}", "--port", "{taken}"], "choose another with --port"),
        (["--library", "{new}", "--max-upload", "lots"], "--max-upload must be"),
        (["--library", "{new}", "--videos", "/does/not/exist"], "is not a folder"),
        (["--library", "{new}", "--encoder", "vidtldr"], "--encoder must be"),
        (["--library", "{archive}", "--collection", "other"], "holds no collection other"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, archive, server, monkeypatch, capsys, options, part):
    (tmp_path / "notes").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    places = {"foreign": tmp_path / "notes", "new": tmp_path / "new", "taken": server.port, "archive": archive}
    monkeypatch.setattr(sys, "argv", ["everyframe", "serve", *(option.format(**places) for option in options)])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr()
    assert stopped.value.code == 1 and told.out == ""
    assert part in told.err and told.err.startswith("everyframe: ") and told.err.count("\n") == 1, told.err


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5KB", 1500), ("77", 77)])
def test_parse_size(text, size):
    assert parse_size(text) == size


def test_settings_check_themselves(tmp_path):
    for wrong in ({"port": -1}, {"token": "a b c d e f g h"}, {"max_upload": 0}, {"fps": 0.0}, {"stall_seconds": -1}):
        with pytest.raises(ValueError, match="--"):
            Settings(library=str(tmp_path), **wrong)


def test_a_missing_model_leaves_the_rest_working(tmp_path, monkeypatch, library):
    """Features of a model that is nowhere: 503 for texts, but like= and videos answer."""
    feats = library.features(library.videos()[0].id)
    model = {**feats.model, "id": str(tmp_path / "no-such-model"), "weights_sha256": "0" * 64}
    with Library(tmp_path / "orphan") as orphan:
        orphan.add(replace(feats, model=model))
    with in_process(tmp_path / "orphan") as api:
        refused = api.get("/api/search?q=red")
        assert refused.status_code == 503 and "no-such-model" in refused.json()["detail"]
        video = api.get("/api/videos").json()["videos"][0]["video"]
        assert api.get(f"/api/search?like={video}@1").json()["moments"]
        late = api.get(f"/api/search?like={video}@3000")
        assert late.status_code == 422 and "not at 3000 s" in late.json()["detail"]
        missing = api.get(f"/api/videos/{video}/thumbnail")
        assert missing.status_code == 404 and "no pictures" in missing.json()["detail"]


def test_two_collections_are_never_mixed(library, tmp_path):
    feats = [library.features(record.id) for record in library.videos()]
    with Library(tmp_path / "two") as two:
        two.add(feats[0])
        two.add(feats[1])
        two.add(replace(feats[0], settings={**feats[0].settings, "tolerance": 9.0}))
        small = min(two.collections(), key=lambda each: each.num_videos)
    with in_process(tmp_path / "two") as api:
        every = api.get("/api/search?q=circle&top=50").json()
        assert every["collection"]["id"] != small.id and len({m["video"] for m in every["moments"]}) == 2
        own = api.get(f"/api/search?q=circle&top=50&collection={small.id}").json()
        assert own["collection"]["id"] == small.id and len({m["video"] for m in own["moments"]}) == 1
        video = own["moments"][0]["video"]
        like = api.get(f"/api/search?like={video}@1")
        assert like.status_code == 200 and like.json()["collection"]["id"] == small.id, like.text
        mixed = api.get(f"/api/search?like={video}@1&collection={every['collection']['id']}")
        assert mixed.status_code == 422 and "not in the collection" in mixed.json()["detail"]
    with in_process(tmp_path / "two", collection=small.id) as api:
        assert api.get("/api/search?q=circle").json()["collection"]["id"] == small.id


def test_a_damaged_library_is_a_sentence_not_a_crash(archive, tmp_path):
    broken = Path(shutil.copytree(archive, tmp_path / "broken"))
    for file in broken.glob("frames_*.lance/data/*"):
        file.write_bytes(b"garbage" * 100)
    with in_process(broken) as api:
        answer = api.get("/api/search?q=red")
        assert answer.status_code == 503 and "damaged" in answer.json()["detail"]
        assert api.get("/api/videos").json()["total"] == 2


def test_a_video_can_be_removed(archive, tmp_path):
    copy = Path(shutil.copytree(archive, tmp_path / "copy"))
    with in_process(copy) as api:
        first = api.get("/api/search?q=circle&top=50").json()
        video = api.get("/api/videos").json()["videos"][0]["video"]
        assert any(m["video"] == video for m in first["moments"])
        assert api.get("/api/search?q=circle&top=50").json()["moments"] == first["moments"]  # remembered
        assert api.delete(f"/api/videos/{video}").status_code == 204
        assert api.delete(f"/api/videos/{video}").status_code == 404
        assert api.get("/api/videos").json()["total"] == 1
        left = api.get("/api/search?q=circle&top=50").json()["moments"]
        assert left and all(m["video"] != video for m in left)
        with Library(copy) as other:  # another writer; what was remembered does not outlive half a second
            other.remove(int(left[0]["video"]))
        deadline = time.monotonic() + 30
        while api.get("/api/search?q=circle&top=50").json()["moments"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert all((rendered() / name).exists() for name in (FIRST, SECOND))  # the file was not ours to delete
