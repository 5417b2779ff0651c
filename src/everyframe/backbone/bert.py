"""The BERT side of UMT: texts, texts against clips, and answers to questions about clips.

The first layers of one BERT encode text, the others look at a clip's tokens as well; a second, shorter BERT
writes answers. The layers are transformers' own, under the names that UMT's checkpoints have.

Legend: n texts, L tokens of a text, N' tokens of a clip, C width of the video tower, D width of the joint space.

Sources: Li et al., "Unmasked Teacher" (ICCV 2023); Cheng et al., "VindLU" (CVPR 2023), whose text side UMT uses; Li
et al., "ALBEF" (NeurIPS 2021), where the ranking of answers comes from.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import hub, weights
from everyframe.backbone.hub import ModelError
from everyframe.backbone.video_weights import depth_of, heads_of, shape_of

_TEXT_BATCH = 256
_PAIR_BATCH = 64
_LAYERS, _ANSWER_LAYERS = "text_encoder.encoder.layer.", "text_decoder.bert.encoder.layer."
_WORDS = "text_encoder.embeddings.word_embeddings.weight"


def clean_text(text: str) -> str:
    """A caption or question as UMT was trained on it: lower case, without , . ' ! ? " ( ) * # : ; ~, hyphens and
    slashes as spaces, "<person>" as "person", single spaces.
    """
    text = re.sub(r"""[,.'!?"()*#:;~]""", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s+", " ", text).strip()


@dataclass(frozen=True, kw_only=True)
class BertSizes:
    """UMT's text side, as its tensors tell it."""

    width: int
    heads: int
    mlp_width: int
    vocabulary: int
    context: int
    """Positions, so the longest text in tokens."""
    types: int
    text_layers: int
    fusion_layers: int
    vision_width: int
    dim: int | None
    """Width of the joint space; None without `text_proj` (question answering)."""
    matches: bool
    answer_layers: int
    """Layers of the answer decoder; 0 without."""

    @classmethod
    def of(cls, tensors: dict[str, Tensor], source: str, vision_width: int, heads: int | None) -> "BertSizes":
        """The sizes in a checkpoint's `UmtParts.text`. Raises ModelError where they cannot be known."""
        vocabulary, width = shape_of(tensors, _WORDS, 2, source)
        places = shape_of(tensors, _WORDS.replace("word", "position"), 2, source)
        types = shape_of(tensors, _WORDS.replace("word", "token_type"), 2, source)
        mlp = shape_of(tensors, f"{_LAYERS}0.intermediate.dense.weight", 2, source)
        depth = depth_of(tensors, _LAYERS)
        crossing = [key for key in tensors if key.startswith(_LAYERS) and ".crossattention." in key]
        text_layers = min((int(key[len(_LAYERS) :].split(".")[0]) for key in crossing), default=depth)
        return cls(
            width=width,
            heads=heads_of(width, heads, source, "text_heads"),
            mlp_width=mlp[0],
            vocabulary=vocabulary,
            context=places[0],
            types=types[0],
            text_layers=text_layers,
            fusion_layers=depth - text_layers,
            vision_width=vision_width,
            dim=shape_of(tensors, "text_proj.weight", 2, source)[0] if "text_proj.weight" in tensors else None,
            matches="itm_head.weight" in tensors,
            answer_layers=depth_of(tensors, _ANSWER_LAYERS),
        )


class UmtText(nn.Module):
    """Texts in; features, matching scores or the places of answers out. Made by `load_video`."""

    def __init__(self, sizes: BertSizes, tokenizer: "BertWords") -> None:
        super().__init__()
        self.sizes = sizes
        self.words = tokenizer
        kinds = ["text"] * sizes.text_layers + ["fusion"] * sizes.fusion_layers
        self.text_encoder = _encoder(sizes, kinds)
        self.text_proj = None if sizes.dim is None else nn.Linear(sizes.width, sizes.dim, device="meta")
        self.itm_head = nn.Linear(sizes.width, 2, device="meta") if sizes.matches else None
        self.text_decoder: nn.ModuleDict | None = None
        if sizes.answer_layers:
            decoder = _encoder(sizes, ["answer"] * sizes.answer_layers)
            self.text_decoder = nn.ModuleDict({"bert": decoder, "cls": _word_head(sizes)})

    def encode(self, texts: Sequence[str], *, max_tokens: int = 32) -> Tensor:
        """Texts -> float32 [n, D], each row of length 1: the projected CLS token of the text layers."""
        if self.text_proj is None:
            raise ModelError("this UMT checkpoint has no text_proj, so texts have no features: load a retrieval one")
        features = [torch.empty(0, self.text_proj.out_features, device=self.text_proj.weight.device)]
        for start in range(0, len(texts), _TEXT_BATCH):
            states, _ = self.read(texts[start : start + _TEXT_BATCH], max_tokens)
            features.append(F.normalize(self.text_proj(states[:, 0]).float(), dim=-1))
        return torch.cat(features)

    def match(self, texts: Sequence[str], tokens: Tensor, *, max_tokens: int = 32) -> Tensor:
        """n texts and tokens [n, N', C], or [1, N', C] for all texts, -> float32 [n]: the logit "they match"."""
        if self.itm_head is None or not self.sizes.fusion_layers:
            raise ModelError("this UMT checkpoint has no itm_head or no cross-encoder: load a retrieval one")
        self._check_tokens(texts, tokens)
        scores = [torch.empty(0, device=tokens.device)]
        for start in range(0, len(texts), _PAIR_BATCH):
            part = slice(start, start + _PAIR_BATCH)
            states, mask = self.read(texts[part], max_tokens)
            states = self.fuse(states, mask, tokens if len(tokens) == 1 else tokens[part])
            scores.append(self.itm_head(states[:, 0])[:, 1].float())
        return torch.cat(scores)

    def rank_answers(
        self,
        questions: Sequence[str],
        tokens: Tensor,
        answers: Sequence[str],
        *,
        top: int = 128,
        max_question_tokens: int = 25,
        max_answer_tokens: int = 5,
    ) -> Tensor:
        """n questions, tokens [n, N', C] or [1, N', C], and answers -> int64 [n], places in `answers`.

        Questions are cleaned, answers are taken as they are; token limits are those of UMT's evaluation. The `top`
        answers by the probability of their first token (of equal ones the earlier) are scored: log of that
        probability plus the log-likelihood of all their tokens. The first token thus counts twice, as in ALBEF's
        code and all that came from it.
        """
        if self.text_decoder is None:
            raise ModelError("this UMT checkpoint has no text_decoder: load one fine-tuned for question answering")
        if not answers:
            raise ValueError("answers is empty; give at least one candidate answer")
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self._check_tokens(questions, tokens)
        # The separator that ends an answer is written out, and the tokenizer adds another: it was trained so.
        ended = [f"{answer} {self.words.separator}" for answer in answers]
        ids, real = self.words(ended, max_answer_tokens, tokens.device)
        best = torch.empty(len(questions), dtype=torch.int64, device=tokens.device)
        for number, question in enumerate(questions):
            states, mask = self.read([question], max_question_tokens)
            states = self.fuse(states, mask, tokens if len(tokens) == 1 else tokens[number : number + 1])
            best[number] = self._best_answer(states, mask, ids, real, min(top, len(answers)))
        return best

    def _best_answer(self, states: Tensor, mask: Tensor, ids: Tensor, real: Tensor, top: int) -> Tensor:
        start = self._continue(ids[:1, :1], real[:1, :1], states, mask)[0, 0]
        first = start.softmax(dim=0)[ids[:, 1]]
        kept = first.sort(descending=True, stable=True).indices[:top]
        scores = first[kept].log()
        for begin in range(0, top, _PAIR_BATCH):
            chosen = kept[begin : begin + _PAIR_BATCH]
            logits = self._continue(ids[chosen], real[chosen], states, mask)[:, :-1]
            likelihood = logits.log_softmax(dim=-1).gather(2, ids[chosen, 1:, None])[..., 0]
            scores[begin : begin + _PAIR_BATCH] += (likelihood * real[chosen, 1:]).sum(dim=1)
        return kept[scores.argmax()]

    def _continue(self, ids: Tensor, real: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Answers so far, ids and real tokens [k, L], and one question's states [1, Lq, C] -> float32 logits of
        each next token [k, L, vocabulary].
        """
        decoder: Any = self.text_decoder
        count, length = ids.shape
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        seen = causal & real.bool()[:, None, None, :]
        x = _embed(decoder["bert"]["embeddings"], ids)
        states, mask = states.expand(count, -1, -1), mask.bool()[:, None, None, :].expand(count, -1, -1, -1)
        for layer in decoder["bert"]["encoder"]["layer"]:
            x = _output(layer(x, seen, encoder_hidden_states=states, encoder_attention_mask=mask))
        return decoder["cls"](x).float()

    def read(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Texts, which are cleaned here, -> the states of the text layers [n, L, width] and the real tokens
        [n, L].
        """
        encoder: Any = self.text_encoder
        cleaned = [clean_text(text) for text in texts]  # of a text of marks alone nothing is left, as with UMT's code
        if not 2 < max_tokens <= self.sizes.context:
            raise ValueError(f"max_tokens must be between 3 and the model's {self.sizes.context}, got {max_tokens}")
        ids, real = self.words(cleaned, max_tokens, encoder["embeddings"].LayerNorm.weight.device)
        x = _embed(encoder["embeddings"], ids)
        for layer in encoder["encoder"]["layer"][: self.sizes.text_layers]:
            x = _output(layer(x, real.bool()[:, None, None, :]))
        return x, real

    def fuse(self, states: Tensor, real: Tensor, tokens: Tensor) -> Tensor:
        """States [n, L, width] of `read` and a clip's tokens -> [n, L, width] after the cross-encoder, in which
        every text token sees the whole text and all of the clip's tokens.
        """
        encoder: Any = self.text_encoder
        tokens = tokens.to(states.dtype)
        for layer in encoder["encoder"]["layer"][self.sizes.text_layers :]:
            states = _output(layer(states, real.bool()[:, None, None, :], encoder_hidden_states=tokens))
        return states

    def _check_tokens(self, texts: Sequence[str], tokens: Tensor) -> None:
        width = self.sizes.vision_width
        if tokens.dim() != 3 or tokens.shape[2] != width or not tokens.shape[1]:
            raise ValueError(f"tokens must be [clips, tokens, {width}] as `finish` gave them, got {list(tokens.shape)}")
        if len(tokens) not in (1, len(texts)):
            raise ValueError(
                f"{len(texts)} texts came with the tokens of {len(tokens)} clips; give one clip per text, or one clip"
            )


class BertWords:
    """UMT's tokenizer, transformers' own, from a folder or hub id, read when it is first needed."""

    def __init__(self, name: str | Path, vocabulary: int) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self._tokenizer: Any = None

    @property
    def separator(self) -> str:
        """The token that ends a text."""
        return str(self._load().sep_token)

    def __call__(self, texts: Sequence[str], limit: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Texts -> token ids and the mask of real tokens, int64 [n, L] each, L at most `limit`; longer texts are
        cut, with one UserWarning. Raises ModelError when tokenizer and weights do not belong together.
        """
        tokenizer = self._load()
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        if cut := [text for text, length in zip(texts, lengths, strict=True) if length > limit]:
            warnings.warn(f"{len(cut)} texts were cut to {limit} tokens, the first is {cut[0][:60]!r}", stacklevel=5)
        encoded = tokenizer(
            list(texts),
            padding="longest",
            padding_side="right",
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        ids, real = encoded["input_ids"], encoded["attention_mask"]
        if int(ids.max()) >= self.vocabulary:
            raise ModelError(
                f"the tokenizer of {self.name} gave token {int(ids.max())}, but the weights have {self.vocabulary} "
                "tokens: the two do not belong together; give another tokenizer="
            )
        return ids.to(device), real.to(device)

    def _load(self) -> Any:
        if self._tokenizer is None:
            folder = hub.find_tokenizer(self.name)
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            except Exception as error:  # the tokenizer libraries raise anything, up to plain Exception
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ModelError(
                    f"no tokenizer can be read from {folder} ({type(error).__name__}: {reason}): give tokenizer=, a "
                    "folder with tokenizer.json or vocab.txt, or a hub id"
                ) from error
        return self._tokenizer


def load_umt_text(
    tensors: dict[str, Tensor],
    source: str,
    dtype: torch.dtype,
    vision_width: int,
    heads: int | None,
    tokenizer: str | Path | None,
) -> UmtText:
    """UMT's text side from `UmtParts.text`. Raises ModelError when its weights are not complete."""
    sizes = BertSizes.of(tensors, source, vision_width, heads)
    if tokenizer is None:
        tokenizer = "bert-large-uncased" if sizes.width >= 1024 else "bert-base-uncased"
    try:
        text = UmtText(sizes, BertWords(tokenizer, sizes.vocabulary))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"no BERT can be made from the sizes in {source}: {error}") from error
    shared = {
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
    }
    rules = [weights.Rule(key, (key if key in tensors else shared.get(key, key),)) for key in text.state_dict()]
    weights.fill(text, rules, tensors, dtype, source, "the shapes of its own tensors")
    return text


def _config(sizes: BertSizes, kind: str) -> Any:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        max_position_embeddings=sizes.context,
        type_vocab_size=sizes.types,
        # transformers has cross-attention in decoders alone; what a layer sees of the text is given as a mask
        is_decoder=kind != "text",
        add_cross_attention=kind != "text",
    )
    config._attn_implementation = "sdpa"
    return config


def _encoder(sizes: BertSizes, kinds: list[str]) -> nn.ModuleDict:
    """Embeddings and layers: "text" sees text, "fusion" the clip as well, "answer" the question."""
    from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

    with torch.random.fork_rng(devices=[]):  # on the meta device, embeddings would import torch's compiler: seconds
        embeddings = BertEmbeddings(_config(sizes, "text"))
    layers = nn.ModuleList()
    with torch.device("meta"):
        for kind in kinds:
            layer = BertLayer(_config(sizes, kind))
            if kind == "fusion":
                attention = layer.crossattention.self
                attention.key = nn.Linear(sizes.vision_width, sizes.width)
                attention.value = nn.Linear(sizes.vision_width, sizes.width)
            layers.append(layer)
    return nn.ModuleDict({"embeddings": embeddings, "encoder": nn.ModuleDict({"layer": layers})})


def _word_head(sizes: BertSizes) -> nn.Module:
    from transformers.models.bert.modeling_bert import BertOnlyMLMHead

    with torch.device("meta"):
        return BertOnlyMLMHead(_config(sizes, "answer"))


def _embed(embeddings: nn.Module, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    return embeddings(input_ids=ids, token_type_ids=torch.zeros_like(ids), position_ids=places)


def _output(result: Any) -> Tensor:
    """What a layer returned; some releases of transformers put it in a tuple."""
    return result[0] if isinstance(result, tuple) else result
