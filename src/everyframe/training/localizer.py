"""A trained ActionFormer with what it needs to be used: settings, labels, the space of its features; and its files.

P points, K classes
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everyframe.feature_files import FeaturesError, write_whole
from everyframe.features import VideoFeatures, check_same_space
from everyframe.tasks.localization import Detection, duration_of, feature_rows, soft_nms, vote
from everyframe.training.actionformer import ActionFormer, Architecture
from everyframe.training.errors import TrainingError
from everyframe.version import package_version

WEIGHTS, CONFIG = "localizer.safetensors", "localizer.json"
_CANDIDATES = 2000  # of one video before Soft-NMS


@dataclass(frozen=True, kw_only=True)
class LocalizerSettings:
    """How an ActionFormer is built, trained and asked. The defaults are OpenTAD's for ActivityNet-1.3.

    rows: every video becomes that many rows. None: rows of 1 / fps seconds, as many as the video has; max_rows of them
        in a row are trained on.
    width to drop_input: see `Architecture`.
    crop: shares of a video, of which one is drawn for every view of it; a segment of which less than half is left in
        the view is left out.
    epochs, warmup_epochs (among them), batch (videos), rate (peak), weight_decay, clip (norm of the gradient).
    average: decay of the moving average of the weights, less in the first steps. smoothing: of labels. radius:
        of centre sampling, in strides. positives: what the running mean of positives starts with. regression: weight
        of the DIoU loss.
    sigma, min_score, segments: Soft-NMS, per class; how many segments of a video are kept. voting: IoU from which
        candidates move a kept segment, None for none; used where there is one class alone. shortest: seconds.
    """

    rows: int | None = 192
    fps: float | None = None
    max_rows: int = 768
    width: int = 256
    heads: int = 4
    window: int = 7
    projections: int = 2
    stem: int = 2
    levels: int = 6
    head_layers: int = 2
    positions: bool = True
    drop_path: float = 0.1
    drop_input: float = 0.2
    crop: tuple[float, float] = (0.9, 1.0)
    epochs: int = 15
    warmup_epochs: int = 5
    batch: int = 16
    rate: float = 1e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.999
    smoothing: float = 0.1
    radius: float = 1.5
    positives: float = 200.0
    regression: float = 2.0
    sigma: float = 0.75
    min_score: float = 0.001
    segments: int = 100
    voting: float | None = 0.9
    shortest: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.fps is None):
            raise ValueError("give either rows, how many a video becomes, or fps, rows per second")
        for name in ("rows", "max_rows", "epochs", "batch", "segments"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("fps", "rate", "clip", "radius", "positives", "sigma"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {value}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must be from 0 to epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop must be two shares in (0, 1], the smaller first, got {self.crop}")
        for name in ("average", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        self.architecture(1, 1)

    @classmethod
    def synthetic(cls, **changes: Any) -> LocalizerSettings:
        """For some dozens of synthetic videos of a minute: a smaller network, more epochs, shorter views."""
        small: dict[str, Any] = {
            "width": 64, "window": 9, "stem": 1, "levels": 5, "epochs": 40, "warmup_epochs": 4, "batch": 8,
            "rate": 2e-3, "crop": (0.5, 1.0), "average": 0.99, "smoothing": 0.0, "positives": 100.0, "voting": None,
        }  # fmt: skip
        return cls(**{**small, **changes})

    @classmethod
    def thumos(cls, **changes: Any) -> LocalizerSettings:
        """For long videos with many short activities, as THUMOS14: rows at a rate, no resizing."""
        long: dict[str, Any] = {
            "rows": None, "fps": 4.0, "max_rows": 2304, "width": 512, "window": 19, "positions": False, "batch": 2,
            "rate": 1e-4, "epochs": 35, "smoothing": 0.0, "positives": 100.0, "regression": 1.0, "sigma": 0.5,
            "segments": 2000, "voting": None, "drop_input": 0.0,
        }  # fmt: skip
        return cls(**{**long, **changes})

    def architecture(self, dim: int, classes: int) -> Architecture:
        """The network for features of `dim` and that many classes."""
        names = ("width", "heads", "window", "projections", "stem", "levels", "head_layers", "positions")
        chosen = {name: getattr(self, name) for name in (*names, "drop_path", "drop_input")}
        return Architecture(dim=dim, classes=classes, **chosen)

    def grid(self, start: float, end: float) -> tuple[int, float]:
        """Rows that stand for [start, end) seconds of a video, and where the last of them ends."""
        if self.rows is not None:
            return self.rows, end
        fps = self.fps or 1.0
        rows = max(1, math.ceil((end - start) * fps - 1e-6))
        return rows, start + rows / fps


@dataclass(frozen=True, kw_only=True)
class Localizer:
    """A trained network with what it needs to be used: its labels, settings, and the space of its features.

    labels: one per class of the network, in its order.
    """

    network: ActionFormer
    labels: tuple[str, ...]
    settings: LocalizerSettings
    space: dict[str, Any]
    facts: dict[str, Any]

    def check(self, feats: VideoFeatures) -> None:
        """Raises FeaturesError where features are not of the model that those of the training were of."""
        check_same_space(self.space, feats)

    @torch.inference_mode()
    def predict(self, feats: VideoFeatures) -> list[Detection]:
        """The activities of one video, best first. Raises FeaturesError for features of another model or no frames."""
        self.check(feats)
        settings, duration = self.settings, duration_of(feats)
        if not feats.num_frames or duration <= 0:
            raise FeaturesError(f"the features of {feats.video.get('path', 'the video')} have no frames")
        rows, end = settings.grid(0.0, duration)
        values = torch.from_numpy(feature_rows(feats, rows, end=end))[None].to(self.network.device)
        output = self.network(values, torch.ones(1, rows, dtype=torch.bool, device=values.device))
        points = self.network.points(rows)
        shares = (output.logits[0].sigmoid() * output.valid[0, :, None]).double().cpu().numpy()
        place, stride = (x.double().numpy() for x in (points.position, points.stride))
        reach = output.distances[0].double().cpu().numpy() * stride[:, None]
        windows = np.stack([place - reach[:, 0], place + reach[:, 1]], axis=1) * (end / rows)
        return self._decode(np.clip(windows, 0.0, duration), shares)

    def _decode(self, windows: NDArray[np.float64], shares: NDArray[np.float64]) -> list[Detection]:
        """Windows [P, 2] in seconds and probabilities [P, K] -> what Soft-NMS leaves."""
        settings = self.settings
        lasting = windows[:, 1] - windows[:, 0] >= settings.shortest
        found: list[Detection] = []
        for number, label in enumerate(self.labels):
            good = np.flatnonzero(lasting & (shares[:, number] >= settings.min_score))
            good = good[np.argsort(-shares[good, number], kind="stable")][:_CANDIDATES]
            kept, scores = soft_nms(
                windows[good],
                shares[good, number],
                sigma=settings.sigma,
                min_score=settings.min_score,
                top=settings.segments,
            )
            places = windows[good[kept]]
            if settings.voting is not None and len(self.labels) == 1:
                places = vote(places, windows[good], shares[good, number], iou=settings.voting)
            found += [
                Detection(float(start), float(end), label, float(score))
                for (start, end), score in zip(places, scores, strict=True)
            ]
        return sorted(found, key=lambda detection: -detection.score)[: settings.segments]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write localizer.safetensors and localizer.json into a folder, whole; returns the folder."""
        from safetensors.torch import save as to_bytes

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format": "everyframe-localizer",
            "labels": list(self.labels),
            "settings": asdict(self.settings),
            "space": self.space,
            "facts": self.facts,
            "everyframe": package_version(),
        }
        weights = {name: tensor.detach().contiguous() for name, tensor in self.network.state_dict().items()}
        text = (json.dumps(config, indent=1) + "\n").encode()
        write_whole([(folder / WEIGHTS, to_bytes(weights)), (folder / CONFIG, text)], folder / CONFIG)
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str = "cpu") -> Localizer:
        """Read what `save` wrote. Raises TrainingError where a file is missing, damaged or of another network."""
        from safetensors import SafetensorError
        from safetensors.torch import load as from_bytes

        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            settings = LocalizerSettings(**{**config["settings"], "crop": tuple(config["settings"]["crop"])})
            with torch.device("meta"):  # no weights to draw, they come from the file
                network = ActionFormer(settings.architecture(config["space"]["dim"], len(config["labels"])))
            network.load_state_dict(from_bytes((folder / WEIGHTS).read_bytes()), assign=True)
            facts = config["facts"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise TrainingError(f"{folder} holds no localizer ({Path(str(error.filename)).name} is missing)") from error
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise TrainingError(f"the localizer in {folder} is damaged or of another version: {reason}") from error
        return cls(
            network=network.to(device).eval(),
            labels=tuple(config["labels"]),
            settings=settings,
            space=config["space"],
            facts=facts,
        )
