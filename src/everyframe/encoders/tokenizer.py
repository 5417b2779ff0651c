"""The residual tokenizer A: what makes one token for a P-frame from its I-feature.

Source: ResidualViT, section 3.1; the paper uses one linear layer, the authors' code allows more with ReLU between.
D width of the joint space, W width of the transformer.

The file. safetensors: "weight" [W, D] and "bias" [W]; of a deeper A "0.weight", "0.bias", "1.weight", ... in order.
What the tokenizer was fitted to is stored in the file's own metadata, under "everyframe" as JSON, so that it
cannot get lost: see `ResidualTokenizer.facts`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.backbone import Model, ModelError
from everyframe.backbone.hub import find_file

TOKENIZER_FILE = "residual_tokenizer.safetensors"  # beside a model's weights, found by residual="auto"
PUBLISHED_FILE = "tokenizer.safetensors"  # in a folder or hub repository of its own, as `everyframe distill` writes it
_METADATA = "everyframe"


class ResidualTokenizer(nn.Module):
    """The residual tokenizer A: float [n, D] L2-normalised I-features -> residual tokens [n, W].

    layers: linear layers, with ReLU between; `hidden` is the width between them (default W).
    facts: what it was fitted to. `drop` and `weights_sha256` (of the model) are looked at when it is used; the rest
        is for people: model, select, loss, steps, data, metrics. {} where nothing is known.
    Initial weights are those of torch.nn.Linear; set a seed for the same ones.
    """

    def __init__(
        self, dim: int, width: int, *, layers: int = 1, hidden: int | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        if hidden is not None and (layers == 1 or hidden < 1):
            raise ValueError(f"hidden is the width between 2 or more layers, at least 1; got {hidden} for {layers}")
        inner = [hidden or width] * (layers - 1)
        sizes = [dim, *inner, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.facts: dict[str, Any] = dict(facts or {})

    @property
    def dim(self) -> int:
        """D, width of the I-features it takes."""
        return self.layers[0].in_features  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """W, width of the token it makes."""
        return self.layers[-1].out_features  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].weight.dtype  # type: ignore[return-value]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one token."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 2)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            features = F.relu(layer(features))
        return self.layers[-1](features)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell the present weights from others."""
        values = b"".join(tensor.detach().float().cpu().numpy().tobytes() for tensor in self.parameters())
        return hashlib.sha256(values).hexdigest()[:16]

    @classmethod
    def load(cls, source: str | Path, model: Model) -> ResidualTokenizer:
        """Read a tokenizer file, a folder with `tokenizer.safetensors`, or a hub repository with one.

        Raises FileNotFoundError when there is no such file, ValueError when it is not a tokenizer, its shapes do
        not fit `model`, or it was fitted to other weights.
        """
        file = _find(source)
        try:
            with safe_open(file, framework="pt") as stored:
                facts = json.loads((stored.metadata() or {}).get(_METADATA, "{}"))
                tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
        state = {f"0.{name}" if name in ("weight", "bias") else name: tensor for name, tensor in tensors.items()}
        layers = len({name.partition(".")[0] for name in state})
        hidden = state["0.weight"].shape[0] if layers > 1 and "0.weight" in state else None
        if not all(re.fullmatch(r"\d+\.(weight|bias)", name) for name in state):
            raise ValueError(
                f'{file} is not a residual tokenizer: it holds {sorted(tensors)}, needed are "weight", "bias"'
            )
        width = model.vision.config.width
        tokenizer = cls(model.dim, width, layers=max(layers, 1), hidden=hidden, facts=facts)
        wanted = {name: tuple(tensor.shape) for name, tensor in tokenizer.layers.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if found != wanted:
            raise ValueError(
                f"residual tokenizer {file} does not fit {model.name}: it holds {found}, needed are {wanted}"
            )
        tokenizer.layers.load_state_dict(state)
        tokenizer.check_weights(model, str(file))
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write the file that `load` reads."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.layers.state_dict().items()}
        if len(self.layers) == 1:
            state = {name.removeprefix("0."): tensor for name, tensor in state.items()}
        # Not save_file: its files can be read by their owner alone.
        Path(path).write_bytes(save(state, metadata={_METADATA: json.dumps(self.facts)}))

    def check_weights(self, model: Model, name: str) -> None:
        """Raise ValueError when this tokenizer was fitted to other weights than the model's."""
        fitted = self.facts.get("weights_sha256")
        if fitted is not None and fitted != model.weights_sha256:
            raise ValueError(
                f"residual tokenizer {name} was fitted to other weights (model {self.facts.get('model')}) than those "
                f"of {model.name}: a token means nothing to another model; fit one with everyframe distill"
            )

    def check_drop(self, drop: float, name: str) -> None:
        """Warn when the tokenizer was fitted for another share of dropped patches: it works, but less well."""
        fitted = self.facts.get("drop")
        if fitted is not None and abs(float(fitted) - drop) > 1e-6:
            warnings.warn(
                f"residual tokenizer {name} was fitted for drop={fitted:g} and is used with drop={drop:g}: its "
                f"measured fidelity does not hold there; fit one with everyframe distill --drop {drop:g}, or use "
                f"drop={fitted:g}",
                stacklevel=4,
            )


def shipped_tokenizer(model: Model) -> Path | None:
    """The tokenizer file that lies beside the model's weights, if there is one."""
    file = (model.folder or Path()) / TOKENIZER_FILE
    return file if model.folder is not None and file.is_file() else None


def resolve_tokenizer(
    residual: str | Path | ResidualTokenizer | None, model: Model, drop: float
) -> tuple[ResidualTokenizer | None, str | None]:
    """What `residual` names, on the model's device, and where it came from, for provenance.

    Warns when "auto" finds none, and when it was fitted for another `drop`.
    """
    if residual is None:
        return None, None
    if isinstance(residual, ResidualTokenizer):
        wanted = (model.vision.config.width, model.dim)
        if (residual.width, residual.dim) != wanted:
            found = [residual.width, residual.dim]
            raise ValueError(f"the residual tokenizer's weight is {found}, {model.name} needs {list(wanted)}")
        tokenizer, name = residual, "given"
        tokenizer.check_weights(model, name)
    else:
        if residual == "auto":
            residual = shipped_tokenizer(model)
            if residual is None:
                warnings.warn(
                    f"no residual tokenizer comes with {model.name}: P-frames go without a residual token; "
                    "pass residual=None (--residual none) to say so, or one you fitted with everyframe distill",
                    stacklevel=4,
                )
                return None, None
        tokenizer, name = ResidualTokenizer.load(residual, model), Path(residual).name
    tokenizer.check_drop(drop, name)
    return tokenizer.to(model.device), name


def _find(source: str | Path) -> Path:
    """The tokenizer's file: `source` itself, in a folder, or in a hub repository."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in (PUBLISHED_FILE, TOKENIZER_FILE):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"folder {path} holds no residual tokenizer ({PUBLISHED_FILE})")
    if isinstance(source, Path) or path.suffix or str(source).count("/") != 1 or path.is_absolute():
        raise FileNotFoundError(f"residual tokenizer {source} does not exist")
    try:
        return find_file(str(source), PUBLISHED_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name one made by everyframe distill --push-to") from error
    except ModelError as error:
        raise FileNotFoundError(f"residual tokenizer {source} does not exist: {error}") from error
