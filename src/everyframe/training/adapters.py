"""What is fitted of a CLIP model: low-rank updates (LoRA), bottleneck adapters, prompt tokens, or all of it.

Sources: TempMe, section 3 and its authors' code, whose LoRA has one A for queries, keys and values together; Hu et
al., "LoRA" (ICLR 2022); Houlsby et al., adapters (ICML 2019); Jia et al., "Visual Prompt Tuning" (ECCV 2022).
W width of a tower, r rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from everyframe.backbone import Block, Model
from everyframe.encoders import TempMe
from everyframe.extras import require
from everyframe.training.errors import TrainingError

Tune = Literal["lora", "adapter", "prompt", "full"]
TUNES = ("lora", "adapter", "prompt", "full")
SIZES = {"lora": 8, "adapter": 64, "prompt": 8, "full": 1}
"""Rank of LoRA (the paper's), width of an adapter, prompt tokens per tower."""
RATES = {"lora": 6e-4, "adapter": 6e-4, "prompt": 6e-4, "full": 1e-6}
"""Learning rates: the paper's for LoRA, and the same where new parameters start from nothing."""


class Tuning:
    """A model that is being fitted, changed in place: which parameters, and how to get rid of what was added.

    how: "lora": rank-`size` updates of the fused `qkv` of every block of both towers, scaling 1: A [size, W] from
        U(-1/sqrt(W), 1/sqrt(W)), B [3 W, size] zero. "adapter": after every MLP, inside its residual branch,
        x + up(gelu(down(x))) with `size` hidden units, `up` zero. "prompt": `size` learned tokens join each tower's
        sequence before the first block, after the patches of a picture (where they may be merged like patches) and
        before a text. "full": every parameter of both towers.
    seed: of the first values.

    `parameters` are those fitted, by name; everything else is frozen.
    """

    def __init__(self, model: Model, how: Tune, *, size: int | None = None, seed: int = 0) -> None:
        if how not in TUNES:
            raise ValueError(f"tune must be one of {', '.join(TUNES)}, got {how!r}")
        if model.family != "clip" or model.text is None:
            raise TrainingError(f"{model.name} is no CLIP model with a text tower, which fine-tuning needs")
        self.model, self.how = model, how
        self.size = SIZES[how] if size is None else size
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        model.requires_grad_(False)
        self._peft: Any = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            added = {"lora": self._lora, "adapter": self._adapter, "prompt": self._prompt, "full": self._full}[how]()
        for parameter in added.values():
            parameter.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = added

    def count(self) -> int:
        """How many numbers are fitted."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def state(self) -> dict[str, Tensor]:
        """A copy of what is fitted, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave. Raises TrainingError for other names or shapes."""
        if {name: tensor.shape for name, tensor in state.items()} != {
            name: parameter.shape for name, parameter in self.parameters.items()
        }:
            raise TrainingError(f"these weights belong to another model or another --tune than {self.how!r}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def merged(self) -> Model:
        """The model with what was fitted inside its own weights: plain again, frozen, at no extra cost.

        Adapters and prompts cannot be merged and stay as they are.
        """
        if self._peft is not None:
            self._peft.merge_and_unload()
            self._peft = None
        self.model.requires_grad_(False)
        return self.model

    @property
    def mergeable(self) -> bool:
        """Whether `merged` gives a plain CLIP model."""
        return self.how in ("lora", "full")

    # --- the four ways -------------------------------------------------------------------------------------

    def _lora(self) -> dict[str, nn.Parameter]:
        peft = require("peft", extra="finetune")
        config = peft.LoraConfig(
            r=self.size,
            lora_alpha=self.size,  # alpha / r is the scaling: 1
            lora_dropout=0.0,
            bias="none",
            target_modules=r"(vision|text)\.blocks\.\d+\.qkv",
        )
        self._peft = peft.get_peft_model(self.model, config)
        return {name: parameter for name, parameter in self.model.named_parameters() if "lora_" in name}

    def _adapter(self) -> dict[str, nn.Parameter]:
        added: dict[str, nn.Parameter] = {}
        for name, block in _blocks(self.model):
            device = block.qkv.weight.device
            block.mlp = _Adapted(block.mlp, block.qkv.in_features, self.size).to(device)  # type: ignore[assignment]
            for part in ("down", "up"):
                own = getattr(block.mlp, part).named_parameters()
                added |= {f"{name}.{part}.{key}": parameter for key, parameter in own}
        return added

    def _prompt(self) -> dict[str, nn.Parameter]:
        vision, text = self.model.vision, self.model.text
        if text is None or vision.norm_pre is None:
            raise TrainingError(f"{self.model.name} lacks what prompt tokens join")
        added = {}
        for name, tower in (("vision", vision), ("text", text)):
            tokens = torch.randn(self.size, tower.config.width) * 0.02
            added[f"{name}.prompts"] = nn.Parameter(tokens.to(self.model.device))
            tower.register_parameter("prompts", added[f"{name}.prompts"])
        count, blocks = self.size, text.blocks

        def after(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            return torch.cat((tokens, added["vision.prompts"].to(tokens.dtype).expand(len(tokens), -1, -1)), dim=1)

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            prompts = added["text.prompts"].to(inputs[0].dtype).expand(len(inputs[0]), -1, -1)
            return (torch.cat((prompts, inputs[0]), dim=1), *inputs[1:])

        def without(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            return tokens[:, count:]

        # Hooks, so that whatever runs the towers' blocks, here or in an encoder, meets the prompts.
        vision.norm_pre.register_forward_hook(after)
        blocks[0].register_forward_pre_hook(before)
        blocks[-1].register_forward_hook(without)
        return added

    def _full(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())


class _Adapted(nn.Module):
    """An MLP with a bottleneck after it: [..., W] -> [..., W]."""

    def __init__(self, mlp: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        return x + self.up(F.gelu(self.down(x)))


def _blocks(model: Model) -> list[tuple[str, Block]]:
    """The blocks of both towers by their names."""
    towers = {"vision": model.vision, "text": model.text}
    found: list[tuple[str, Any]] = []
    for name, tower in towers.items():
        if tower is not None:
            found += [(f"{name}.blocks.{layer}", block) for layer, block in enumerate(tower.blocks)]
    return found


def tempme_of(model: Model, schedule: dict[str, Any], frames: int) -> TempMe:
    """The encoder with clip positions that can be fitted: zeros. Raises ValueError for frames it cannot join."""
    return TempMe(model, **schedule, positions=TempMe(model, **schedule).zero_positions(frames))


def recompute(tower: nn.Module) -> None:
    """Let the blocks of a text tower keep their input only, and compute what is inside once more going back."""
    blocks: Any = getattr(tower, "blocks", ())
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
