"""The text tower, made of the vision tower's block, and the tokenizer in front of it.

Legend: B batch, L tokens of a text, C context length, W width, D width of the joint space.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyframe.backbone.hub import TOKENIZER_FILES, ModelError
from everyframe.backbone.vit import Block, BlockConfig


@dataclass(frozen=True, kw_only=True)
class TextConfig(BlockConfig):
    """A text tower. CLIP's is causal and reads its feature at the end-of-text token; SigLIP's is neither."""

    depth: int
    vocabulary: int
    context: int
    """The longest text in tokens, special tokens included."""
    dim: int
    causal: bool
    end_token: int | None = None
    """Pool at this token's first occurrence; None pools at the last position (SigLIP)."""
    end_is_highest: bool = False
    """Pool at the highest token id instead (the rule of CLIP checkpoints whose config says `eos_token_id:
    2`).
    """
    head_bias: bool = False


class TextTransformer(nn.Module):
    """Token ids in, one feature per text out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        # nn.Embedding's own initialisation, on the meta device, would import torch's compiler: seconds
        empty = torch.empty(config.vocabulary, config.width)
        self.tokens = nn.Embedding.from_pretrained(empty, freeze=False)
        self.positions = nn.Parameter(torch.zeros(config.context, config.width))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm_post = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.projection = nn.Linear(config.width, config.dim, bias=config.head_bias)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids [B, L], L <= C, to features [B, D], not normalised.

        `mask` [B, L], true where a token is real, keeps the padding out of the attention. A causal tower has
        no need of it when the padding comes last, and ignores it.
        """
        x = self._blocks(ids, mask)
        return self.projection(self.norm_post(x[torch.arange(len(x), device=x.device), self.ends(ids)]))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] of a causal tower to its normed states [B, L, W], not projected, and features [B, D]."""
        states = self.norm_post(self._blocks(ids, None))
        return states, self.projection(states[torch.arange(len(states), device=states.device), self.ends(ids)])

    def _blocks(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        bias = None if mask is None or self.config.causal else mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, causal=self.config.causal, bias=bias)
        return x

    def ends(self, ids: Tensor) -> Tensor:
        """int64 [B]: where in token ids [B, L] the feature is read."""
        if self.config.end_is_highest:
            return ids.argmax(dim=1)
        if self.config.end_token is None:
            return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        return (ids == self.config.end_token).int().argmax(dim=1)


class Tokenizer:
    """The model's own tokenizer, from transformers, read from the model's folder when it is first needed."""

    def __init__(self, folder: Path, config: TextConfig) -> None:
        self.folder = folder
        self.config = config
        self._tokenizer: Any = None

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Texts -> token ids [B, L] and, if this tokenizer makes one, the mask of real tokens [B, L]; both
        int64.

        CLIP's texts are padded to the longest of the batch (later tokens cannot change earlier ones),
        SigLIP's to the context length, as it was trained. Longer texts are cut, with a UserWarning. Raises
        ModelError when tokenizer and weights do not belong together.
        """
        tokenizer = self._load()
        context, causal = self.config.context, self.config.causal
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        for text, length in zip(texts, lengths, strict=True):
            if length > context:
                warnings.warn(
                    f"a text of {length} tokens was cut to the model's {context}: {_shorten(text)!r}",
                    stacklevel=4,
                )
        options: dict[str, Any] = {"padding": "longest", "padding_side": "right"} if causal else {}
        encoded = tokenizer(
            list(texts),
            **{"padding": "max_length", **options},
            truncation=True,
            max_length=context,
            return_tensors="pt",
        )
        ids: Tensor = encoded["input_ids"]
        self._check(ids)
        return ids, encoded.get("attention_mask")

    def _check(self, ids: Tensor) -> None:
        if int(ids.max()) >= self.config.vocabulary:
            raise ModelError(
                f"the tokenizer in {self.folder} gave token {int(ids.max())}, but the weights have "
                f"{self.config.vocabulary} tokens: the two do not belong together"
            )
        end = self.config.end_token
        if end is not None and not self.config.end_is_highest and not (ids == end).any(dim=1).all():
            raise ModelError(
                f"the tokenizer in {self.folder} does not end a text with token {end}, the eos_token_id of "
                "the model's config: the two do not belong together"
            )

    def _load(self) -> Any:
        if self._tokenizer is not None:
            return self._tokenizer
        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model")):
            missing = ", ".join(TOKENIZER_FILES[:2])
            raise ModelError(
                f"{self.folder} holds no tokenizer, so texts cannot be encoded: put {missing} beside the "
                "weights (or vocab.json and merges.txt for CLIP, spiece.model for SigLIP)"
            )
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except ImportError as error:
            raise ModelError(f"the tokenizer in {self.folder} needs a package that is missing: {error}") from error
        except Exception as error:  # the tokenizer libraries raise anything, up to plain Exception, on a bad file
            raise ModelError(
                f"the tokenizer files in {self.folder} cannot be read ({type(error).__name__}: {error})"
            ) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer = tokenizer
        return tokenizer


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises TypeError for anything but a sequence of str, ValueError for a blank."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of str, got one str; pass [{_shorten(texts)!r}]")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] must be a str, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"texts[{number}] is blank: {text!r}; a query needs at least one word")
    return texts


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
