"""Videos that are added through the server: real uploads to a real server, whose child processes are really killed."""

import asyncio
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

import everyframe as ef
from everyframe.library import Library
from everyframe.serve.children import Child, ChildError
from everyframe.serve.encoding import Reading
from everyframe.serve.errors import TooMany
from everyframe.serve.files import Workplace, safe_name
from everyframe.serve.jobs import Jobs, Work
from everyframe.serve.settings import Limits
from everyframe.serve.sniff import ISO, MATROSKA, MPEG_TS, picture_demuxer, video_container
from everyframe.synthetic import synthesize
from everyframe.video import write_video
from serve_cases import PATIENCE, in_process, made_library, rendered, running

FORM = {"content-type": "multipart/form-data; boundary=x"}
FINAL = ("done", "failed", "cancelled")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder that the server may take videos from, with one that the library does not hold."""
    folder = tmp_path_factory.mktemp("videos")
    list(synthesize(folder, videos=1, seconds=6, seed=77, fps=8, size=(160, 120)))
    (folder / "synthetic-77000.mp4").rename(folder / "new video.mp4")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return made_library(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def server(archive, videos):
    """Open to other machines, so that it makes up a token and prints it with its address."""
    options = ["--host", "0.0.0.0", "--allow-host", "nas.local", "--max-upload", "3MB", "--stall", "30"]
    with running(archive, "--videos", str(videos), *options) as server:
        yield server
        assert server.stop(signal.SIGINT) == 0  # Ctrl-C
        assert not any("Traceback" in line for line in server.errors), server.errors


@pytest.fixture(scope="module")
def bearer(server):
    return {"authorization": f"Bearer {server.url.partition('/?token=')[2]}"}


@pytest.fixture(scope="module")
def api(server, bearer):
    base = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=base, headers=bearer, timeout=PATIENCE) as client:
        yield client


def test_other_machines_need_the_token(server, bearer):
    base = f"http://127.0.0.1:{server.port}"
    token = bearer["authorization"].partition(" ")[2]
    assert len(token) >= 24 and httpx.get(f"{base}/api/status").status_code == 401
    for host, status in (("nas.local", 200), ("192.0.2.7:99", 200), ("evil.example", 400)):
        assert httpx.get(f"{base}/api/status", headers={**bearer, "host": host}).status_code == status
    with httpx.Client(base_url=base, follow_redirects=True) as client:
        assert client.get(f"/?token={token}").status_code == 200
        assert client.get("/api/status").json()["token"] is True
    document = httpx.get(f"{base}/openapi.json", headers=bearer).json()
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}


def upload(api, data, name="x.mp4"):
    return api.post("/api/encode", files={"file": (name, data)})


def wait(api, job, states=FINAL, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = api.get(f"/api/jobs/{job}").json()
        if found["state"] in states:
            return found
        time.sleep(0.05)
    raise AssertionError(f"the job is not {states} after {seconds} s: {found}")


def fresh(videos, number):
    """The video with a tail that players pass over: another file, the same pictures."""
    data = (videos / "new video.mp4").read_bytes()
    return data + len(b"x" * 24).to_bytes(4, "big") + b"free" + number.to_bytes(16, "big")


def partials(archive):
    return [path for path in (archive / "uploads" / ".partial").rglob("*") if path.is_file() and path.name != "lock"]


def test_an_upload_is_encoded_and_found(api, archive, videos, server):
    """Progress by server-sent events until it is done; then it is what ef.encode_video gives, and is searched."""
    data = (videos / "new video.mp4").read_bytes()
    started = upload(api, data, "../../etc/Ferien<b>.mp4")
    assert started.status_code == 202, started.text
    seen = []
    with api.stream("GET", started.json()["events"]) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]
    for event, data_line in zip(lines[::2], lines[1::2], strict=True):
        assert event == "event: progress" and data_line.startswith("data: ")
        seen.append(json.loads(data_line[6:]))
    assert [each["progress"] for each in seen] == sorted(each["progress"] for each in seen)
    last = seen[-1]
    assert (last["state"], last["error"], last["frames"], last["progress"]) == ("done", None, 18, 1.0), last
    assert {each["state"] for each in seen} <= {"queued", "encoding", "adding", "done"}
    video = api.get(f"/api/videos/{last['video']}").json()
    assert video["name"] == "Ferien_b_.mp4" and Path(video["path"]).parent == archive / "uploads"
    assert Path(video["path"]).read_bytes() == data and not partials(archive)
    encoder = ef.ReuseEncoder(ef.load("bundled", device="cpu"), plan="adaptive")
    wanted = ef.encode_video(video["path"], encoder)
    with Library(archive) as library:
        feats = library.features(int(last["video"]))
        assert library.thumbnails(int(last["video"]))
        assert len(library.collections()) == 1  # read as the others were
    np.testing.assert_allclose(feats.embeddings.astype(np.float32), wanted.embeddings, atol=2e-3)
    np.testing.assert_array_equal(feats.times, wanted.times)
    moments = api.get("/api/search", params={"like": f"{last['video']}@3", "top": 50}).json()["moments"]
    assert moments[0]["video"] == last["video"] and len({each["video"] for each in moments}) == 3
    assert api.get(f"/media/{last['video']}").content == data
    again = upload(api, data, "other name.mp4").json()  # known by its content: nothing is encoded
    assert again["state"] == "done"
    assert api.get(f"/api/jobs/{again['job']}").json()["video"] == last["video"]
    Path(video["path"]).unlink()
    assert not api.get(f"/api/videos/{last['video']}").json()["available"]
    assert upload(api, data, "back again.mp4").json()["state"] == "done"  # its file is gone: the upload takes its place
    video = api.get(f"/api/videos/{last['video']}").json()
    assert video["available"] and video["name"] == "back again.mp4"
    assert api.get(f"/media/{last['video']}").content == data
    assert api.delete(f"/api/videos/{last['video']}").status_code == 204
    assert not Path(video["path"]).exists() and not list((archive / "uploads").glob("*.mp4"))
    assert not server.children()


def test_a_killed_and_a_wedged_job_leave_the_server_working(api, archive, videos, server):
    killed = upload(api, fresh(videos, 1)).json()["job"]
    wedged = upload(api, fresh(videos, 2)).json()["job"]  # waits for the first: one at a time
    wait(api, killed, ("encoding",))
    assert api.get(f"/api/jobs/{wedged}").json()["state"] == "queued"
    [child] = children(server)
    os.kill(child, signal.SIGKILL)
    failed = wait(api, killed)
    assert failed["state"] == "failed" and "it was killed" in failed["error"]
    wait(api, wedged, ("encoding",))
    [child] = children(server)
    os.kill(child, signal.SIGSTOP)
    assert api.get("/api/search?q=red").status_code == 200
    assert api.delete(f"/api/jobs/{wedged}").status_code == 204  # ends what no longer listens
    assert api.get(f"/api/jobs/{wedged}").json()["state"] == "cancelled"
    assert not children(server, 0) and not partials(archive)
    assert api.get("/api/status").json()["videos"] == 2


def children(server, count=1):
    """Child processes, once there are that many: one ends a moment after its job."""
    deadline = time.monotonic() + PATIENCE
    while len(found := server.children()) != count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(found) == count
    return found


def test_jobs_can_be_cancelled(api, archive, videos, server):
    first, second = (upload(api, fresh(videos, number)).json()["job"] for number in (3, 4))
    wait(api, first, ("encoding",))
    [child] = children(server)
    assert api.delete(f"/api/jobs/{second}").status_code == 204  # while it waits
    assert api.delete(f"/api/jobs/{first}").status_code == 204  # while it works
    assert [api.get(f"/api/jobs/{job}").json()["state"] for job in (first, second)] == ["cancelled"] * 2
    assert not Path(f"/proc/{child}").exists() and not partials(archive)
    with api.stream("GET", f"/api/jobs/{first}/events") as stream:
        assert '"cancelled"' in stream.read().decode()
    assert first in [job["job"] for job in api.get("/api/jobs").json()["jobs"]]
    assert api.delete(f"/api/jobs/{first}").status_code == 204  # forgets it
    assert api.get(f"/api/jobs/{first}").status_code == 404


def archived(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


REFUSED = {
    "playlist": b"#EXTM3U\n#EXTINF:10\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "dash": b'<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>',
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "zip": archived("x.mp4"),
    "text": b"hello " * 1000,
    "page": b"<html><script>alert(1)</script></html>",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "empty": b"",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_container_of_video_is_refused(api, archive, kind):
    answer = upload(api, REFUSED[kind], "holiday.mp4")
    assert answer.status_code == 415 and "MP4/MOV, Matroska" in answer.json()["detail"]
    assert not partials(archive)


def test_polyglots_are_opened_by_the_reader_of_their_container_alone(api, archive, tmp_path):
    """Begins like MP4, and has all that FFmpeg's DASH and HLS readers look for."""
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    data = b"\x00\x00\x00\x20ftypisom" + bytes(20) + b"#EXTM3U\n" + f"<MPD>file://{secret}</MPD>".encode() * 50
    job = wait(api, upload(api, data).json()["job"])
    assert job["state"] == "failed" and job["error"].startswith("x.mp4")
    assert str(archive) not in job["error"] and not partials(archive)


@pytest.mark.parametrize(
    ("request_", "status", "part"),
    [
        ({"files": {"other": ("x.mp4", b"x")}}, 422, "field named file"),
        ({"data": {"file": "no file"}, "files": {"x": b""}}, 422, "field named file"),
        (
            {"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            "field named file",
        ),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 422, "field named file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "multipart"),
        ({"content": b"x", "headers": {"content-type": "video/mp4"}}, 415, "multipart"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "not JSON"),
        ({"json": {"path": 5}}, 422, "must be JSON"),
        ({"json": ["path"]}, 422, "must be JSON"),
        ({"json": {"path": "x", "more": 1}}, 422, "must be JSON"),
        ({"json": {"path": "x" * 70_000}}, 413, "longer"),
        ({"json": {"path": "/etc/passwd"}}, 404, "--videos"),
        ({"json": {"path": "../../../../etc/passwd"}}, 404, "--videos"),
        ({"json": {"path": "a\x00b"}}, 404, "--videos"),
        ({"json": {"path": "."}}, 404, "--videos"),
        ({"json": {"path": "missing.mp4"}}, 404, "--videos"),
    ],
)
def test_bad_requests_to_encode(api, request_, status, part):
    answer = api.post("/api/encode", **request_)
    assert answer.status_code == status and part in answer.json()["detail"], answer.text


def test_paths_stay_below_the_folders(api, videos, tmp_path):
    """Neither a link out of the folder, nor a pipe or a text in it, is opened."""
    outside = tmp_path / "outside.mp4"
    outside.write_bytes((videos / "new video.mp4").read_bytes())
    (videos / "link.mp4").symlink_to(outside)
    (videos / "folder").symlink_to(tmp_path)
    os.mkfifo(videos / "pipe.mp4")
    (videos / "notes.mp4").write_text("#EXTM3U")
    try:
        for path in ("link.mp4", "folder/outside.mp4", str(outside), "pipe.mp4"):
            assert api.post("/api/encode", json={"path": path}).status_code == 404, path
        assert api.post("/api/encode", json={"path": "notes.mp4"}).status_code == 415
    finally:
        for name in ("link.mp4", "folder", "pipe.mp4", "notes.mp4"):
            (videos / name).unlink()


def test_uploads_are_bounded_whatever_they_say(api, archive, server, bearer):
    """By the header, by what comes without one, and by a header that lies."""
    large = b"\x00\x00\x00\x18ftypisom" + bytes(3_200_000)
    assert upload(api, large).status_code == 413

    def pieces():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.mp4"\r\n\r\n'
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = api.post("/api/encode", content=pieces(), headers=headers)
    assert answer.status_code == 413 and "3.1 MB" in answer.json()["detail"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        head = f"POST /api/encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: {headers['content-type']}\r\n"
        head += f"Authorization: {bearer['authorization']}\r\n"
        client.sendall(f"{head}Content-Length: 500\r\n\r\n".encode() + b"".join(pieces())[:500])
        client.shutdown(socket.SHUT_WR)  # then it goes away in the middle
        while client.recv(4096):
            pass
    deadline = time.monotonic() + PATIENCE
    while partials(archive) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not partials(archive) and api.get("/api/status").status_code == 200


def test_a_path_is_encoded_where_it_lies(api, archive, videos):
    """And the server that is killed in the middle of it leaves the library as it was."""
    before = api.get("/api/status").json()["videos"]
    job = wait(api, api.post("/api/encode", json={"path": "new video.mp4"}).json()["job"])
    assert job["state"] == "done", job
    video = api.get(f"/api/videos/{job['video']}").json()
    assert video["path"] == os.path.realpath(videos / "new video.mp4")
    assert api.get("/api/status").json()["videos"] == before + 1
    assert api.delete(f"/api/videos/{job['video']}").status_code == 204
    assert (videos / "new video.mp4").exists()  # not ours to delete


def test_a_server_killed_at_work_leaves_nothing_behind(archive, videos, tmp_path):
    """While one job waits to write to the library, which another process has locked, and one encodes."""
    copy = Path(shutil.copytree(archive, tmp_path / "copy"))
    with running(copy, "--jobs", "2") as server, (copy / "writer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as api:
            before = api.get("/api/videos").json()["total"]
            adding = upload(api, fresh(videos, 8)).json()["job"]
            wait(api, adding, ("adding",))
            refused = api.delete(f"/api/jobs/{adding}")
            assert refused.status_code == 409 and "just being added" in refused.json()["detail"]
            wait(api, upload(api, fresh(videos, 9)).json()["job"], ("encoding",))
        [child] = children(server)
        server.stop(signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{child}").exists()  # children go with their server
    assert partials(copy)
    with Library(copy) as library:
        assert len(library.videos()) == before
        assert library.remove(library.videos()[0].id) == 1  # it can be written to
    Workplace(str(copy), is_local=True).sweep()  # what the next server does first
    assert not partials(copy)


def test_sweeping_leaves_living_servers_alone(tmp_path):
    living = Workplace(str(tmp_path), is_local=True)
    folder = living.new_folder()
    (folder / "upload").write_bytes(b"x")
    Workplace(str(tmp_path), is_local=True).sweep()
    assert (folder / "upload").exists()
    living.close()
    assert not folder.exists()


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes; skips where this process may not mount one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_sentence(videos, tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        library = made_library(disk)
        with in_process(library) as api:
            answer = upload(api, fresh(videos, 5))
            assert answer.status_code == 507 and "disk" in answer.json()["detail"]
            assert not partials(library) and api.get("/api/search?q=red").status_code == 200


@contextmanager
def queue_of_jobs(removed, **options):
    """The queue without a server."""

    async def remove(folder):
        removed.append(folder)

    async def add(work):
        raise AssertionError("nothing is added")

    settings = {"at_once": 1, "waiting": 2, "stall_seconds": 0.3, **options}
    limits = Limits(memory_bytes=1 << 33, cpu_seconds=60, file_bytes=1 << 30)
    yield Jobs(add=add, remove=remove, limits=limits, **settings)


def work(source="x.mp4", folder="f", demuxer=ISO.demuxer):
    reading = Reading(facts={"id": "bundled"})
    return Work(name="x.mp4", source=Path(source), folder=Path(folder), demuxer=demuxer, reading=reading)


def test_a_child_that_says_nothing_is_ended(videos, tmp_path):
    """Stopped as soon as it runs, so that it never does."""

    async def wedge():
        removed = []
        with queue_of_jobs(removed) as jobs:
            job = jobs.submit(work(videos / "new video.mp4", tmp_path))
            while job.pid is None:
                await asyncio.sleep(0.001)
            pid = job.pid
            os.kill(pid, signal.SIGSTOP)
            states = [each.state async for each in jobs.watch(job) if each is not None]
            assert states[-1] == "failed" and job.error == "x.mp4: it made no progress for 1.5 seconds and was ended"
            assert not Path(f"/proc/{pid}").exists() and removed == [tmp_path]

    asyncio.run(wedge())


def test_a_child_keeps_to_its_limits(videos, tmp_path):
    """Memory and file size: the task is a sentence, not a crash; and what it reads is only what it was told."""

    async def run(task, **limits):
        allowed = {"memory_bytes": 1 << 33, "cpu_seconds": 60, "file_bytes": 1 << 30, **limits}
        child = await Child.start("preview", task, Limits(**allowed))
        try:
            async for _ in child.answers(PATIENCE):
                pass
        finally:
            await child.close()

    source, out = str(videos / "new video.mp4"), str(tmp_path / "out.mp4")
    task = {"source": source, "out": out, "demuxer": ISO.demuxer}
    for limits in ({"memory_bytes": 20_000_000}, {"file_bytes": 2000}):
        with pytest.raises(ChildError):
            asyncio.run(run(task, **limits))
    with pytest.raises(ChildError, match=r"new video\.mp4"):
        asyncio.run(run({**task, "demuxer": "avi"}))
    assert list(tmp_path.iterdir()) == []
    asyncio.run(run(task))
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_the_queue_is_bounded():
    async def fill():
        removed = []
        with queue_of_jobs(removed, at_once=0, waiting=3) as jobs:
            first, *_ = [jobs.submit(work()) for _ in range(3)]
            with pytest.raises(TooMany, match="3 videos are being added"):
                jobs.submit(work())
            await jobs.cancel(first)
            jobs.submit(work())
            await jobs.close()
            assert removed == [Path("f")] * 4 and {job.state for job in jobs.list()} == {"cancelled"}

    asyncio.run(fill())


@pytest.mark.parametrize(
    ("given", "container", "expected"),
    [
        ("holiday.MOV", ISO, "holiday.MOV"),
        ("../../etc/passwd", ISO, "passwd.mp4"),
        ("C:\\videos\\a b.mkv", MATROSKA, "a b.mkv"),
        ("page.html", ISO, "page.mp4"),
        (".hidden.mp4", ISO, "hidden.mp4"),
        ("...", ISO, "video.mp4"),
        ("", MPEG_TS, "video.ts"),
        ("a\x00b\n<c>.mp4", ISO, "a_b__c_.mp4"),
        ("été – 夏.webm", MATROSKA, "été _ 夏.webm"),
        ("x" * 400 + ".mp4", ISO, "x" * 120 + ".mp4"),
        ("夏" * 100, ISO, "夏" * 40 + ".mp4"),
    ],
)
def test_names_are_made_safe(given, container, expected):
    assert safe_name(given, container) == expected
    assert len(safe_name(given, container).encode()) < 200


def test_containers_are_told_by_their_first_bytes(tmp_path):
    """Of files that FFmpeg wrote; each is then read by the demuxer that was named."""
    import av

    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), np.uint8)
    for suffix, codec in ((".mp4", "libx264"), (".mov", "libx264"), (".mkv", "libx264"), (".webm", "libvpx"),
                          (".avi", "mpeg4"), (".ts", "mpeg2video"), (".mpg", "mpeg2video"), (".flv", "flv"),
                          (".wmv", "wmv2"), (".m2ts", "libx264")):  # fmt: skip
        path = tmp_path / f"x{suffix}"
        write_video(path, frames, fps=25, codec=codec)
        container = video_container(path.read_bytes()[:1024])
        assert container is not None and suffix in container.suffixes, suffix
        with av.open(str(path)) as opened:
            assert opened.format.name == container.demuxer
    assert video_container(b"") is None and picture_demuxer(b"") is None
    assert picture_demuxer(b"RIFF\x00\x00\x00\x00WEBPVP8 ") == "webp_pipe"
    assert video_container(rendered().joinpath("synthetic-31000.mp4").read_bytes()[:1024]) is ISO
