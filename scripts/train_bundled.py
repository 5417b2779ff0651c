"""Train the bundled model: a small CLIP-shaped dual encoder that knows only the synthetic world.

    python scripts/train_bundled.py --work work/bundled --out src/everyframe/assets/bundled

About 70 minutes on one CPU core. Everything is seeded; a killed run goes on from its last checkpoint with
the same command. Frames are rendered once into a pool, then trained on with most patches masked (FLIP, Li
et al. 2023: the same accuracy for a fraction of the time), with a short unmasked phase at the end.

Two departures from CLIP's recipe, both because the world is known exactly: a caption counts as a match of
*every* frame in the batch it is true of (soft targets), and an auxiliary head, thrown away afterwards,
names the visible pairs of attributes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyframe.synthetic import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, STYLES, SyntheticVideo

SIDE, PATCH = 112, 8
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
CONTEXT = 48
WORDS = (tuple(COLOURS), PATTERNS, SHAPES, tuple(SIZES))
FIRST_TRAINING_SEED = 1_000_000  # held-out videos use seeds below
FRAMES_A_VIDEO = 40


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes and schedule; `phases` are (frames seen, patches kept) in order."""

    width: int = 128
    depth: int = 4
    text_depth: int = 2
    heads: int = 4
    batch: int = 192
    rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 150
    phases: tuple[tuple[int, int], ...] = ((300_000, 64), (50_000, 98), (24_000, 196))
    seed: int = 0

    @property
    def steps(self) -> list[int]:
        """Patches kept at every step."""
        return [kept for frames, kept in self.phases for _ in range(frames // self.batch)]


# --- the pool of rendered frames -------------------------------------------------------------------------


def scene_codes(video: SyntheticVideo, t: float) -> np.ndarray:
    """What is on screen as word indices: int8 [4, 4], three objects (-1 where absent) and the background."""
    codes = np.full((4, 4), -1, np.int8)
    for row, entity in enumerate(video.visible(t)[:3]):
        values = (entity.colour, entity.pattern, entity.shape, entity.size)
        codes[row] = [words.index(value) for words, value in zip(WORDS, values, strict=True)]
    codes[3, 0] = BACKGROUNDS.index(video.background(t))
    return codes


def render_video(index: int) -> tuple[np.ndarray, np.ndarray]:
    """FRAMES_A_VIDEO random frames of one training video: uint8 [n, SIDE, SIDE, 3] and their codes."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([11, index])
    height = int(rng.choice([112, 144, 192]))
    style = list(STYLES)[index % len(STYLES)]
    video = SyntheticVideo(
        FIRST_TRAINING_SEED + index,
        size=(height * 4 // 3, height),
        style=style,  # type: ignore[arg-type]
        combinations="seen",
    )
    times = np.sort(rng.uniform(0, video.seconds, FRAMES_A_VIDEO))
    frames = torch.from_numpy(np.stack([video.frame(t) for t in times]))
    left = (video.width - height) // 2
    square = frames[:, :, left : left + height].permute(0, 3, 1, 2)
    if height != SIDE:
        square = F.interpolate(square, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    return square.permute(0, 2, 3, 1).numpy(), np.stack([scene_codes(video, t) for t in times])


def build_pool(work: Path, videos: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Render the pool once; a later run maps the finished file."""
    frames_file, codes_file = work / "frames.npy", work / "codes.npy"
    if not codes_file.exists():
        total = videos * FRAMES_A_VIDEO
        frames = np.lib.format.open_memmap(frames_file, "w+", np.uint8, (total, SIDE, SIDE, 3))
        codes = np.empty((total, 4, 4), np.int8)
        started = time.monotonic()
        with ProcessPoolExecutor(workers) as pool:
            for index, (pictures, scenes) in enumerate(pool.map(render_video, range(videos), chunksize=8)):
                rows = slice(index * FRAMES_A_VIDEO, (index + 1) * FRAMES_A_VIDEO)
                frames[rows], codes[rows] = pictures, scenes
                if index % 100 == 99:
                    print(
                        f"rendered {index + 1}/{videos} videos, {time.monotonic() - started:.0f} s",
                        flush=True,
                    )
        frames.flush()
        np.save(codes_file, codes)
    return np.load(frames_file, mmap_mode="r"), np.load(codes_file)


# --- captions and what they are true of ------------------------------------------------------------------


def caption_claims(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Claims of one caption, int8 [4, 4]: a random part of the scene, -1 where nothing is said."""
    claims = np.full((4, 4), -1, np.int8)
    present = np.flatnonzero(codes[:3, 0] >= 0)
    rng.shuffle(present)
    count = rng.integers(1, len(present) + 1) if len(present) else 0
    for row, source in enumerate(present[:count]):
        claims[row] = codes[source]
        if rng.random() < 0.35:
            claims[row, 1] = -1
        if rng.random() < 0.5 or codes[source, 3] == 1:  # "medium" is never said
            claims[row, 3] = -1
        if rng.random() < 0.1:
            claims[row, 0] = -1
    if not len(present) or rng.random() < 0.5:
        claims[3] = codes[3]
    return claims


def caption_text(claims: np.ndarray, rng: np.random.Generator) -> str:
    """Words for claims, in the synthetic world's own grammar with a few phrasings."""
    things = []
    for colour, pattern, shape, size in claims[:3]:
        if shape < 0:
            continue
        plain = pattern == 0
        words = [
            WORDS[3][size] if size >= 0 else "",
            WORDS[0][colour] if colour >= 0 else "",
            WORDS[1][pattern] if pattern > 0 or (plain and rng.random() < 0.2) else "",
            WORDS[2][shape],
        ]
        text = " ".join(word for word in words if word)
        things.append(f"{'an' if text[0] in 'aeiou' else 'a'} {text}")
    text = " and ".join(things)
    if claims[3, 0] >= 0:
        background = BACKGROUNDS[claims[3, 0]]
        text = f"{text} {rng.choice(['over', 'on', 'in front of'])} {background}" if text else background
    return f"{rng.choice(['', '', '', 'a photo of ', 'there is ', 'a video of '])}{text}"


def truth_matrix(codes: Tensor, claims: Tensor) -> Tensor:
    """bool [images, captions]: is each caption true of each image? codes, claims int8 [B, 4, 4].

    An unsaid pattern claims nothing, although "a red star" in the grammar also names plain stars.
    """
    objects, said = codes[:, :3], claims[:, :3]
    same = (said[None, :, :, None] == objects[:, None, None]) | (said[None, :, :, None] < 0)
    present = (objects[:, None, None, :, 0] >= 0) | (said[None, :, :, None, 2] < 0)
    things = (same.all(-1) & present).any(-1).all(-1)
    background = (claims[None, :, 3, 0] == codes[:, None, 3, 0]) | (claims[None, :, 3, 0] < 0)
    return things & background


def attribute_targets(codes: Tensor) -> Tensor:
    """Multi-hot targets of the auxiliary head: colour x shape, pattern x shape, size x shape, colour x
    pattern, background."""
    objects = codes[:, :3].long()
    present = objects[..., 0] >= 0
    parts = []
    for a, b in ((0, 2), (1, 2), (3, 2), (0, 1)):
        width = len(WORDS[b])
        hot = torch.zeros(len(codes), len(WORDS[a]) * width)
        index = (objects[..., a] * width + objects[..., b]).clamp(min=0)
        parts.append(hot.scatter_add(1, index, present.float()).clamp(max=1))
    parts.append(F.one_hot(codes[:, 3, 0].long(), len(BACKGROUNDS)).float())
    return torch.cat(parts, 1)


def build_tokenizer(folder: Path) -> Any:
    """A byte-level BPE in CLIP's format, merges learned on the world's captions; any text tokenizes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = np.random.default_rng(5)
    corpus = []
    for _ in range(4000):
        codes = np.stack([[rng.integers(len(words)) for words in WORDS] for _ in range(4)])
        codes[3] = [rng.integers(len(BACKGROUNDS)), -1, -1, -1]
        corpus.append(caption_text(caption_claims(codes.astype(np.int8), rng), rng))
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=1200, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=[tuple(pair) for pair in merges],
        model_max_length=CONTEXT,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


# --- model and training ----------------------------------------------------------------------------------


def build_model(recipe: Recipe, tokenizer: Any) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.width,
        "hidden_act": "gelu",
    }
    text = {
        "num_hidden_layers": recipe.text_depth,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": recipe.depth, "image_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(recipe.seed)
    config = CLIPConfig(vision_config={**shared, **vision}, text_config={**shared, **text}, projection_dim=recipe.width)
    model = CLIPModel(config)
    # CLIP's initial patch and position embeddings are scaled for widths of 768 and learn slowly here.
    nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=(3 * PATCH**2) ** -0.5)
    return model


def image_features(model: nn.Module, pixels: Tensor, kept: int, generator: torch.Generator) -> Tensor:
    """CLS before projection from `kept` random patches of each picture: [B, width]."""
    vision = model.vision_model
    tokens = vision.embeddings(pixels)
    if kept < tokens.shape[1] - 1:
        order = torch.rand(len(tokens), tokens.shape[1] - 1, generator=generator).argsort(1)[:, :kept] + 1
        chosen = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :1], chosen], 1)
    hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens))[0]
    return vision.post_layernorm(hidden[:, 0])


def augment(pictures: np.ndarray, rng: np.random.Generator) -> Tensor:
    """uint8 [B, SIDE, SIDE, 3] -> normalised [B, 3, SIDE, SIDE]: mirror, shift, gain, blur, noise."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    dy, dx = rng.integers(-6, 7, 2)
    pixels = F.pad(pixels, (6, 6, 6, 6), mode="replicate")[:, :, 6 + dy : 6 + dy + SIDE, 6 + dx : 6 + dx + SIDE]
    if rng.random() < 0.3:  # what a codec at a low bitrate does to detail
        pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (len(pixels), 1, 1, 1))).float()
    pixels = (pixels * gain).clamp_(0, 1)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels - mean) / std


def soft_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy against the uniform distribution over each row's true entries."""
    target = truth / truth.sum(1, keepdim=True).clamp(min=1)
    return -(target * logits.log_softmax(1)).sum(1).mean()


class Trainer:
    """Owns model, auxiliary head, optimizer and step; checkpoints are written atomically."""

    def __init__(self, recipe: Recipe, work: Path, tokenizer: Any) -> None:
        self.recipe, self.work, self.tokenizer = recipe, work, tokenizer
        self.model = build_model(recipe, tokenizer)
        outputs = len(attribute_targets(torch.zeros(1, 4, 4, dtype=torch.int8))[0])
        self.head = nn.Linear(recipe.width, outputs)
        decay = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=recipe.rate,
            betas=(0.9, 0.98),
        )
        self.step = 0

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.head.parameters()]

    def rate(self) -> float:
        total, warmup = len(self.recipe.steps), self.recipe.warmup
        if self.step < warmup:
            return self.recipe.rate * (self.step + 1) / warmup
        progress = (self.step - warmup) / max(total - warmup, 1)
        return self.recipe.rate * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def train_step(self, frames: np.ndarray, codes: np.ndarray) -> dict[str, float]:
        """One batch; its random choices depend on the seed and the step alone, so resuming changes nothing."""
        rng = np.random.default_rng([self.recipe.seed, 23, self.step])
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        rows = np.sort(rng.choice(len(codes), self.recipe.batch, replace=False))
        scenes = codes[rows]
        claims = np.stack([caption_claims(scene, rng) for scene in scenes])
        texts = [caption_text(claim, rng) for claim in claims]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
        truth = truth_matrix(torch.from_numpy(scenes), torch.from_numpy(claims)).float()
        pixels = augment(np.asarray(frames[rows]), rng)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = image_features(self.model, pixels, self.recipe.steps[self.step], generator)
            images = self.model.visual_projection(hidden)
            words = self.model.get_text_features(**tokens)
            words = getattr(words, "pooler_output", words)
        images, words = F.normalize(images.float(), dim=1), F.normalize(words.float(), dim=1)
        logits = self.model.logit_scale.exp().clamp(max=100) * images @ words.T
        contrast = (soft_cross_entropy(logits, truth) + soft_cross_entropy(logits.T, truth.T)) / 2
        names = (
            F.binary_cross_entropy_with_logits(
                self.head(hidden.float()), attribute_targets(torch.from_numpy(scenes)), reduction="none"
            )
            .sum(1)
            .mean()
        )
        loss = contrast + 0.15 * names
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        scale = float(self.model.logit_scale.detach().exp())
        return {"contrast": contrast.item(), "names": names.item(), "scale": scale}

    def state(self) -> dict[str, Any]:
        return {
            "recipe": repr(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def save(self) -> None:
        torch.save(self.state(), self.work / "checkpoint.tmp")
        os.replace(self.work / "checkpoint.tmp", self.work / "checkpoint.pt")

    def resume(self) -> None:
        file = self.work / "checkpoint.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        if state["recipe"] != repr(self.recipe):
            raise SystemExit(f"{file} was made by another recipe; remove it or choose another --work")
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"resumed at step {self.step}", flush=True)

    def export(self, out: Path) -> None:
        """Hugging Face CLIP format: float16 safetensors, config, tokenizer, preprocessor_config."""
        out.mkdir(parents=True, exist_ok=True)
        half = build_model(self.recipe, self.tokenizer).half()
        half.load_state_dict(self.model.state_dict())
        half.save_pretrained(out)
        build_tokenizer(out)  # anew: the one in use carries its last padding and truncation along
        preprocess = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": SIDE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": SIDE, "width": SIDE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": STD,
        }
        (out / "preprocessor_config.json").write_text(json.dumps(preprocess, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/bundled"), help="pool, checkpoint and log")
    parser.add_argument("--out", type=Path, default=Path("src/everyframe/assets/bundled"))
    parser.add_argument("--videos", type=int, default=2400, help="training videos in the pool")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=1, help="threads that train")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(options.work / "tokenizer")
    trainer = Trainer(Recipe(), options.work, tokenizer)
    trainer.resume()
    if not options.export_only:
        frames, codes = build_pool(options.work, options.videos, options.workers)
        started, first = time.monotonic(), trainer.step
        while trainer.step < len(trainer.recipe.steps):
            report = trainer.train_step(frames, codes)
            if trainer.step % 25 == 0:
                speed = (trainer.step - first) * trainer.recipe.batch / (time.monotonic() - started)
                line = {
                    "step": trainer.step,
                    "of": len(trainer.recipe.steps),
                    **report,
                    "frames_per_s": speed,
                }
                print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
            if trainer.step % 100 == 0:
                trainer.save()
        trainer.save()
    trainer.export(options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"exported to {options.out}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
