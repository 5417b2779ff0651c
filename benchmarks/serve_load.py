"""Many clients at once against `everyframe serve`: latency, errors and the server's memory, over real HTTP.

    python benchmarks/serve_load.py --build 1000000 --keep DIR      # makes DIR/model and DIR/library, then measures
    python benchmarks/serve_load.py --keep DIR [--clients 50] [--seconds 20] [--out benchmarks/results/serve_load.json]
    python benchmarks/serve_load.py --library DIR --model NAME      # any library whose model can be loaded

The server is a process of its own with the machine's cores; the clients are coroutines of this process, which shares
them, one connection each. Each client asks for the moments of a text picked at random from 1,000, top 10, as the page
does, and reads the answer whole. Latency is from sending to the last byte.

closed loop   each client asks again at once: how much the server answers at most, and how long that makes clients wait
think time    each client waits a second between answer and question, as people do at least; or five, as most do

Each three times: with nothing remembered, so that every text goes through the text tower and the index; with the
vectors of texts remembered, so that every question goes through the index; and as the server is by default, which also
remembers answers for as long as the library stays as it is.

--build: the text tower has CLIP ViT-B's size (12 layers, width 512, 8 heads) with random weights and the bundled
model's tokenizer; the frames are those of benchmarks/search.py (`World`), whose content lies along the principal
directions of what that tower makes of the texts, so that different texts lead to different parts of the index. Every
video has a thumbnail each 10 s.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import everyframe as ef
from everyframe.library import Library, Thumbnail
from everyframe.synthetic import COLOURS, PATTERNS, SHAPES, SIZES
from everyframe.version import package_version
from everyframe.video import write_image
from search import FPS, HOUR, World

TEXTS = 1000
MEMORY = {
    "nothing remembered": {"query_cache": 0, "answer_cache": 0},
    "vectors remembered": {"query_cache": 4096, "answer_cache": 0},
    "answers remembered": {"query_cache": 4096, "answer_cache": 1000},
}
CODE = "from everyframe.serve import Settings, serve; import sys, json; serve(Settings(**json.loads(sys.argv[1])))"


def texts() -> list[str]:
    """What clients ask for; the same ones every time."""
    places = ("", " on the left", " on the right", " moves up", " moves down")
    every = [
        f"a {size} {colour} {pattern} {shape}{place}"
        for size, colour, pattern, shape, place in itertools.product(SIZES, COLOURS, PATTERNS, SHAPES, places)
    ]
    return random.Random(0).sample(every, TEXTS)


# --- a library -------------------------------------------------------------------------------------------


def make_model(folder: Path) -> None:
    """A CLIP whose text tower is as large as ViT-B's; its image tower is small, since no query goes through it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    bundled = ef.load("bundled", device="cpu").folder
    config = CLIPConfig.from_pretrained(str(bundled))
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = 512
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads = 512, 2048, 12, 8
    text.max_position_embeddings = 77
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(Path(str(bundled)) / name, folder / name)


class TextWorld(World):
    """Frames whose content lies where texts differ."""

    def __init__(self, model: ef.Model) -> None:
        super().__init__(model.dim)
        vectors = model.encode_text(texts()).cpu().numpy()
        centred = vectors - vectors.mean(axis=0)
        _, values, directions = np.linalg.svd(centred, full_matrices=False)
        scale = values[: self.rank] / np.linalg.norm(values[: self.rank])
        self.content = (directions[: self.rank] * scale[:, None]).astype(np.float32)
        self.rank = len(self.content)
        away = self.shared - directions[: self.rank].T @ (directions[: self.rank] @ self.shared)
        self.shared = (away / np.linalg.norm(away)).astype(np.float32)
        self.facts = {"id": model.name, "weights_sha256": model.weights_sha256, "dim": model.dim}
        self.facts |= {"projected": True, "preprocess": model.preprocess_settings}

    def video(self, number: int, frames: int = HOUR) -> Any:
        return replace(super().video(number, frames), model=self.facts)


def build(folder: Path, frames: int) -> None:
    (folder / "model").mkdir(parents=True, exist_ok=True)
    make_model(folder / "model")
    world = TextWorld(ef.load(str(folder / "model"), device="cpu"))
    jpeg = write_image(None, np.random.default_rng(0).integers(90, 160, (90, 160, 3), np.uint8), quality=40)
    pictures = [Thumbnail(float(second), jpeg) for second in range(0, int(HOUR / FPS), 10)]

    def made() -> Iterator[Any]:
        for number in range(max(1, round(frames / HOUR))):
            yield world.video(number), pictures

    with Library(folder / "library") as library:
        for _ in library.add_all(made()):
            pass
        library.refresh(wait=True)


# --- clients ---------------------------------------------------------------------------------------------


class Client:
    """One connection that asks one question after the other; HTTP by hand, so that it costs the server no core."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, text: str) -> int:
        """The status; 0 where the connection broke."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            query = urllib.parse.urlencode({"q": text, "top": 10})
            writer.write(f"GET /api/search?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(length.split(b":")[1]))
            if status == 200 and not json.loads(body)["moments"]:
                return 0
            return status
        except (OSError, asyncio.IncompleteReadError):
            self._streams = None
            return 0


async def load(port: int, clients: int, seconds: float, think: float) -> dict[str, Any]:
    pool, end = texts(), time.perf_counter() + seconds
    taken: list[float] = []
    errors = 0

    async def one(number: int) -> None:
        nonlocal errors
        rng, client = random.Random(number), Client(port)
        await asyncio.sleep(rng.random() * think)
        while time.perf_counter() < end:
            begin = time.perf_counter()
            status = await client.ask(rng.choice(pool))
            taken.append(time.perf_counter() - begin)
            errors += status != 200
            if think:
                await asyncio.sleep(think)

    await asyncio.gather(*(one(number) for number in range(clients)))
    p50, p95, p99 = np.percentile(np.array(taken) * 1000, [50, 95, 99])
    return {
        "requests": len(taken),
        "per_second": round(len(taken) / seconds, 1),
        "errors": errors,
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(1000 * max(taken), 1),
    }


def cpu_seconds(pid: int) -> float:
    """Of a process and its threads so far: what an answer costs, whatever else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [peak] = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return peak // 1024


def measure(
    library: Path, model: str | None, options: argparse.Namespace, name: str, **remembered: int
) -> dict[str, Any]:
    settings = {"library": str(library), "model": model, "port": 0, **remembered}
    command = [sys.executable, "-c", CODE, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            port = int(line.strip().rpartition(":")[2])
            asyncio.run(load(port, 4, 5.0, 0.0))  # the model loaded, files and index read once
            rows = {}
            for way, think in (("closed_loop", 0.0), ("think_1s", 1.0), ("think_5s", 5.0)):
                before = cpu_seconds(server.pid)
                row = asyncio.run(load(port, options.clients, options.seconds, think))
                row["cpu_ms_per_request"] = round(1000 * (cpu_seconds(server.pid) - before) / row["requests"], 1)
                rows[way] = row
                print(f"{name:20} {way:12} {row}", flush=True)
            alone = asyncio.run(load(port, 1, options.seconds / 2, 0.0))
            print(f"{name:20} one_client   {alone}", flush=True)
            return {**rows, "one_client": alone, "peak_memory_mb": peak_memory(server.pid)}
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=int, metavar="FRAMES")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--library", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.keep is None and options.library is None:
        parser.error("say where the library is (--library), or where one is made (--build FRAMES --keep DIR)")
    if options.build is not None:
        build(options.keep, options.build)
    library = options.library or options.keep / "library"
    model = options.model or (None if options.keep is None else str(options.keep / "model"))
    with Library(library) as opened:
        state = opened.index_state(max(opened.collections(), key=lambda each: each.num_frames).id)
    before = os.getloadavg()[0]
    record = {
        "settings": {"frames": state.frames, "index": state.kind, "clients": options.clients, "texts": TEXTS},
        **{name: measure(library, model, options, name, **sizes) for name, sizes in MEMORY.items()},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_before": round(before, 1),
        "versions": {"everyframe": package_version(), "python": platform.python_version()},
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
