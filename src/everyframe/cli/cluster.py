"""everyframe encode --cluster: its options, and what it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyframe import console
from everyframe.cli.cluster_view import SHOWN, Losses, clock, one_line, picture, show_report
from everyframe.cli.options import FORMATS, check_writable, given

if TYPE_CHECKING:
    from everyframe.cli.reading import Reader
    from everyframe.scale.events import Event

CLUSTER_FORMATS = (*FORMATS, "webdataset", "library")
_PANEL = "On a cluster"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=_PANEL)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The options of a cluster as they were set; None where they were not."""

    cluster: Annotated[
        str | None,
        _option(
            "--cluster",
            "Encode on Ray: auto (the cluster of this machine), local (start one here), HOST:PORT or ray://HOST:PORT.",
        ),
    ] = None
    id_column: Annotated[
        str | None, _option("--id-column", "Of a table: which column names the features. (default: the paths do)")
    ] = None
    segment_seconds: Annotated[
        float | None, _option("--segment-seconds", "Longer videos are read in pieces of about that. (default: 600)")
    ] = None
    attempts: Annotated[
        int | None, _option("--attempts", "Times a video is tried before it is given up. (default: 3)")
    ] = None
    decode_timeout: Annotated[
        float | None, _option("--decode-timeout", "Seconds a decoder may be silent. (default: 120)")
    ] = None
    decode_memory: Annotated[
        str | None, _option("--decode-memory", "The most memory a decoder may take, such as 2G. (default: 4G)")
    ] = None
    decoders: Annotated[
        str | None,
        typer.Option(
            "--decoders",
            help="Files that are decoded at a time. (default: one per core, at most 4) With --cluster workers that "
            "decode, fewest:most, such as 2:16. (default: 1:)",
        ),
    ] = None
    encoders: Annotated[str | None, _option("--encoders", "Encoding workers, fewest:most. (default: 1:)")] = None
    cpus_per_encoder: Annotated[
        float | None, _option("--cpus-per-encoder", "CPUs of an encoding worker. (default: by what the cluster has)")
    ] = None
    gpus_per_encoder: Annotated[
        float | None, _option("--gpus-per-encoder", "GPUs of one, or a share such as 0.5. (default: 1 where there are)")
    ] = None
    price_cpu_hour: Annotated[
        float | None, _option("--price-cpu-hour", "Euros for an hour of a CPU; the report says what the run cost.")
    ] = None
    price_gpu_hour: Annotated[float | None, _option("--price-gpu-hour", "Euros for an hour of a GPU.")] = None
    metrics_port: Annotated[
        int | None, _option("--metrics-port", "Serve metrics for Prometheus here; 0 takes a free port.")
    ] = None
    metrics_host: Annotated[
        str | None, _option("--metrics-host", "Address they are served at. (default: 127.0.0.1, this machine alone)")
    ] = None
    log: Annotated[str | None, _option("--log", "JSON lines of what happens: a file, or - for standard error.")] = None
    log_level: Annotated[str | None, _option("--log-level", "info, or debug: every chunk as well. (default: info)")] = (
        None
    )
    dry_run: Annotated[bool, _option("--dry-run", "Say what there is to do, and stop.")] = False

    def refuse(self) -> None:
        """Raises ValueError for the first option that was set and needs a cluster: there is none."""
        for option in fields(self):
            if option.name != "decoders" and getattr(self, option.name) not in (None, False):
                raise ValueError(f"--{option.name.replace('_', '-')} has a meaning with --cluster alone")

    @property
    def files_at_a_time(self) -> int | None:
        """--decoders where there is no cluster. Raises ValueError unless it is one number."""
        if self.decoders is None:
            return None
        if not self.decoders.strip().isdecimal() or int(self.decoders) < 1:
            raise ValueError(f"--decoders must be a number from 1 on without --cluster, got {self.decoders!r}")
        return int(self.decoders)

    def arguments(self) -> dict[str, Any]:
        """Those that were set, as `everyframe.scale.encode` takes them. Raises ValueError for what has no meaning."""
        from everyframe.scale.work import Limits, Price, Stages

        memory = None if self.decode_memory is None else parse_bytes(self.decode_memory, "--decode-memory")
        if self.metrics_host is not None and self.metrics_port is None:
            raise ValueError("--metrics-host has no meaning without --metrics-port")
        if self.log_level is not None and self.log is None:
            raise ValueError("--log-level has no meaning without --log")
        for name in ("price_cpu_hour", "price_gpu_hour"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be a number of euros >= 0, got {value}")
        return {
            "cluster": self.cluster,
            "limits": Limits(**given(seconds=self.decode_timeout, memory_bytes=memory)),
            "stages": Stages(
                **given(
                    decoders=parse_range(self.decoders, "--decoders"),
                    encoders=parse_range(self.encoders, "--encoders"),
                    cpus_per_encoder=self.cpus_per_encoder,
                    gpus_per_encoder=self.gpus_per_encoder,
                )
            ),
            "price": Price(**given(cpu_hour=self.price_cpu_hour, gpu_hour=self.price_gpu_hour)),
            **given(id_column=self.id_column, attempts=self.attempts, segment_seconds=self.segment_seconds),
        }


def parse_range(text: str | None, option: str) -> tuple[int, int | None] | None:
    """ "2:16", "2:" without an upper end, or "4" for just as many. Raises ValueError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*(?:(:)\s*(\d*)\s*)?", text)
    fewest = int(match[1]) if match else 0
    most = fewest if match and not match[2] else int(match[3]) if match and match[3] else None
    if match is None or fewest < 1 or (most is not None and most < fewest):
        raise ValueError(f"{option} must be fewest:most, such as 2:16, 2: or 4, got {text!r}")
    return fewest, most


def parse_bytes(text: str, option: str) -> int:
    """ "2G", "512 MiB", "1.5GB": powers of 1024. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?\s*", text.lower())
    if match is None:
        raise ValueError(f"{option} must be a size such as 512M or 2G, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


# --- the run ---------------------------------------------------------------------------------------------


def encode_on_cluster(
    paths: Sequence[str],
    out: str,
    options: ClusterOptions,
    chosen: Reader,
    *,
    column: str | None,
    format: str,
    store: str,
    retry_failed: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Encode and show; exit with 1 where videos were lost, with 130 after Ctrl-C."""
    arguments = options.arguments()
    if options.dry_run:
        _show_plan(paths, {"column": column, "id_column": options.id_column}, chosen, out, format, as_json=as_json)
        return
    if "://" not in out:
        check_writable(Path(out))
    from everyframe.scale import encode

    encoder, sampling = chosen.make()
    with _listeners(options, silent=quiet or as_json or options.log == "-") as listeners:
        report = encode(
            paths,
            encoder,
            out=out,
            format=format,
            sampling=sampling,
            dtype=store,
            retry_failed=retry_failed,
            column=column,
            listeners=listeners,
            **arguments,
        )
    if as_json:
        print(report.to_json(), end="")
    elif not quiet:
        show_report(report, out)
    if as_json or quiet:
        for failure in report.failures[:SHOWN]:
            console.say(f"everyframe: {failure.message}", style="red", error=True)
    if report.interrupted:
        raise KeyboardInterrupt
    if not report.good:
        raise typer.Exit(1)


@contextmanager
def _listeners(options: ClusterOptions, *, silent: bool) -> Iterator[list[Callable[[Event], None]]]:
    """Everybody who hears of the run: the terminal, the metrics, the log."""
    from everyframe.scale.logs import JsonLog
    from everyframe.scale.metrics import Metrics, MetricsServer
    from everyframe.scale.progress import Progress

    progress = Progress()
    with ExitStack() as stack:
        listeners: list[Callable[[Event], None]] = [progress]
        log = None
        if options.log is not None:
            log = stack.enter_context(JsonLog(options.log, **given(level=options.log_level)))
            listeners.append(log)
        if options.metrics_port is not None:
            metrics = Metrics(progress)
            server = MetricsServer(metrics, port=options.metrics_port, **given(host=options.metrics_host))
            stack.enter_context(server)
            listeners.append(metrics)
            address = f"http://{server.host}:{server.port}/metrics"
            if log is not None:
                log.note("metrics", address=address)
            if not silent:
                console.say(f"metrics: {address}", error=True)
        stack.enter_context(console.Live(lambda: picture(progress), lambda: one_line(progress), silent=silent))
        if not silent:
            listeners.append(Losses())
        yield listeners


# --- before it starts ------------------------------------------------------------------------------------


def _show_plan(
    paths: Sequence[str], columns: dict[str, str | None], chosen: Reader, out: str, format: str, *, as_json: bool
) -> None:
    """What a run would do in a new output, as far as this machine can see: nothing remote is opened or asked."""
    from everyframe.pipeline import forecast
    from everyframe.scale.listing import list_videos

    listing = list_videos(paths, **columns)
    here: list[str | Path] = [video.source for video in listing.videos if "://" not in video.source]
    facts: dict[str, Any] = {
        "videos": len(listing.videos),
        "duplicates": len(listing.duplicates),
        "missing": len(listing.missing),
        "seconds": None,
        "frames": None,
        "tflops": None,
        "out": out,
        "format": format,
    }
    if here:
        expected, all_for_here = forecast(here, *chosen.make()), len(listing.videos) / len(here)
        facts["seconds"] = expected.total_seconds * all_for_here
        facts["frames"] = round(expected.num_frames * all_for_here)
        facts["tflops"] = None if expected.macs is None else expected.macs * all_for_here / 1e12
    if as_json:
        print(json.dumps({**facts, "failures": [asdict(failure) for failure in listing.missing]}, indent=1))
    else:
        _say_plan(facts, remote=len(listing.videos) - len(here))
        for failure in listing.missing[:SHOWN]:
            console.say(f"missing: {failure.message}", style="yellow", error=True)
        if len(listing.missing) > SHOWN:
            console.say(f"and {len(listing.missing) - SHOWN} more; --json lists them", style="yellow", error=True)
    if listing.missing:
        raise typer.Exit(1)


def _say_plan(facts: dict[str, Any], *, remote: int) -> None:
    rows = {"videos": f"{facts['videos']}; {facts['duplicates']} listed again, {facts['missing']} not there"}
    rows["length"] = "unknown: none of them is on this machine"
    if facts["seconds"] is not None:
        guess = f", if the {remote} that are elsewhere are as long as those here" if remote else ""
        rows["length"] = f"{clock(facts['seconds'])} by the headers of at most 200{guess}"
        rows["features"] = f"up to {facts['frames']}"
    if facts["tflops"] is not None:
        rows["cost"] = f"{facts['tflops']:.3g} TFLOPs (multiply-accumulates)"
    rows["output"] = f"{facts['out']}, {facts['format']}; what it has already is not looked at"
    console.show_rows(rows)
