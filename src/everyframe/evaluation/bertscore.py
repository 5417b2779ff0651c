"""BERTScore: how well the words of two texts match in the eyes of a language model.

Source: Zhang et al., BERTScore (ICLR 2020), section 3, F1 without weights of rarity and without rescaling. Every token
of one text takes the most similar token of the other; precision and recall are the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DEFAULT = "roberta-large"
# The layer whose states agree best with people, by the paper's authors; of other models the last but one fifth.
_LAYERS = {"roberta-large": 17, "roberta-base": 10, "bert-base-uncased": 9, "bert-large-uncased": 18}
_BATCH = 32


@dataclass(frozen=True)
class BertScore:
    """A model, its tokenizer and the layer that is read (0: the embeddings)."""

    model: Any
    tokenizer: Any
    layer: int

    def score(self, said: Mapping[str, Sequence[str]], wrote: Mapping[str, Sequence[str]]) -> float:
        """Mean F1 in [-1, 1] over the keys; said: one text per key, wrote: one or more, of which the best counts."""
        texts = sorted({text for group in (said, wrote) for values in group.values() for text in values})
        states = self.states(texts)
        best = [max(self.f1(states[said[key][0]], states[text]) for text in wrote[key]) for key in wrote]
        return sum(best) / len(best)

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """float [tokens, width], unit rows, of each text; what begins and ends a text is left out."""
        found: dict[str, Tensor] = {}
        for at in range(0, len(texts), _BATCH):
            part = texts[at : at + _BATCH]
            # As the authors' package has it, a word-piece tokenizer takes the first word for one inside a text.
            spaced = [f" {text}" if text else "" for text in part]
            inputs = self.tokenizer(
                spaced, return_tensors="pt", padding=True, truncation=True, return_special_tokens_mask=True
            )
            special = inputs.pop("special_tokens_mask").bool()
            out = self.model(**inputs, output_hidden_states=True).hidden_states[self.layer]
            for text, rows, words in zip(part, F.normalize(out, dim=-1), ~special, strict=True):
                found[text] = rows[words]
        return found

    @staticmethod
    def f1(said: Tensor, wrote: Tensor) -> float:
        """Of two texts' states; 0 where one of them has no words."""
        if not len(said) or not len(wrote):
            return 0.0
        similar = said @ wrote.T
        precision, recall = similar.amax(1).mean().item(), similar.amax(0).mean().item()
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@lru_cache(maxsize=1)
def load_bert(name: str | None = None) -> BertScore:
    """A model of transformers that `BertScore` can read. By default roberta-large, but only from the hub's cache.

    Raises ValueError where there is none.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    wanted = name or DEFAULT
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # a pooler without weights is new, and not used
    try:
        tokenizer = AutoTokenizer.from_pretrained(wanted, local_files_only=name is None)
        model = AutoModel.from_pretrained(wanted, local_files_only=name is None, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        if name is None:
            raise ValueError(
                f"BERTScore needs {DEFAULT}, which is not in the hub's cache: name a model with --bert-model, "
                f"{DEFAULT} to download it, or a folder"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no model for BERTScore can be loaded from {wanted} ({reason})") from error
    finally:
        logging.set_verbosity(level)
    depth = model.config.num_hidden_layers
    layer = _LAYERS.get(wanted.rstrip("/").rpartition("/")[2], max(1, round(0.75 * depth)))
    return BertScore(model, tokenizer, min(layer, depth))
