"""Train an ActionFormer on the features of annotated videos.

Schedule and losses are those of ActionFormer: AdamW, linear warm-up and cosine, sigmoid focal loss over all points and
the 1D DIoU loss over the positive ones, both divided by a running mean of the number of positives, gradients clipped,
the weights that are used a moving average.

    B videos, D width, R rows, P points, K classes
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everyframe.feature_files import FeaturesError
from everyframe.features import VideoFeatures, check_same_space, space_of
from everyframe.tasks.localization import Segment, duration_of, feature_rows
from everyframe.training.actionformer import ActionFormer, Points, diou_loss, focal_loss, targets
from everyframe.training.errors import TrainingError
from everyframe.training.folder import RunFolder
from everyframe.training.localizer import Localizer, LocalizerSettings

_FORMAT = 1  # of what follows from a seed


def train_localizer(
    videos: Mapping[str, VideoFeatures],
    segments: Mapping[str, Sequence[Segment]],
    labels: Sequence[str],
    settings: LocalizerSettings,
    *,
    folder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    epoch_done: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
) -> Localizer:
    """Train on the segments of every video in `videos`; a video without segments is background.

    labels: the classes in the order of the network; with a single one, every segment is of it, whatever its label.
    folder: the checkpoint of every epoch is kept there, so that the same call goes on where a killed one stopped and
    ends, on a CPU, with the same weights; the finished localizer is written there too. Everything follows from
    settings.seed; the caller's random state stays as it is.

    Raises TrainingError where no video or segment is left to train on, the folder holds a run with other settings or
    data, or the loss is no longer finite; FeaturesError for features of different models.
    """
    with torch.random.fork_rng():
        run = _Run(videos, segments, labels, settings, folder, device, say)
        run.train(epoch_done)
        localizer = run.localizer()
    if folder is not None:
        localizer.save(folder)
    return localizer


class _Run:
    """One training: network, its average, optimizer, and the epochs that are done."""

    def __init__(
        self,
        videos: Mapping[str, VideoFeatures],
        segments: Mapping[str, Sequence[Segment]],
        labels: Sequence[str],
        settings: LocalizerSettings,
        folder: str | os.PathLike[str] | None,
        device: str,
        say: Callable[[str], None],
    ) -> None:
        self.videos, self.labels, self.settings, self.say = videos, tuple(labels), settings, say
        numbers = {label: number for number, label in enumerate(labels)}
        alone = len(labels) == 1
        self.truth: dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
        for video in videos:
            own = [one for one in segments.get(video, ()) if one.end > one.start and (alone or one.label in numbers)]
            spans = np.array([(one.start, one.end) for one in own], dtype=np.float64).reshape(-1, 2)
            classes = np.array([0 if alone else numbers[one.label] for one in own], dtype=np.int64)
            self.truth[video] = (spans, classes)
        if not any(len(classes) for _, classes in self.truth.values()):
            raise TrainingError(f"none of the {len(videos)} videos has a segment of the classes to train on")
        self.space, digest = self._look_through()
        torch.manual_seed(settings.seed)
        self.network = ActionFormer(settings.architecture(self.space["dim"], len(labels))).to(device)
        self.average = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        decayed = [tensor for tensor in self.network.parameters() if tensor.dim() > 1]
        others = [tensor for tensor in self.network.parameters() if tensor.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.rate,
        )
        self.epoch, self.step, self.positives = 0, 0, settings.positives
        self.batches = math.ceil(len(videos) / settings.batch)
        self.facts = {
            "videos": len(videos),
            "segments": sum(len(own) for _, own in self.truth.values()),
            "data": digest,
        }
        self.folder: RunFolder | None = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            identity = {**asdict(settings), "crop": list(settings.crop), "format": _FORMAT, "labels": list(labels)}
            self.folder = RunFolder(Path(folder), {**identity, "data": digest}, first=True, say=say)
            self._resume()

    def _look_through(self) -> tuple[dict[str, Any], str]:
        """The space that all features share, and a hash of features and segments."""
        space: dict[str, Any] | None = None
        digest = hashlib.sha256()
        for video in sorted(self.videos):
            feats = self.videos[video]
            if not feats.num_frames or duration_of(feats) <= 0:
                raise FeaturesError(f"the features of {video} have no frames; leave the video out")
            space = space or space_of(feats)
            check_same_space(space, feats)
            spans, classes = self.truth[video]
            digest.update(json.dumps([video, list(feats.embeddings.shape)]).encode())
            for array in (feats.embeddings, feats.times, spans, classes):
                digest.update(np.ascontiguousarray(array).data)
        if space is None:
            raise TrainingError("there are no videos to train on")
        return space, digest.hexdigest()

    def _resume(self) -> None:
        held = None if self.folder is None else self.folder.held
        if held is None or self.folder is None:
            return
        self.network.load_state_dict(held["network"])
        self.average = {name: tensor.to(self.network.device) for name, tensor in held["average"].items()}
        self.optimizer.load_state_dict(held["optimizer"])
        self.epoch, self.step, self.positives = held["epoch"], held["step"], held["positives"]
        self.folder.cut_log(self.epoch)
        if self.epoch < self.settings.epochs:
            self.say(f"goes on after epoch {self.epoch} of {self.settings.epochs}")

    def train(self, epoch_done: Callable[[int, int, float], None]) -> None:
        settings = self.settings
        while self.epoch < settings.epochs:
            started, losses = time.monotonic(), []
            torch.manual_seed(settings.seed * 100_003 + self.epoch + 1)  # so that a resumed epoch drops the same
            for rows, valid, wanted, distances in self._batches():
                losses.append(self._update(rows, valid, wanted, distances))
            self.epoch += 1
            loss = float(np.mean(losses))
            self._save(loss, time.monotonic() - started)
            epoch_done(self.epoch, settings.epochs, loss)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The batches of this epoch: rows [B, R, D], valid [B, R], classes [B, P, K], distances [B, P, 2]."""
        rng = np.random.default_rng([self.settings.seed, 61, self.epoch])
        order = rng.permutation(sorted(self.videos))
        for first in range(0, len(order), self.settings.batch):
            views = [self._view(str(video), rng) for video in order[first : first + self.settings.batch]]
            longest = max(len(rows) for rows, _, _ in views)
            rows = torch.zeros(len(views), longest, self.space["dim"])
            valid = torch.zeros(len(views), longest, dtype=torch.bool)
            points = self.network.points(longest)
            wanted, distances = [], []
            for place, (own, spans, classes) in enumerate(views):
                rows[place, : len(own)] = torch.from_numpy(own)
                valid[place, : len(own)] = True
                answer, far = self._targets(points, spans, classes)
                wanted.append(answer)
                distances.append(far)
            yield rows, valid, torch.stack(wanted), torch.stack(distances)

    def _targets(self, points: Points, spans: NDArray[np.float64], classes: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return targets(
            points,
            torch.from_numpy(spans.astype(np.float32)),
            torch.from_numpy(classes),
            len(self.labels),
            self.settings.radius,
        )

    def _view(
        self, video: str, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
        """A random part of a video: rows [R, D], its segments in rows [N, 2], their classes [N]."""
        settings, feats = self.settings, self.videos[video]
        duration = duration_of(feats)
        spans, classes = self.truth[video]
        length = duration * rng.uniform(*settings.crop)
        if settings.fps is not None:
            length = min(length, settings.max_rows / settings.fps)
        start = rng.uniform(0.0, duration - length)
        rows, end = settings.grid(start, start + length)
        inside = np.clip(spans, start, end)
        kept = (inside[:, 1] - inside[:, 0]) >= 0.5 * (spans[:, 1] - spans[:, 0])
        scaled = (inside[kept] - start) * (rows / (end - start))
        return feature_rows(feats, rows, start=start, end=end), scaled, classes[kept]

    def _update(self, rows: Tensor, valid: Tensor, wanted: Tensor, distances: Tensor) -> float:
        settings = self.settings
        self.network.train()
        rows, valid, wanted, distances = (x.to(self.network.device) for x in (rows, valid, wanted, distances))
        output = self.network(rows, valid)
        positive = (wanted.sum(-1) > 0) & output.valid
        self.positives = 0.9 * self.positives + 0.1 * max(int(positive.sum()), 1)
        smooth = wanted * (1 - settings.smoothing) + settings.smoothing / (len(self.labels) + 1)
        loss = focal_loss(output.logits[output.valid], smooth[output.valid]).sum()
        loss = loss + settings.regression * diou_loss(output.distances[positive], distances[positive]).sum()
        loss = loss / self.positives
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} in epoch {self.epoch + 1}; use a lower rate")
        self.optimizer.step()
        self.step += 1
        decay = min(settings.average, (1 + self.step) / (10 + self.step))  # the first weights fade soon
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                self.average[name].lerp_(tensor, 1 - decay)
        return float(loss.item())

    def _rate(self) -> float:
        warm, total = self.settings.warmup_epochs * self.batches, self.settings.epochs * self.batches
        if self.step < warm:
            return self.settings.rate * (self.step + 1) / warm
        return self.settings.rate * 0.5 * (1 + math.cos(math.pi * (self.step - warm) / max(total - warm, 1)))

    def _save(self, loss: float, seconds: float) -> None:
        if self.folder is None:
            return
        self.folder.log({"step": self.epoch, "loss": loss, "seconds": seconds})
        self.folder.save(
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "positives": self.positives,
            }
        )

    def localizer(self) -> Localizer:
        """The averaged weights, ready to use."""
        network = ActionFormer(self.network.architecture).to(self.network.device)
        network.load_state_dict(self.average)
        return Localizer(
            network=network.eval(), labels=self.labels, settings=self.settings, space=self.space, facts=self.facts
        )
