"""What each trainer has to be told of the features: lines to show, and files ready to use.

The hyperparameters are those the trainers' own configurations have for ActivityNet; only what depends on the features
differs. Checked against OpenTAD's configs/actionformer/anet_tsp.py and ActionFormer's configs/anet_tsp.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from everyframe.exports.targets import Phase, Settings, Target

_MAX_CLIPS = 75  # Moment-DETR's and lighthouse's max_v_l: rows after these are not read
_PADDED = 768  # rows that the padded configurations of OpenTAD and ActionFormer take


@dataclass(frozen=True)
class Config:
    """files: by name, for the output folder. lines: the part that depends on the features, to show."""

    files: dict[str, str]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of an export. longest: rows of the longest video. block_list: is there a missing_files.txt?"""

    settings: Settings
    rate: float
    folder: Path
    dim: int
    model: str
    longest: int
    block_list: bool

    @property
    def head(self) -> str:
        """First line of every file, as a comment."""
        return (
            f"# everyframe export: {self.model}, {self.dim} wide, {self.rate:g} rows per second, row k stands for "
            f"{'(k + 0.5)' if self.settings.phase == 'middle' else 'k'}/{self.rate:g} s\n"
        )


def config_of(
    target: Target, settings: Settings, *, folder: Path, dim: int, model: str, longest: int, block_list: bool
) -> Config:
    """Configuration for features in `folder`. Raises ValueError for a rate that the target cannot express."""
    if settings.rate is None:
        raise ValueError("the rate of an export is known before its configuration is made")
    facts = Facts(
        settings=settings, rate=settings.rate, folder=folder, dim=dim, model=model, longest=longest,
        block_list=block_list,
    )  # fmt: skip
    return _MAKERS[target.name](facts)


def opentad_grid(rate: float, phase: Phase | None) -> dict[str, int]:
    """OpenTAD's integers: second of row x is (x * feature_stride * sample_stride + offset_frames) / fps.

    Raises ValueError for a rate that is no ratio of small integers, which only very small ones are not.
    """
    ratio = Fraction(rate).limit_denominator(1000)
    if abs(float(ratio) - rate) > 1e-6 * rate:  # else 2 hours end at most 7 ms off
        raise ValueError(f"OpenTAD counts in whole frames, and {rate:g} rows per second is no ratio of small numbers")
    fps, stride = ratio.numerator, ratio.denominator
    if phase == "middle" and stride % 2:
        fps, stride = 2 * fps, 2 * stride
    return {
        "fps": fps,
        "feature_stride": stride,
        "sample_stride": 1,
        "offset_frames": stride // 2 if phase == "middle" else 0,
    }


def _longer(facts: Facts) -> str:
    if facts.longest <= _PADDED:
        return ""
    return f"  # the longest video has {facts.longest} rows, more than {_PADDED}; a lower rate fits"


def _clips(facts: Facts) -> tuple[str, ...]:
    """What Moment-DETR and lighthouse share."""
    limit = max(facts.longest, _MAX_CLIPS)
    why = f"  # {_MAX_CLIPS}, the default, would cut the longest video" if limit > _MAX_CLIPS else ""
    return (f"clip_length: {1 / facts.rate:g}", f"max_v_l: {limit}{why}")


def _moment_detr(facts: Facts) -> Config:
    length, limit = _clips(facts)
    note = "" if (1 / facts.rate).is_integer() else "  # an int in moment_detr/config.py"
    texts = facts.folder.parent / "clip_text"
    options = (
        f"--v_feat_dirs {facts.folder}",
        f"--v_feat_dim {facts.dim}  # its options add 2 for where a clip starts and ends: {facts.dim + 2}",
        f"--t_feat_dir {texts}",
        "--ctx_mode video_tef",
        f"--{length.replace(':', '')}{note}",
        f"--{limit.replace(':', '')}",
    )
    return Config({"moment_detr_options.txt": facts.head + "".join(f"{line}\n" for line in options)}, options)


def _lighthouse(facts: Facts) -> Config:
    lines = (
        "ctx_mode: video_tef",
        "v_feat_types: clip",
        "t_feat_type: clip",
        f"v_feat_dim: {facts.dim + 2}  # {facts.dim}, and 2 for where a clip starts and ends",
        *_clips(facts),
    )
    note = (
        f"# for configs/feature/clip.yml; the folder above {facts.folder.name} is features/<dataset>\n"
        "# t_feat_dim is the width of the texts in clip_text: 512 for ViT-B, 768 for ViT-L\n"
    )
    return Config({"lighthouse_clip.yml": facts.head + note + "".join(f"{line}\n" for line in lines)}, lines)


def _opentad(facts: Facts) -> Config:
    grid = opentad_grid(facts.rate, facts.settings.phase)
    block = 'data_path + "/missing_files.txt"' if facts.block_list else "None"
    lines = (
        f'data_path = "{facts.folder}"',
        f"block_list = {block}" + ("" if facts.block_list else "  # a video without features ends the run"),
        f"in_channels = {facts.dim}",
        "resizing: resize_length=192, needs no rate",
        "padding: " + ", ".join(f"{name}={value}" for name, value in grid.items()) + _longer(facts),
    )
    files = {
        "opentad_actionformer_resize.py": _opentad_file(facts, lines, "features_tsp_resize_trunc.py", 192, {}),
        "opentad_actionformer_pad.py": _opentad_file(facts, lines, "features_tsp_pad.py", _PADDED, grid),
    }
    return Config(files, lines)


def _opentad_file(facts: Facts, lines: tuple[str, ...], base: str, length: int, grid: dict[str, int]) -> str:
    """A configuration on top of OpenTAD's own for ActivityNet and ActionFormer, to lie in configs/actionformer."""
    own = "".join(f", {name}={value}" for name, value in grid.items())
    windows = "[7, 7, 7, 7, 7, -1]" if not grid else "[25, 25, 25, 25, 25, -1]"
    pipelines = "" if facts.settings.prefix == "v_" else ", pipeline={split}_pipeline"
    splits = "\n".join(
        f"    {split}=dict(data_path=data_path, block_list=block_list{own}{pipelines.format(split=split)}),"
        for split in ("train", "val", "test")
    )
    return f"""{facts.head}# Lies in OpenTAD's configs/actionformer; its tools/train.py takes it.
_base_ = ["../_base_/datasets/activitynet-1.3/{base}", "../_base_/models/actionformer.py"]

{lines[0]}
{lines[1]}
{_opentad_pipelines(facts.settings.prefix, length, padded=bool(grid)) if pipelines else ""}dataset = dict(
{splits}
)
model = dict(
    projection=dict(
        {lines[2].replace(" ", "")},
        out_channels=256,
        attn_cfg=dict(n_mha_win_size={windows}),
        use_abs_pe=True,
        max_seq_len={length},
        input_pdrop=0.2,
    ),
    neck=dict(in_channels=256, out_channels=256),
    rpn_head=dict(
        in_channels=256,
        feat_channels=256,
        num_classes=1,
        label_smoothing=0.1,
        loss_weight=2.0,
        loss_normalizer={200 if not grid else 400},
    ),
)
solver = dict(
    train=dict(batch_size=16, num_workers=4),
    val=dict(batch_size=16, num_workers=4),
    test=dict(batch_size=16, num_workers=4),
    clip_grad_norm=1,
    ema=True,
)
optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05, paramwise=True)
scheduler = dict(type="LinearWarmupCosineAnnealingLR", warmup_epoch=5, max_epoch=15)
inference = dict(load_from_raw_predictions=False, save_raw_prediction=False)
post_processing = dict(
    nms=dict(
        use_soft_nms=True,
        sigma=0.75,
        max_seg_num=100,
        iou_threshold=0,
        min_score=0.001,
        multiclass=False,
        voting_thresh=0.9,
    ),
    external_cls=dict(
        type="CUHKANETClassifier", path="data/activitynet-1.3/classifiers/cuhk_val_simp_7.json", topk=2
    ),
    save_dict=False,
)
workflow = dict(
    logging_interval=200, checkpoint_interval=1, val_loss_interval=1, val_eval_interval=1, val_start_epoch=7
)
work_dir = "exps/anet/actionformer_everyframe"
"""


def _opentad_pipelines(prefix: str, length: int, *, padded: bool) -> str:
    """The base configurations load files with the prefix v_; with another one the three pipelines are said again."""
    resize = [] if padded else ['dict(type="ResizeFeat", tool="torchvision_align")']
    cut = f'dict(type="RandomTrunc", trunc_len={length}, trunc_thresh=0.5, crop_ratio=[0.9, 1.0])'
    pad = [f'dict(type="Padding", length={length})'] if padded else []
    text = ""
    for split, steps, truth in (("train", [cut], True), ("val", pad, True), ("test", pad, False)):
        keys = ', "gt_segments", "gt_labels"' if truth else ""
        parts = [
            f'dict(type="LoadFeats", feat_format="npy", prefix="{prefix}")',
            f'dict(type="ConvertToTensor", keys=["feats"{keys}])',
            *resize,
            *steps,
            'dict(type="Rearrange", keys=["feats"], ops="t c -> c t")',
            f'dict(type="Collect", inputs="feats", keys=["masks"{keys}])',
        ]
        text += f"{split}_pipeline = [\n" + "".join(f"    {part},\n" for part in parts) + "]\n"
    return text


def _actionformer(facts: Facts) -> Config:
    frames = 1 if facts.settings.phase == "middle" else 0
    lines = (
        f"feat_folder: {facts.folder}",
        f"file_prefix: {facts.settings.prefix or 'null'}",
        "file_ext: .npy",
        f"input_dim: {facts.dim}",
        "feat_stride: 1",
        f"num_frames: {frames}  # second of row k is (k + 0.5 * num_frames) / default_fps",
        f"default_fps: {facts.rate:g}",
        f"max_seq_len: {_PADDED}{_longer(facts)}",
    )
    own = "".join(f"  {line}\n" for line in lines)
    text = f"""{facts.head}dataset_name: anet
train_split: [training]
val_split: [validation]
dataset:
  json_file: ./data/anet_1.3/annotations/anet1.3_tsp_filtered.json  # each annotation needs a label_id
{own}  num_classes: 1
  trunc_thresh: 0.5
  crop_ratio: [0.9, 1.0]
model:
  fpn_type: identity
  max_buffer_len_factor: 1.0
  n_mha_win_size: [25, 25, 25, 25, 25, -1]
  n_head: 4
  embd_dim: 256
  fpn_dim: 256
  head_dim: 256
  use_abs_pe: true
opt:
  learning_rate: 0.001
  epochs: 10
  weight_decay: 0.05
  warmup_epochs: 5
loader:
  batch_size: 16
train_cfg:
  init_loss_norm: 400
  clip_grad_l2norm: 1.0
  cls_prior_prob: 0.01
  center_sample: radius
  center_sample_radius: 1.5
  label_smoothing: 0.1
test_cfg:
  voting_thresh: 0.85
  pre_nms_topk: 2000
  max_seg_num: 100
  min_score: 0.001
  multiclass_nms: false
  nms_sigma: 0.8
  ext_score_file: ./data/anet_1.3/annotations/cuhk_val_simp_share.json
  duration_thresh: 0.1
output_folder: ./ckpt/
"""
    return Config({"actionformer_anet.yaml": text}, lines)


def _mad(facts: Facts) -> Config:
    lines = (
        f"MODEL.VLG.FEATPOOL.INPUT_SIZE: {facts.dim}",
        f"INPUT.PRE_QUERY_SIZE: {facts.dim}",
        f"fps: {facts.rate:g}",
    )
    text = (
        "# for VLG-Net's configs/mad.yml; its paths_catalog.py names feat_file and fps, the zero-shot baseline's\n"
        f"# script has FPS: {facts.rate:g}. MAD's own rows are not normalised; cosines do not mind.\n"
        f"MODEL:\n  VLG:\n    FEATPOOL:\n      INPUT_SIZE: {facts.dim}\nINPUT:\n  PRE_QUERY_SIZE: {facts.dim}\n"
    )
    return Config({"mad.yml": facts.head + text}, lines)


def _vslnet(facts: Facts) -> Config:
    lines = (
        f"--video_feature_dim {facts.dim}",
        "--max_pos_len 128  # longer videos are averaged to that many rows",
        f"--fv {facts.folder.name}  # link the folder to data/features/<task>/{facts.folder.name}",
    )
    return Config({"vslnet_options.txt": facts.head + "".join(f"{line}\n" for line in lines)}, lines)


def _tfvtg(facts: Facts) -> Config:
    lines = (
        f"'feature_path': '{facts.folder}',",
        "'stride': 20,  # rows at 3 per second: 20 for Charades-STA, 40 for ActivityNet, 50 for QVHighlights",
    )
    note = (
        "# for data_configs.py; its localizer encodes queries with BLIP-2: compute them with the model above instead,\n"
        "# and choose its threshold on cosines anew (0.2 is BLIP-2's)\n"
    )
    return Config({"tfvtg_data_config.txt": facts.head + note + "".join(f"{line}\n" for line in lines)}, lines)


_MAKERS: dict[str, Callable[[Facts], Config]] = {
    "moment-detr": _moment_detr,
    "lighthouse": _lighthouse,
    "opentad": _opentad,
    "actionformer": _actionformer,
    "mad": _mad,
    "vslnet": _vslnet,
    "tfvtg": _tfvtg,
}
