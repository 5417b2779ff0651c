"""The shapes of what the API answers; /openapi.json is made from them. Ids are digits as text: JavaScript's numbers
hold 53 bits of their 63.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

VideoId = Annotated[str, Field(pattern=r"^[0-9]{1,19}$", description="Id of a video.")]
Seconds = Annotated[float, Field(description="Seconds from the video's start.")]


class Problem(BaseModel):
    """What went wrong, in one sentence."""

    detail: str


class CollectionAnswer(BaseModel):
    """Videos that were read by one model in one way."""

    id: str
    label: str
    model: str | None
    videos: int
    frames: int
    default: bool = Field(description="Is it the one that is searched where a request names none?")


class ThumbnailAnswer(BaseModel):
    time: Seconds
    url: str


class MomentAnswer(BaseModel):
    """Where something happens: [start, end) of a video."""

    video: VideoId
    name: str
    path: str
    duration: float | None = Field(description="Seconds of the whole video.")
    start: Seconds
    end: Seconds
    peak: Seconds
    score: float = Field(description="Cosine; comparable within one search.")
    thumbnail: str | None
    thumbnails: list[ThumbnailAnswer]
    playable: bool = Field(description="Do browsers play the file as it is? If not, ask for its preview.")


class SearchAnswer(BaseModel):
    moments: list[MomentAnswer]
    took_ms: float
    note: str | None = Field(description="What the searcher should know, such as that a text was cut.")
    collection: CollectionAnswer | None
    image: str | None = Field(default=None, description="Id of the query's image, for image= of further requests.")


class VideoAnswer(BaseModel):
    video: VideoId
    name: str
    path: str
    duration: float | None
    start: Seconds
    end: Seconds
    frames: int
    codec: str | None
    container: str | None
    width: int | None
    height: int | None
    added: str
    date: str
    collection: str
    playable: bool
    available: bool = Field(description="Is there a file at the path?")
    thumbnail: str


class VideosAnswer(BaseModel):
    videos: list[VideoAnswer]
    total: int


class BandAnswer(BaseModel):
    start: Seconds
    end: Seconds
    score: float


class CurveAnswer(BaseModel):
    """Similarity over a video. times, scores and roles have the same length."""

    times: list[float]
    scores: list[float]
    roles: str = Field(description="What the encoder did to each frame: I (in full), P (in part), C (copied).")
    moments: list[BandAnswer]
    duration: float


JobState = Literal["queued", "encoding", "adding", "done", "failed", "cancelled"]


class JobAnswer(BaseModel):
    """A video that is being added."""

    job: str
    name: str
    state: JobState
    frames: int
    seconds: Seconds
    duration: float | None
    progress: float = Field(ge=0, le=1)
    error: str | None
    video: VideoId | None
    events: str


class JobsAnswer(BaseModel):
    jobs: list[JobAnswer]


class StartedAnswer(BaseModel):
    job: str
    state: JobState
    events: str


class IndexAnswer(BaseModel):
    kind: str
    frames: int
    indexed: int
    building: bool


class StatusAnswer(BaseModel):
    videos: int
    frames: int
    hours: float
    index: IndexAnswer | None
    model: str | None
    collections: list[CollectionAnswer]
    version: str
    can_add: bool
    max_upload: int
    token: bool


class PreviewAnswer(BaseModel):
    """The preview is being made; ask again."""

    progress: float
