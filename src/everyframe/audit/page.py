"""The audit as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import math
from pathlib import Path

import numpy as np

from everyframe.audit.result import Answer, Audit, Setting, VideoAudit, WorstFrame
from everyframe.report import html_page, html_table

_OWN, _COPY, _INTERPOLATE = "#0969da", "#cf222e", "#9a6700"
_STYLE = """
pre { background: #f6f8fa; padding: .7rem .9rem; border-radius: 6px; font-size: 13px; white-space: pre-wrap;
  overflow-wrap: anywhere }
.advice { border-left: 4px solid #0969da; padding: .1rem 0 .1rem 1rem } .missed { border-color: #cf222e }
table { font-size: 13px } th, td { padding: .25rem .5rem } th:not(:first-child) { text-align: right }
.settings th:nth-child(2), .settings td:nth-child(2) { text-align: left; white-space: nowrap }
details th:nth-child(n), details td:nth-child(n) { text-align: left }
tr.chosen { background: #ddf4ff } svg.curve { height: auto; font: 11px system-ui, sans-serif }
.worst { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem; margin-top: .6rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem; font-size: 12px; color: #57606a }
.pair img { width: 100%; display: block; border-radius: 3px; image-rendering: auto }
.pair b { color: #1b1f24 } details { margin: .5rem 0 } summary { cursor: pointer; color: #57606a }
"""


def audit_page(audit: Audit) -> str:
    """Table, recommendation, and for the videos with the lowest fidelity a curve over time and the worst frames."""
    shown = audit.shown
    body = [f"<p>{html.escape(audit.summary())}</p>", _advice(audit), "<h2>Fidelity, moments, speed</h2>"]
    chosen = next((n for n, row in enumerate(audit.rows) if row.setting == audit.advice.setting), None)
    body.append(f'<div class="settings">{html_table(audit.HEADER, audit.cells(), mark=chosen)}</div>')
    body.append(
        '<p class="note">Fidelity: cosine of a frame\'s feature to its dense feature, mean over all frames; I-frames '
        "are exact. copy and interpolate use the I-features alone; reuse is an adaptive plan where it has no N, whose "
        "copies count as P-frames. Moments: temporal IoU with the moment found in "
        "dense features. GFLOPs: multiply-accumulates of the linear layers. Model faster: measured time of the model "
        "alone; with reading: decoding and resizing included, and motion where a setting needs it.</p>"
    )
    body += [f'<p class="note">{html.escape(note)}</p>' for note in audit.notes]
    if shown is not None:
        body += _videos(audit, shown)
    if audit.failures:
        body.append("<h2>Could not be read</h2><ul>")
        body += [f"<li>{html.escape(failure)}</li>" for failure in audit.failures]
        body.append("</ul>")
    return html_page("everyframe audit", body, style=_STYLE)


def _advice(audit: Audit) -> str:
    advice = audit.advice
    parts = [f"<p><b>{html.escape(advice.sentence)}</b></p>"]
    parts += [f"<pre>{html.escape(text)}</pre>" for text in (advice.command, advice.code) if text]
    if advice.remark is not None:
        parts.append(f"<p>{html.escape(advice.remark)}</p>")
    if advice.remark_code is not None:
        parts.append(f"<pre>{html.escape(advice.remark_code)}</pre>")
    return f'<div class="advice{"" if advice.reached else " missed"}">{"".join(parts)}</div>'


def _videos(audit: Audit, shown: Setting) -> list[str]:
    videos = sorted(audit.videos, key=lambda video: video.row(shown).fidelity_mean)
    pictured = [video for video in videos if shown in video.worst]
    body = [f"<h2>{html.escape(shown.title)} over time</h2>"]
    if len(videos) > 1:
        baselines = _baselines(shown)
        figures = [
            [
                Path(video.path).name,
                str(len(video.times)),
                *video.row(shown).cells()[2:7],
                *(f"{video.row(baseline).fidelity_mean:.3f}" for baseline in baselines),
            ]
            for video in videos
        ]
        names = [baseline.label for baseline in baselines]
        body.append(html_table(["video", "frames", *audit.HEADER[2:7], *names], figures))
    if len(pictured) < len(videos):
        body.append(f'<p class="note">Below: the {len(pictured)} of {len(videos)} videos with the lowest fidelity.</p>')
    return body + [_video(video, shown, audit.target) for video in pictured]


def _video(video: VideoAudit, shown: Setting, target: float) -> str:
    row = video.row(shown)
    name = html.escape(Path(video.path).name)
    colours = (_COPY, _INTERPOLATE)
    lines = [(colour, base.label, base) for colour, base in zip(colours, _baselines(shown), strict=False)]
    lines.append((_OWN, shown.title, shown))
    key = "".join(
        f'<span style="background:{colour}"></span>{html.escape(label)}' for colour, label, _ in reversed(lines)
    )
    note = f", motion from {video.motion_source}" if video.motion_source and shown.select == "motion" else ""
    pairs = "".join(_pair(frame) for frame in video.worst.get(shown, []))
    return (
        f"<figure><figcaption><b>{name}</b>: fidelity {row.fidelity_mean:.3f}{note}"
        f'<span class="key">{key}</span></figcaption>{_curves(video, lines, target)}'
        + (f'<div class="worst">{pairs}</div>' if pairs else "")
        + _answers(video.answers, shown)
        + "</figure>"
    )


def _baselines(shown: Setting) -> list[Setting]:
    """Those with the same I-frames; an adaptive plan has none."""
    return [Setting("copy", shown.interleave), Setting("interpolate", shown.interleave)] if shown.has_interleave else []


def _curves(video: VideoAudit, lines: list[tuple[str, str, Setting]], target: float) -> str:
    """Fidelity of P-frames over the windows, side by side: their gaps are cut out. I-frames are 1 and left out."""
    width, height, left, gap = 1000.0, 190.0, 34.0, 10.0
    own = [video.cosines[setting][video.reduced[setting]] for _, _, setting in lines]
    values = np.concatenate(own)
    if not len(values):
        return '<p class="note">No P-frame was sampled: the video is too short, or all frames are I-frames.</p>'
    lowest = min(float(values.min()), target)
    step = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5) if (1 - lowest) / size <= 5 or size == 0.5)
    floor = math.floor(lowest / step) * step
    total = sum(window.end - window.start for window in video.windows)
    scale = (width - left - gap * (len(video.windows) - 1)) / max(total, 1e-9)

    def y(value: float) -> float:
        return 8 + (height - 16) * (1 - value) / (1 - floor)

    shapes = []
    for tick in range(round((1 - floor) / step) + 1):
        value = 1 - tick * step
        shapes.append(
            f'<line x1="{left}" x2="{width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#eaeef2"/>'
            f'<text x="{left - 4}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#57606a">{value:.2f}</text>'
        )
    origin = left
    for window in video.windows:
        span = scale * (window.end - window.start)
        shapes.append(
            f'<rect x="{origin:.1f}" y="8" width="{span:.1f}" height="{height - 16:.1f}" fill="none" stroke="#d0d7de"/>'
            f'<text x="{origin + 2:.1f}" y="{height + 8:.1f}" fill="#57606a">{_clock(window.start)}</text>'
            f'<text x="{origin + span - 2:.1f}" y="{height + 8:.1f}" text-anchor="end" fill="#57606a">'
            f"{_clock(window.end)}</text>"
        )
        for colour, _, setting in lines:
            rows = np.flatnonzero(video.reduced[setting][window.first : window.past]) + window.first
            places = origin + scale * (video.times[rows] - window.start)
            points = " ".join(
                f"{x:.1f},{y(value):.1f}" for x, value in zip(places, video.cosines[setting][rows], strict=True)
            )
            thick = 2 if colour == _OWN else 1
            shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
        origin += span + gap
    shapes.append(
        f'<line x1="{left}" x2="{width}" y1="{y(target):.1f}" y2="{y(target):.1f}" stroke="#1a7f37" '
        f'stroke-dasharray="5 4"/><text x="{width - 2}" y="{y(target) - 3:.1f}" text-anchor="end" fill="#1a7f37" '
        f'stroke="white" stroke-width="3" paint-order="stroke">'
        f"target {target:g}</text>"
    )
    return f'<svg class="curve" viewBox="0 0 {width:.0f} {height + 14:.0f}">{"".join(shapes)}</svg>'


def _pair(frame: WorstFrame) -> str:
    return (
        f'<div class="pair"><div>{_picture(frame.i_picture, f"I-frame at {frame.i_time:.2f} s")}</div>'
        f"<div>{_picture(frame.picture, f'P-frame at {frame.time:.2f} s')}"
        f"<b>cosine {frame.cosine:.3f}</b></div></div>"
    )


def _picture(data: bytes, label: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{label}" src="data:image/jpeg;base64,{encoded}">{label}<br>'


def _answers(answers: list[Answer], shown: Setting) -> str:
    if not answers:
        return ""
    rows = [
        [
            answer.query,
            f"{_clock(answer.dense.start)} to {_clock(answer.dense.end)}",
            f"{_clock(answer.found[shown].start)} to {_clock(answer.found[shown].end)}",
            f"{answer.ious[shown]:.2f}",
        ]
        for answer in answers
    ]
    mean = np.mean([answer.ious[shown] for answer in answers])
    count = f"{len(answers)} quer{'y' if len(answers) == 1 else 'ies'}"
    table = html_table(["query", "dense finds", f"{shown.title} finds", "IoU"], rows)
    return f"<details><summary>{count}: mean temporal IoU {mean:.2f}</summary>{table}</details>"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
