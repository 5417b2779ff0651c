"""What is searched for as vectors: texts and pictures through the model of a collection, remembered."""

from __future__ import annotations

import asyncio
import hashlib
import time
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everyframe.backbone import ModelError
from everyframe.features import FeaturesError
from everyframe.library import Collection
from everyframe.serve.errors import NoModel
from everyframe.training.recorded import model_recorded

if TYPE_CHECKING:
    from everyframe.backbone import Model

_TRY_AGAIN_SECONDS = 30.0
_MODELS = 2
_BATCH = 32
_IMAGES = 500
_TOKENS_AROUND = 2  # that a text is put between


@dataclass(frozen=True)
class TextVector:
    """A text as float32 [dim] of length 1. cut: it was longer than the model reads."""

    vector: NDArray[np.float32]
    cut: bool


@dataclass(frozen=True)
class ImageVector:
    """A picture as float32 [dim] of length 1, by an id made from its bytes and the model's weights."""

    id: str
    vector: NDArray[np.float32]


@dataclass
class _Space:
    """A model that is (being) loaded, and what waits for it. Touched by the event loop alone."""

    loading: asyncio.Future[Model]
    failed_at: float | None = None
    waiting: dict[str, asyncio.Future[TextVector]] = field(default_factory=dict)
    working: asyncio.Task[None] | None = None


class Vectors:
    """One thread runs the models. Texts that come while it is busy go through it together, which is faster."""

    def __init__(self, *, model: str | None, device: str | None, remembered: int) -> None:
        self._name, self._device = model, device
        self._remembered = remembered
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._spaces: OrderedDict[str, _Space] = OrderedDict()
        self._texts: OrderedDict[tuple[str, str], TextVector] = OrderedDict()
        self._images: OrderedDict[str, ImageVector] = OrderedDict()

    async def load(self, collection: Collection) -> Model:
        """The collection's model. Raises NoModel, at once where it could not be had a moment ago."""
        return await self._loaded(self._space(collection))

    async def texts(self, collection: Collection, texts: list[str]) -> list[TextVector]:
        """Raises NoModel."""
        space = self._space(collection)
        found: list[TextVector] = []
        for text in texts:
            key = (_weights(collection), text)
            known = self._texts.get(key)
            if known is None:
                waiting = space.waiting.get(text)
                if waiting is None:
                    waiting = space.waiting[text] = asyncio.get_running_loop().create_future()
                    if space.working is None:
                        space.working = asyncio.ensure_future(self._work(space))
                # Shielded: others may wait for the same text when this client goes away.
                known = await asyncio.shield(waiting)
                self._texts[key] = known
                while len(self._texts) > self._remembered:
                    self._texts.popitem(last=False)
            else:
                self._texts.move_to_end(key)
            found.append(known)
        return found

    async def image(self, collection: Collection, pixels: NDArray[np.uint8], data: bytes) -> ImageVector:
        """Of a picture uint8 [H, W, 3], whose file has these bytes. Raises NoModel."""
        model = await self.load(collection)
        id = hashlib.sha256(_weights(collection).encode() + data).hexdigest()[:24]
        if id not in self._images:
            vector = await self._run(_image_vector, model, pixels)
            self._images[id] = ImageVector(id, vector)
            while len(self._images) > _IMAGES:
                self._images.popitem(last=False)
        return self._images[id]

    def known_image(self, id: str) -> ImageVector | None:
        """One that `image` gave not long ago."""
        return self._images.get(id)

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _space(self, collection: Collection) -> _Space:
        key = _weights(collection)
        space = self._spaces.get(key)
        stale = space is not None and space.failed_at is not None
        if space is None or (stale and time.monotonic() - (space.failed_at or 0.0) > _TRY_AGAIN_SECONDS):
            task = asyncio.ensure_future(self._run(model_recorded, collection.model, self._name, self._device))
            space = self._spaces[key] = _Space(task)
            while len(self._spaces) > _MODELS:
                self._spaces.popitem(last=False)
        self._spaces.move_to_end(key)
        return space

    async def _loaded(self, space: _Space) -> Model:
        try:
            return await asyncio.shield(space.loading)
        except (ModelError, FeaturesError, OSError, ImportError) as error:
            space.failed_at = space.failed_at or time.monotonic()
            raise NoModel(f"texts and pictures cannot be searched for: {error}") from error

    async def _work(self, space: _Space) -> None:
        """Encode what waits until nothing does."""
        try:
            model = await self._loaded(space)
            while space.waiting:
                texts = list(space.waiting)[:_BATCH]
                vectors = await self._run(_text_vectors, model, texts)
                for text, vector in zip(texts, vectors, strict=True):
                    _settle(space.waiting.pop(text), vector)
        except BaseException as error:
            waiting, space.waiting = space.waiting, {}
            for future in waiting.values():
                _settle(future, error)
            if not isinstance(error, Exception):
                raise
        finally:
            space.working = None

    async def _run(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def _weights(collection: Collection) -> str:
    """Collections read by the same weights share a model."""
    return str(collection.model.get("weights_sha256") or collection.id)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
        future.exception()  # whoever waited may be gone
    else:
        future.set_result(result)


def _text_vectors(model: Model, texts: list[str]) -> list[TextVector]:
    """A byte is at most a token, so that short texts cannot be cut; long ones are looked at one by one."""
    context = 0 if model.text is None else model.text.config.context
    short = [text for text in texts if len(text.encode()) + _TOKENS_AROUND <= context]
    found = {}
    if short:
        for text, row in zip(short, model.encode_text(short).cpu().numpy(), strict=True):
            found[text] = TextVector(row, cut=False)
    for text in texts:
        if text not in found:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                row = model.encode_text([text])[0].cpu().numpy()
            found[text] = TextVector(row, cut=any("was cut" in str(each.message) for each in caught))
    return [found[text] for text in texts]


def _image_vector(model: Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As a frame of a video that is read in full."""
    from everyframe.encoders import DenseEncoder

    vector: NDArray[np.float32] = DenseEncoder(model).encode(model.preprocess(pixels[None]))[0].cpu().numpy()
    return vector
