"""ReuseEncoder: P-frames compute what changed and reuse the keys and values of what did not.

Not from a paper. ResidualViT's P-frames see their few kept patches and one token that stands for the I-frame. Here
they see the I-frame itself: in every layer the patches that a P-frame does not refresh keep the keys and values of
when they were last computed (`packed.py`). The cost in linear layers is that of dropping, nothing is learned.

T frames, P patches, n patches refreshed in a P-frame, L tokens of a full frame, W width of the transformer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyframe.backbone import Model
from everyframe.cost import Rule, add_macs, frame_macs
from everyframe.encoders.calibration import Calibration, resolve_calibration
from everyframe.encoders.dense import check_frames, check_model, check_motion, check_plan, full_frame_macs
from everyframe.encoders.packed import packed_features
from everyframe.encoders.plan import Plan, check_fixed, check_interleave, fixed_roles
from everyframe.encoders.planner import LONGEST_GROUP, Planner, Policy
from everyframe.tokens.drop import SELECTIONS, num_kept

SELECT = ("change", *SELECTIONS)
TOLERANCE = 1.0


class ReuseEncoder:
    """Interleaved encoding in which P-frames refresh a share 1 - `drop` of the tokens and reuse the rest.

    select: which patches are refreshed: "change" (whose content differs most from what it was when last refreshed),
        "motion" (most motion since then, by the codec or luma), "residual" (the same with differences of frames),
        "center", "uniform" or "random".
    plan: "fixed" (`interleave` P-frames after each I-frame), "cuts" (the same, but a shot begins with an I-frame),
        or "adaptive": I-frames where what was left out adds up to `tolerance`, P-frames refresh what changed, at
        most a share 1 - `drop`, and frames in which nothing did are copied. `interleave` has no meaning then.
    tolerance: for "adaptive"; less is closer to dense and dearer, see `planner.py`.
    two_sided: reuse from the I-frame that comes next too. It takes a group's delay, and one I-frame per pass that is
        computed again in the next.
    seed: decides "random" and the order of equal scores; a frame's choice also depends on its number in the
        video, never on batching.
    batch_size: full frames' worth of tokens per forward pass, and at least one group.
    """

    name = "reuse"

    def __init__(
        self,
        model: Model,
        interleave: int = 5,
        drop: float = 0.85,
        select: str = "change",
        *,
        plan: str = "fixed",
        tolerance: float = TOLERANCE,
        two_sided: bool = False,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        if select not in SELECT:
            raise ValueError(f"select must be one of {', '.join(SELECT)}, got {select!r}")
        check_model(model, batch_size)
        self.model = model
        self.interleave = check_interleave(interleave)
        self.drop = float(drop)
        self.num_kept = num_kept(model.vision.num_patches, self.drop)
        self.select = select
        self.plan = plan
        self.seed = seed
        self.batch_size = batch_size
        self.policy = Policy(
            plan=plan,
            interleave=self.interleave,
            select=select,
            num_kept=self.num_kept,
            tolerance=float(tolerance),
            seed=seed,
            two_sided=two_sided,
        )

    @classmethod
    def at_fidelity(
        cls, model: Model, fidelity: float, calibration: str | Path | Calibration = "auto", *, batch_size: int = 32
    ) -> ReuseEncoder:
        """The cheapest adaptive encoder whose features have a mean cosine of `fidelity` to the dense ones.

        As far as the videos are like those that were measured. calibration: a file that `everyframe calibrate` made,
        or "auto": the one that comes with the model. Raises ValueError for a fidelity outside (0, 1),
        CalibrationError without a calibration for these weights, or where it does not reach so high.
        """
        drop, tolerance = resolve_calibration(calibration, model).choose(fidelity)
        return cls(model, drop=drop, plan="adaptive", tolerance=tolerance, batch_size=batch_size)

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def group_size(self) -> int:
        """Frames from one I-frame to the next, at most."""
        return LONGEST_GROUP if self.plan == "adaptive" else self.interleave + 1

    @property
    def looks_ahead(self) -> bool:
        """Must the I-frame after the last group be at hand too?"""
        return self.policy.two_sided

    @property
    def needs_motion(self) -> bool:
        """Does planning use motion maps with these settings?"""
        return self.select == "motion" and self.interleave > 0 and self.num_kept < self.model.vision.num_patches

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the features, for provenance."""
        return {"encoder": self.name, "drop": self.drop, **self.policy.settings}

    def planner(self, first_frame: int = 0) -> Planner:
        """A planner for one video (or for its part from `first_frame` on, an I-frame)."""
        return Planner(self.model.vision, self.policy, first_frame)

    def roles(self, num_frames: int) -> str:
        """ "IPPPPP..." for that many frames. Raises ValueError where the plan depends on the video."""
        check_fixed(self.plan, "its roles")
        return fixed_roles(num_frames, self.interleave)

    def macs(self, num_frames: int, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of that many frames by part. Raises ValueError where they depend on the video."""
        check_fixed(self.plan, "its cost")
        full = fixed_roles(num_frames, self.interleave).count("I")
        return self._macs(full, num_frames - full, rule)

    def plan_macs(self, plan: Plan, rule: Rule) -> dict[str, float]:
        """Multiply-accumulates of the frames of a plan by part, with the I-frames that passes look ahead to."""
        full = plan.roles.count("I") + sum(ahead - last for _, last, ahead in self._passes(plan))
        return self._macs(full, plan.roles.count("P"), rule, float(plan.counts.sum()))

    @property
    def state_bytes(self) -> int:
        """Bytes that the keys and values of one group take, of one layer: the state is never more than one layer's."""
        vision = self.model.vision
        tokens = vision.num_prefix + vision.num_patches
        return 2 * tokens * vision.config.width * self.model.dtype.itemsize

    @torch.no_grad()
    def encode(self, pixels: Tensor, motion: Tensor | None = None, *, first_frame: int = 0) -> Tensor:
        """Preprocessed frames [T, 3, S, S] -> float32 [T, dim], L2-normalised. Frame 0 is an I-frame.

        motion: magnitude of motion since the sampled frame before, [T, S, S] or None. With select="motion" and
            no maps, the absolute difference to the frame before takes their place, as it does for videos whose
            codec stores no motion.
        first_frame: number of `pixels[0]` in its video; it only enters the seeds.
        Raises ValueError for other shapes.
        """
        check_frames(pixels, self.model)
        check_motion(motion, pixels)
        planner = self.planner(first_frame)
        return self.encode_planned(pixels, planner.add(pixels, motion) + planner.finish())

    @torch.no_grad()
    def encode_planned(self, pixels: Tensor, plan: Plan) -> Tensor:
        """The same for a plan that is known already, which must begin with an I-frame."""
        check_frames(pixels, self.model)
        check_plan(plan, pixels, self.model)
        if plan.roles[:1] not in ("", "I"):
            raise ValueError(f"the plan must begin with an I-frame, got {plan.roles[0]!r}; cut plans between groups")
        if _looks_at(plan, len(plan.roles)):
            raise ValueError(
                f"the plan's last group takes patches from the I-frame after it, but there are only {len(pixels)} "
                "frames; end the plan and the pixels with that I-frame"
            )
        parts = []
        for first, last, ahead in self._passes(plan):
            parts.append(packed_features(self.model, pixels[first:ahead], plan[first:ahead])[: last - first])
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.model.device)

    def _passes(self, plan: Plan) -> Iterator[tuple[int, int, int]]:
        """Ranges of frames, whole groups, with about `batch_size` full frames' worth of tokens each.

        And where what they read ends: there too, or after the next I-frame if the last group looks at it.
        """
        vision = self.model.vision
        most = self.batch_size * (vision.num_prefix + vision.num_patches)
        first = tokens = 0
        whole = len(plan.roles)
        starts = [frame for frame, role in enumerate(plan.roles) if role == "I"] + [whole]
        for begin, end in pairwise(starts):
            more, seen = self._tokens(plan, begin, end), begin + _looks_at(plan, begin)
            # An I-frame that ends the plan is not worth a pass of its own where the one before reads it anyway.
            if begin > first and tokens + more > most and seen < whole:
                yield first, begin, seen
                first, tokens = begin, 0
            tokens += more
        if first < whole:
            yield first, whole, whole

    def _tokens(self, plan: Plan, begin: int, end: int) -> int:
        vision, roles = self.model.vision, plan.roles[begin:end]
        computed = len(roles) - roles.count("C")
        refreshed = plan.offsets[end] - plan.offsets[begin]
        return computed * vision.num_prefix + roles.count("I") * vision.num_patches + refreshed

    def _macs(self, full: int, reduced: int, rule: Rule, refreshed: float | None = None) -> dict[str, float]:
        vision = self.model.vision
        if refreshed is None:
            exact = rule == "all"
            refreshed = reduced * (self.num_kept if exact else vision.num_patches * (1 - self.drop))
        tokens = vision.num_prefix + vision.num_patches
        parts = frame_macs(
            vision.config,
            rule,
            patches=refreshed / max(reduced, 1),
            tokens=vision.num_prefix + refreshed / max(reduced, 1),
            keys=tokens,
        )
        return add_macs((full, full_frame_macs(self.model, rule)), (reduced, parts))


def _looks_at(plan: Plan, frame: int) -> bool:
    """Does the group that ends before this frame take patches from it?"""
    group = max(plan.roles.rfind("I", 0, frame), 0)
    return plan.lent_offsets[frame] > plan.lent_offsets[group]
