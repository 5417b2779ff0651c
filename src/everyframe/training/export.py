"""A fine-tuned model as a folder: Hugging Face weights, and what TempMe adds to them.

model.safetensors, config.json, ... are an ordinary CLIP checkpoint, which `everyframe.load` and transformers read;
tempme.json and tempme.safetensors hold the schedule and the clip positions, with which `load_tempme` makes the encoder
again. Adapters and prompts have no place in a CLIP checkpoint: then the folder has adapters.safetensors and names the
model that they belong to.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyframe.backbone import Model, ModelError, load
from everyframe.backbone.hub import TOKENIZER_FILES, sha256, weights_files
from everyframe.backbone.weights import Rule, clip_vision_rules, text_rules
from everyframe.encoders import TempMe
from everyframe.encoders.clip_positions import named_positions, read_positions
from everyframe.feature_files import write_whole
from everyframe.training.adapters import Tuning
from everyframe.training.errors import TrainingError

SETTINGS, POSITIONS, ADAPTERS, WEIGHTS = (
    "tempme.json",
    "tempme.safetensors",
    "adapters.safetensors",
    "model.safetensors",
)
_BESIDE = ("preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES)


def clip_state(model: Model) -> dict[str, Tensor]:
    """The weights of a CLIP `Model` under transformers' names, float32: what `CLIPModel` loads, and `load` read.

    The inverse of the rules in backbone/weights.py. The class token of ours has its position added already; here that
    sum is the class token and its position zero, which gives the same numbers. Raises TrainingError for another family.
    """
    if model.family != "clip" or model.text is None:
        raise TrainingError(f"{model.name} is no CLIP model with a text tower, so it has no CLIP checkpoint")
    state: dict[str, Tensor] = {"logit_scale": torch.tensor(math.log(model.logit_scale))}
    side = model.vision.config.patch_size
    ours = {name: tensor.detach().float().cpu() for name, tensor in model.vision.state_dict().items()}
    for rule in clip_vision_rules(model.vision.config):
        tensor = ours[rule.target]
        if rule.target == "patch.weight":
            state[rule.sources[0]] = tensor.unflatten(1, (3, side, side))
        elif rule.target == "prefix_tokens":
            state[rule.sources[0]] = tensor[0]
        elif rule.target == "positions":
            state[rule.sources[0]] = torch.cat((torch.zeros(1, tensor.shape[1]), tensor))
        else:
            state |= _split(rule, tensor)
    ours = {name: tensor.detach().float().cpu() for name, tensor in model.text.state_dict().items()}
    for rule in text_rules(model.text.config):
        state |= _split(rule, ours[rule.target])
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def _split(rule: Rule, tensor: Tensor) -> dict[str, Tensor]:
    """Fused tensors lie one after the other along the first axis."""
    return dict(zip(rule.sources, tensor.chunk(len(rule.sources)), strict=True))


def save_tempme(
    folder: Path, tuning: Tuning, positions: dict[int, Tensor], schedule: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write what `load_tempme` reads. LoRA is merged into the weights before.

    positions, schedule: of the `TempMe`. facts: more for tempme.json.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    model = tuning.merged()
    if tuning.mergeable:
        _save_clip(model, folder)
    else:
        base = {"base": os.path.abspath(model.name) if os.path.isdir(model.name) else model.name}
        facts = {**facts, **base, "base_sha256": model.weights_sha256, "size": tuning.size}
        _write(folder / ADAPTERS, save(tuning.state(), {"format": "pt"}))
    _write(folder / POSITIONS, save(named_positions(positions), {"format": "pt"}))
    settings = {"schedule": schedule, "tune": tuning.how, **facts}
    _write(folder / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())


def load_tempme(folder: str | Path, *, model: Model | None = None, device: str | None = None) -> TempMe:
    """The fine-tuned encoder that `finetune` wrote to a folder; its `model` reads the texts.

    model: of adapters and prompts, the model they belong to, which is changed in place; by default it is loaded by
    the name it had. device: as for `load`.

    Raises ModelError when the folder is not such a one, is damaged, or the model has other weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise ModelError(f"{folder} holds no {SETTINGS}: give the --out folder of everyframe finetune")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        positions = read_positions(folder / POSITIONS)
        schedule = _with_numbers(settings["schedule"])
        if settings["tune"] in ("lora", "full"):
            if model is not None:
                raise ValueError(f"{folder} holds a whole model; leave out the argument model")
            return TempMe(load(folder, device=device), **schedule, positions=positions)
        if model is None:
            model = load(settings["base"], device=device)
        if model.weights_sha256 != settings["base_sha256"]:
            raise ModelError(f"{folder} was fitted to {settings['base']} with other weights than {model.name} has")
        tuning = Tuning(model, settings["tune"], size=settings["size"])
        tuning.load(load_file(folder / ADAPTERS))
        # Features name what they were made by, and this is no longer the model that was loaded.
        model.name = os.path.abspath(folder)
        model.weights_sha256 = sha256([folder / ADAPTERS, *weights_files(model.folder or folder)])
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise ModelError(f"{folder} is not a whole folder of everyframe finetune ({error}); run it again") from error
    return TempMe(tuning.merged(), **schedule, positions=positions)


def _with_numbers(schedule: dict[str, Any]) -> dict[str, Any]:
    """JSON has no numbers as keys."""
    return {**schedule, "clips": {int(layer): count for layer, count in schedule["clips"].items()}}


def _save_clip(model: Model, folder: Path) -> None:
    from safetensors.torch import save

    if model.folder is None:
        raise TrainingError(f"{model.name} has no folder with its configuration, so it cannot be saved")
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config |= {"dtype": "float32", "architectures": ["CLIPModel"], "model_type": "clip"}
    _write(folder / WEIGHTS, save(clip_state(model), {"format": "pt"}))
    for name in _BESIDE:
        if (model.folder / name).is_file() and model.folder.resolve() != folder.resolve():
            shutil.copyfile(model.folder / name, folder / name)
    # Last: a folder with it is a model.
    _write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def _write(file: Path, content: bytes) -> None:
    write_whole([(file, content)], file)
