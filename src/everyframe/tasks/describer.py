"""`Describer`: from the features around a span to a sentence, through a mapping network and GPT-2.

Source: the setting of ResidualViT's audio descriptions (section 4), after AutoAD (CVPR 2023, section 3): frozen frame
features, a small transformer that makes a prefix of ten vectors of them, a GPT-2 that goes on from there. Neither
earlier descriptions nor subtitles are read, and nothing is trained beforehand.

    B examples, C clips of F frames, D width of the features, K vectors of the prefix, W width of GPT-2, L tokens
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone.model import parse_device
from everyframe.feature_files import write_whole
from everyframe.features import FeaturesError, VideoFeatures, space_of
from everyframe.tasks.description import Context, Description, visual_context

FACTS, MAPPER, LANGUAGE = "describer.json", "mapper.safetensors", "language"
_FORMAT = 1
_IGNORED = -100  # what cross-entropy leaves out
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class DescriberConfig:
    """dim: D of the features. clips, frames: C and F of the visual context. prefix: K. width, layers, heads: of the
    mapping network. words: longest text in tokens, its end included. blind: features are replaced by zeros, which
    is the baseline that sees nothing.
    """

    dim: int
    clips: int = 8
    frames: int = 8
    prefix: int = 10
    width: int = 512
    layers: int = 2
    heads: int = 8
    words: int = 48
    blind: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "clips", "frames", "prefix", "width", "layers", "heads", "words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")


class Mapper(nn.Module):
    """Frames of clips, with learned positions of clip and frame, and K learned queries -> K vectors for GPT-2."""

    def __init__(self, config: DescriberConfig, width_out: int) -> None:
        super().__init__()
        width = config.width
        self.inward = nn.Linear(config.dim, width)
        # As large as what they are added to: the same picture means another thing before the clip than in it.
        self.clip_positions = nn.Parameter(0.5 * torch.randn(config.clips, 1, width))
        self.frame_positions = nn.Parameter(0.5 * torch.randn(1, config.frames, width))
        self.queries = nn.Parameter(0.5 * torch.randn(config.prefix, width))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.outward = nn.Linear(width, width_out)

    def forward(self, frames: Tensor, present: Tensor) -> Tensor:
        """frames float [B, C, F, D], present bool [B, C] -> [B, K, W]. Frames of absent clips are not attended to."""
        batch, _, count, dim = frames.shape
        # Rows of length 1 have entries of about 1 / sqrt(D); the network wants them near 1.
        seen = self.inward(frames * dim**0.5) + self.clip_positions + self.frame_positions
        queries = self.queries.expand(batch, -1, -1)
        hidden = present.new_zeros(batch, len(self.queries))
        absent = torch.cat([hidden, (~present).repeat_interleave(count, dim=1)], dim=1)
        out = self.layers(torch.cat([queries, seen.flatten(1, 2)], dim=1), src_key_padding_mask=absent)
        return self.outward(out[:, : len(self.queries)])


class Describer(nn.Module):
    """A mapping network before a GPT-2 of transformers and its tokenizer.

    language: GPT2LMHeadModel; tokenizer: of the same folder, with an end-of-text token. space: what `space_of` says of
    the features it was made for; features of others are refused. Their rate beside it, "fps", is for encoding more.
    """

    def __init__(
        self, config: DescriberConfig, language: Any, tokenizer: Any, *, space: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer of the language model has no end-of-text token, so no sentence could end")
        if config.prefix + config.words > language.config.n_positions:
            raise ValueError(
                f"the language model has {language.config.n_positions} positions, fewer than a prefix of "
                f"{config.prefix} and {config.words} words take: use fewer words"
            )
        self.config, self.tokenizer = config, tokenizer
        self.space = space
        self.language = language
        self.mapper = Mapper(config, language.config.n_embd)

    @property
    def device(self) -> torch.device:
        return self.mapper.queries.device

    # --- what goes in --------------------------------------------------------------------------------------

    def check_features(self, features: VideoFeatures) -> None:
        """Raises FeaturesError where this describer was not made for such features."""
        if features.dim != self.config.dim:
            raise FeaturesError(
                f"the describer reads features of width {self.config.dim}, those of {space_of(features)['video']} have "
                f"{features.dim}; encode the video with the model it was trained with"
            )
        mine, theirs = self.space or {}, space_of(features)
        for name in ("model weights_sha256", "model projected", "model preprocess"):
            if None not in (mine.get(name), theirs[name]) and mine[name] != theirs[name]:
                raise FeaturesError(
                    f"the describer was trained on features of {mine.get('model id')}, those of {theirs['video']} are "
                    f"of {theirs['model id']} ({name} differs); encode the video with the model it was trained with"
                )

    def context(
        self, features: VideoFeatures, start: float, end: float, rng: np.random.Generator | None = None
    ) -> Context:
        """What this describer sees of a span (`visual_context`); raises ValueError where that is outside the video."""
        return visual_context(features, start, end, clips=self.config.clips, frames=self.config.frames, rng=rng)

    def prefix(self, contexts: Sequence[Context]) -> Tensor:
        """[B, K, W]"""
        frames = torch.from_numpy(np.stack([each.frames for each in contexts])).to(self.device)
        present = torch.from_numpy(np.stack([each.present for each in contexts])).to(self.device)
        return self.mapper(torch.zeros_like(frames) if self.config.blind else frames, present)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text with the token that ends it, whatever their number."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    # --- what comes out ------------------------------------------------------------------------------------

    def loss(self, contexts: Sequence[Context], ids: Sequence[list[int]]) -> Tensor:
        """Mean cross-entropy of all tokens of the batch, each given the prefix and the tokens before it."""
        longest = max(map(len, ids))
        end = self.tokenizer.eos_token_id
        padded = torch.tensor([[*each, *[end] * (longest - len(each))] for each in ids], device=self.device)
        wanted = torch.tensor([[*each, *[_IGNORED] * (longest - len(each))] for each in ids], device=self.device)
        prefix = self.prefix(contexts)
        texts = self.language.get_input_embeddings()(padded[:, :-1])
        # Padding comes last, so no token that counts can see it: a causal model needs no mask for it.
        logits = self.language(inputs_embeds=torch.cat([prefix, texts.to(prefix.dtype)], dim=1)).logits
        said = logits[:, prefix.shape[1] - 1 :]
        return F.cross_entropy(said.flatten(0, 1).float(), wanted.flatten(), ignore_index=_IGNORED)

    @torch.inference_mode()
    def generate(self, contexts: Sequence[Context], *, beam: int = 5) -> list[str]:
        """One text per context by beam search (1: greedily). Deterministic."""
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        from transformers import GenerationConfig

        end = self.tokenizer.eos_token_id
        # Not the model's own: that of a published GPT-2 may say to sample.
        settings = GenerationConfig(
            max_new_tokens=self.config.words,
            num_beams=beam,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            bos_token_id=end,
        )
        was_training = self.training
        self.eval()
        prefix = self.prefix(contexts)
        mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device)
        out = self.language.generate(inputs_embeds=prefix, attention_mask=mask, generation_config=settings)
        self.train(was_training)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    def describe(
        self, features: VideoFeatures, spans: Sequence[tuple[float, float]], *, beam: int = 5
    ) -> list[Description]:
        """What is to be seen in each span [start, end) of a video, in seconds. Raises ValueError (FeaturesError is one)
        for features of another model and for spans outside the video.
        """
        self.check_features(features)
        found: list[Description] = []
        for at in range(0, len(spans), _BATCH):  # contexts are larger than what they are taken from: a batch at a time
            part = spans[at : at + _BATCH]
            texts = self.generate([self.context(features, *span) for span in part], beam=beam)
            found += [Description(start=s, end=e, text=text) for (s, e), text in zip(part, texts, strict=True)]
        return found

    # --- files ---------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], facts: dict[str, Any] | None = None) -> None:
        """Write the folder that `load_describer` reads: describer.json last, so that with it the folder is whole.

        facts: what else is to be known, under "training" in describer.json.
        """
        folder = Path(folder)
        (folder / FACTS).unlink(missing_ok=True)
        language = folder / LANGUAGE
        language.mkdir(parents=True, exist_ok=True)
        with _no_bars():
            self.language.save_pretrained(language)
        self.tokenizer.save_pretrained(language)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.mapper.state_dict().items()}
        record = {"format": _FORMAT, "config": asdict(self.config), "space": self.space, "training": facts or {}}
        write_whole(
            [
                (folder / MAPPER, as_safetensors(weights)),
                (folder / FACTS, (json.dumps(record, indent=1, default=str) + "\n").encode()),
            ],
            folder,
        )


def load_describer(folder: str | os.PathLike[str], *, device: str | None = None) -> Describer:
    """The describer that `Describer.save` wrote. Raises ValueError where the folder does not hold a whole one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one that everyframe evaluate description --out wrote")
    try:
        record = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(f"{folder} has format {record['format']}, this everyframe reads {_FORMAT}")
        config = DescriberConfig(**record["config"])
        language, tokenizer = load_language(str(folder / LANGUAGE))
        describer = Describer(config, language, tokenizer, space=record["space"])
        describer.mapper.load_state_dict(load_file(folder / MAPPER))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds no whole describer ({Path(str(error.filename)).name} is missing): its training may not "
            "have ended; run the same everyframe evaluate description --out again"
        ) from error
    except (KeyError, TypeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds a damaged describer ({error}); train it again into another folder") from error
    return describer.to(parse_device(device)).eval()


def load_language(name: str) -> tuple[Any, Any]:
    """GPT2LMHeadModel in float32 and its tokenizer from a hub id or a folder in the hub's format. Raises ValueError."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    try:
        with _no_bars():
            language = GPT2LMHeadModel.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = next(_lines(error), type(error).__name__)
        raise ValueError(
            f"no GPT-2 can be loaded from {name} ({reason}); give a hub id, a folder in the hub's format, or small"
        ) from error
    if language.config.model_type != "gpt2":
        raise ValueError(f"{name} is a {language.config.model_type}; the language model must be a GPT-2")
    return language, tokenizer


@contextmanager
def _no_bars() -> Iterator[None]:
    """The progress bars of transformers would tear ours apart."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _lines(error: Exception) -> Iterator[str]:
    return (line.strip() for line in str(error).splitlines() if line.strip())
