"""everyframe serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everyframe import console
from everyframe.cli.app import app
from everyframe.cli.options import DeviceOption, FpsOption, given


@app.command()
def serve(
    library: Annotated[str, typer.Option("--library", help="Folder of the archive, or its s3:// or gs:// address.")],
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on; others than this machine's own need a token. (127.0.0.1)"),
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="0 lets the system choose. (default: 8765)")] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="What clients have to send. (default: made up where one is needed)")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name under which the server may be reached.")
    ] = None,
    videos: Annotated[
        list[Path] | None, typer.Option("--videos", help="Folder whose videos may be added by their path.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", help="What to search where a request names none.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For queries and new videos. (default: that of the collection)")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="How new videos are read: reuse, residual or dense. (default: as those of the collection)"
        ),
    ] = None,
    fps: FpsOption = None,
    device: DeviceOption = None,
    max_upload: Annotated[str, typer.Option("--max-upload", help="Largest video taken by upload.")] = "2GB",
    jobs: Annotated[int | None, typer.Option("--jobs", help="Videos encoded at once. (default: 1)")] = None,
    stall: Annotated[
        float | None, typer.Option("--stall", help="Seconds without progress that end a job. (default: 120)")
    ] = None,
) -> None:
    """Search an archive in a browser: a page, and the API it uses."""
    from everyframe.extras import require
    from everyframe.serve import ENCODERS, Settings, parse_size
    from everyframe.serve import serve as run

    if encoder not in (None, *ENCODERS):
        raise ValueError(f"--encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    settings = Settings(
        library=library,
        allow_hosts=tuple(allow_host or ()),
        videos=tuple(videos or ()),
        max_upload=parse_size(max_upload),
        **given(
            host=host,
            port=port,
            token=token,
            collection=collection,
            model=model,
            device=device,
            encoder=encoder,
            fps=fps,
            jobs_at_once=jobs,
            stall_seconds=stall,
        ),
    )
    require("lancedb", extra="serve")
    if settings.is_local and not Path(library).exists():
        console.say(f"{library} does not exist yet; the library begins with the first video that is added", error=True)
    run(settings, started=lambda address: print(f"everyframe serve: {address}", flush=True))
