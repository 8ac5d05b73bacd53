"""The joint-embedding predictive architecture: encode frames, predict latents, roll plans out."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from worldmodel.adaln_predictor import AdaLNPredictor
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.images import Crop, crop_box, fit_frames
from worldmodel.interfaces import Encoder
from worldmodel.joint_head import JointHead
from worldmodel.pose import ACTION_SIZE, action_between, integrate
from worldmodel.predictor import ActionConditionedPredictor, PredictorCache
from worldmodel.state_head import StateHead

PIXEL_MEAN = (0.485, 0.456, 0.406)  # ImageNet, on [0, 1] pixels, as every V-JEPA
PIXEL_STD = (0.229, 0.224, 0.225)
LATENT_NORM_EPS = 1e-5  # of the layer norm between encoder and predictor; theirs is 1e-6
MIB = 2**20
CONDITIONS = 3  # tokens of a frame besides its patches: action, proprio, and perhaps a camera
CPU_WORKING_MIB = 32  # more plans at once leave the caches, and malloc maps every buffer anew


def normalise_rgb(
    frames: UInt8[Tensor, "*batch height width 3"],
) -> Float[Tensor, "*batch 3 height width"]:
    """Returns normalised float32 pixels, channels first, of RGB images in [0, 255]."""
    mean = torch.tensor(PIXEL_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=frames.device).view(3, 1, 1)
    return (frames.movedim(-1, -3).float() / 255 - mean) / std


def encode_frames(
    encoder: Encoder, frames: Tensor, merge: int = 1, pool: int = 1
) -> Float[Tensor, "batch tokens dim"]:
    """Returns layer-normed tokens of single frames, each a clip of `frames_per_image` copies.

    Under autocast the encoder computes in the lower precision; the norm and what is returned are in
    that of the pixels, float32 for RGB.

    Args:
        encoder: The frozen encoder.
        frames: RGB uint8 (B, height, width, 3), or normalised float (B, 3, height, width).
        merge: Side of the square of neighbouring tokens joined into one, channel-wise.
        pool: Side of the square of merged tokens averaged into one.
    """
    pixels = normalise_rgb(frames) if frames.dtype == torch.uint8 else frames
    clip = pixels[:, :, None].expand(-1, -1, encoder.frames_per_image, -1, -1)
    tokens = encoder(clip).to(clip.dtype)
    latents = F.layer_norm(tokens, tokens.shape[-1:], eps=LATENT_NORM_EPS)  # (B, N, D)
    if merge == 1 and pool == 1:
        return latents
    _, rows, columns = encoder.grid(clip.shape[2], clip.shape[3], clip.shape[4])
    latents = latents.unflatten(1, (rows // merge, merge, columns // merge, merge))
    latents = latents.permute(0, 1, 3, 2, 4, 5).flatten(3)  # (B, rows, columns, D * merge^2)
    squares = latents.unflatten(2, (-1, pool)).unflatten(1, (-1, pool))
    return squares.mean(dim=(2, 4)).flatten(1, 2)


class JEPA(nn.Module):
    """A frozen video encoder and an action-conditioned predictor of its latents.

    Latents are the encoder's tokens through a layer norm without weights. Meta's models use them so
    (`standardise=False`) and norm every prediction the same way. Ours are also standardised per
    token and channel over the training data (`standardise=True`), because a static background
    otherwise owns both the loss and the energy; predictions then live in that space as they are.

    Under autocast (`worldmodel.training.autocast`) encoder and predictor compute in the lower
    precision; latents, poses and all results stay float32.

    Args:
        encoder: Turns a clip into tokens.
        predictor: Turns latents, proprio and actions into the next latents.
        image_size: Height and width in pixels of the frames.
        merge: Side of the square of neighbouring tokens joined into one latent token, channel-wise.
        pool: Side of the square of merged tokens averaged into one.
        standardise: Whether latents are standardised by `latent_mean` and `latent_std`.
        control_hz: Model steps per second of the training data; None when it is not known.
        crop: How a picture of another size becomes the model's, see `worldmodel.images`; the same
            for training, live and goal pictures.
        action_limit: Largest change per axis (7,) in the training data, in physical units; how far
            one imagined step may go. None when it is not known.
        state_head: Reads proprio from latents, for `propose`; None if it was not trained.
        joint_heads: The same for arms that speak in joints, by embodiment.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        *,
        encoder: Encoder,
        predictor: ActionConditionedPredictor | AdaLNPredictor,
        image_size: int,
        merge: int = 1,
        pool: int = 1,
        standardise: bool = False,
        control_hz: float | None = None,
        action_limit: Sequence[float] | None = None,
        crop: Crop = "none",
        state_head: StateHead | None = None,
        joint_heads: Mapping[str, JointHead] | None = None,
    ):
        super().__init__()
        crop_box(1, 1, crop)  # refuses an unknown crop
        side = image_size // encoder.patch_size
        if image_size % encoder.patch_size or side % (merge * pool):
            raise ValueError(
                f"image_size={image_size} must be a multiple of patch_size={encoder.patch_size} "
                f"times merge={merge}" + (f" times pool={pool}" if pool > 1 else "")
            )
        num_tokens, latent_dim = (side // merge // pool) ** 2, encoder.embed_dim * merge**2
        expected = (predictor.grid_size[0] * predictor.grid_size[1], predictor.latent_dim)
        if (num_tokens, latent_dim) != expected:
            raise ValueError(
                f"the encoder gives {num_tokens} tokens of size {latent_dim} a frame, but"
                f" the predictor takes {expected[0]} of size {expected[1]}"
            )
        seen = (predictor.num_views * num_tokens, latent_dim)  # of all views at one moment
        heads = {"state head": state_head} if state_head is not None else {}
        heads |= {f"joint head {name!r}": head for name, head in (joint_heads or {}).items()}
        for name, head in heads.items():
            if (head.num_tokens, head.latent_dim) != seen:
                raise ValueError(
                    f"the predictor takes {seen[0]} tokens of size {seen[1]} a frame, but the "
                    f"{name} {head.num_tokens} of size {head.latent_dim}"
                )
        self.encoder = encoder
        self.predictor = predictor
        self.state_head = state_head
        self.joint_heads = nn.ModuleDict(joint_heads or {})
        self.image_size = image_size
        self.merge = merge
        self.pool = pool
        self.standardise = standardise
        self.control_hz = control_hz
        self.crop: Crop = crop
        self.action_limit = tuple(float(x) for x in action_limit) if action_limit else None
        self.register_buffer("latent_mean", torch.zeros(seen if standardise else ()))
        self.register_buffer("latent_std", torch.ones(seen if standardise else ()))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.latent_mean.device

    def encode(self, frames: Tensor) -> Float[Tensor, "batch frames *views tokens dim"]:
        """Returns the latents of each frame by itself, entered as the encoder takes single images.

        Args:
            frames: RGB as uint8 (B, T, height, width, 3), cut and resized by `crop` if they have
                another size; or as float (B, T, 3, height, width) already normalised. Of a model
                with several views (B, T, V, ...): latents are then (B, T, V, N, D).

        Raises:
            ValueError: The frames have another shape or size than the model takes.
            TypeError: The frames are neither uint8 nor floating point.
        """
        if frames.dtype == torch.uint8 and frames.ndim in (5, 6) and self.crop != "none":
            frames = self._fit(frames)
        self._check_frames(frames)
        pixels = frames.to(self.device).flatten(0, -4)
        latents = encode_frames(self.encoder, pixels, self.merge, self.pool)
        latents = latents.unflatten(0, tuple(frames.shape[:-3]))
        if self.standardise:
            mean, std = self.latent_mean, self.latent_std
            if latents.ndim == 5:  # each view has its own
                mean, std = (scale.unflatten(0, (latents.shape[2], -1)) for scale in (mean, std))
            latents = (latents - mean) / std
        return latents

    def _fit(self, frames: Tensor) -> Tensor:
        pixels = frames.flatten(0, -4).cpu().numpy()
        fitted = np.ascontiguousarray(fit_frames(pixels, self.image_size, self.crop))
        return torch.from_numpy(fitted).unflatten(0, tuple(frames.shape[:-3]))

    def _check_frames(self, frames: Tensor) -> None:
        size, views = self.image_size, self.predictor.num_views
        if frames.dtype == torch.uint8:
            picture = (size, size, 3)
        elif frames.is_floating_point():
            picture = (3, size, size)
        else:
            raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")
        moment = (views, *picture) if views > 1 else picture
        if frames.ndim != 2 + len(moment) or frames.shape[2:] != moment:
            expected = f"(batch, frames, {', '.join(map(str, moment))})"
            raise ValueError(
                f"{frames.dtype} frames must have shape {expected} for this model, "
                f"got {tuple(frames.shape)}; resize them to {size}x{size} pixels first"
            )

    def predict(
        self,
        latents: Float[Tensor, "batch frames *views tokens dim"],
        proprio: Float[Tensor, "batch frames proprio"],
        actions: Float[Tensor, "batch frames action"],
        extrinsics: Float[Tensor, "batch frames *views 6"] | None = None,
        view_mask: Bool[Tensor, "batch frames views"] | None = None,
        embodiment: str = END_EFFECTOR,
    ) -> Float[Tensor, "batch frames *views tokens dim"]:
        """Returns the latents predicted for the frame after each given one (teacher forcing).

        `view_mask` is False where a view is missing, and `embodiment` says whose proprio and
        actions these are, see `ActionConditionedPredictor.forward`.
        """
        return self._step(latents, proprio, actions, extrinsics, None, view_mask, embodiment)

    def rollout(
        self,
        latents: Float[Tensor, "batch context *views tokens dim"],
        proprio: Float[Tensor, "batch states 7"],
        actions: Tensor,
        extrinsics: Float[Tensor, "batch steps *views 6"] | None = None,
        view_mask: Bool[Tensor, "batch context views"] | None = None,
    ) -> Tensor:
        """Imagines H steps after C context frames, feeding predictions back.

        Keys and values of past frames are cached, so a step costs one frame however far it lies
        ahead; the result equals that of running the whole sequence again at every step. What the
        context leaves there is computed once for all plans. On a CPU, plans are imagined in groups
        that stay in its caches.

        Args:
            latents: Latents of the C context frames.
            proprio: End-effector states: C of them, and the rest are integrated from the actions;
                or all C - 1 + H, and they are taken as given.
            actions: (B, C - 1 + H, 7), or S plans a batch entry as (B, S, C - 1 + H, 7). The first
                C - 1 led from one context frame to the next (and are the same in all S plans).
            extrinsics: Camera poses at all C - 1 + H frames, if the predictor takes them.
            view_mask: False where a view of a context frame is missing. Views that the last one
                lacks stay missing: what is imagined of them is a guess that no energy should use.

        Returns:
            Latents (B, H, N, D), or (B, S, H, N, D) for S plans, normed like those of `encode`.

        Raises:
            ValueError: The shapes do not fit together.
        """
        C = latents.shape[1]
        self._check_rollout(latents, proprio, actions)

        shared = actions if actions.ndim == 3 else actions[:, 0]
        past = self.predictor.new_cache()
        if C > 1:
            self._step(
                latents[:, :-1],
                proprio[:, : C - 1],
                shared[:, : C - 1],
                extrinsics[:, : C - 1] if extrinsics is not None else None,
                past,
                view_mask[:, :-1] if view_mask is not None else None,
            )
        last = latents[:, -1:]
        states = proprio[:, C - 1 :]
        cameras = extrinsics[:, C - 1 :] if extrinsics is not None else None
        views = view_mask[:, -1:] if view_mask is not None else None
        ahead = actions[..., C - 1 :, :]
        if actions.ndim == 3:
            return self._imagine(last, states, ahead, cameras, past, views)
        at_once = actions.shape[1]
        if self.device.type == "cpu":
            plan_bytes = self._working_bytes(last.shape[2:-1].numel()) * last.shape[0]
            at_once = max(1, CPU_WORKING_MIB * MIB // plan_bytes)
        imagined = []
        for plans in ahead.split(at_once, dim=1):  # each plan becomes a batch entry of its own
            S = plans.shape[1]
            future = self._imagine(
                last.repeat_interleave(S, dim=0),
                states.repeat_interleave(S, dim=0),
                plans.flatten(0, 1),
                cameras.repeat_interleave(S, dim=0) if cameras is not None else None,
                past.repeat(S),
                views.repeat_interleave(S, dim=0) if views is not None else None,
            )
            imagined.append(future.unflatten(0, (-1, S)))
        return torch.cat(imagined, dim=1)

    def propose(
        self,
        latents: Float[Tensor, "batch tokens dim"],
        proprio: Float[Tensor, "batch 7"],
        goal: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch 7"]:
        """Returns the action that seems to lead each arm straight to its goal.

        It leads from the state read from what the arm sees to the one read from the goal. The head
        errs alike on two pictures of one camera, the more so the closer their poses, so most of its
        error cancels. One step of whatever length that asks for; it may be longer than
        `action_limit` allows.

        Args:
            latents: Latents of the frames the arms see.
            proprio: End-effector states at them; not needed here.
            goal: Latents of the goal images.

        Raises:
            ValueError: The model has no state head.
        """
        if self.state_head is None:
            raise ValueError(
                "this model has no state head to propose actions with; train it with state_weight "
                "above 0, or plan without proposals"
            )
        here, there = self.state_head(latents), self.state_head(goal)
        with torch.autocast(there.device.type, enabled=False):  # millimetres need float32
            return action_between(here, there)

    def plans_within(self, memory_mib: float, *, steps: int, num_views: int = 1) -> int:
        """Returns how many plans may be imagined and scored at once within a memory budget.

        An estimate from the model's geometry, for the dtype of its weights: what one block works
        on, the keys and values of all frames, and two times the imagined latents (an energy takes
        the difference to the goal). The weights themselves are not in it. Give it to a planner as
        `chunk_size`; which plan costs what does not depend on it.

        Args:
            memory_mib: The budget in MiB.
            steps: Steps of a rollout, C - 1 + H.
            num_views: Views V of a frame.

        Raises:
            ValueError: Not even one plan fits.
        """
        predictor = self.predictor
        patches = num_views * predictor.grid_size[0] * predictor.grid_size[1]
        frames_kept = predictor.depth * (steps - 1) + steps  # the last step joins old and new
        numbers = 2 * frames_kept * (patches + CONDITIONS) * predictor.embed_dim
        numbers += 2 * steps * patches * predictor.latent_dim
        plan_bytes = self._working_bytes(patches) + numbers * self._itemsize()
        if memory_mib * MIB < plan_bytes:
            raise ValueError(
                f"one plan of {steps} steps needs {plan_bytes / MIB:.1f} MiB besides the weights, "
                f"but memory_mib={memory_mib:g}"
            )
        return int(memory_mib * MIB // plan_bytes)

    def _itemsize(self) -> int:
        return self.predictor.predictor_proj.weight.element_size()

    def _working_bytes(self, patches: int) -> int:
        """What imagining a frame of one plan takes: input, norm, and both sides of the GELU."""
        predictor = self.predictor
        block = (patches + CONDITIONS) * predictor.embed_dim * (2 + 2 * predictor.mlp_ratio)
        latents = 3 * patches * predictor.latent_dim  # in, out and normed
        return int(block + latents) * self._itemsize()

    def _imagine(
        self,
        latents: Tensor,
        proprio: Tensor,
        actions: Tensor,
        extrinsics: Tensor | None,
        cache: PredictorCache,
        view_mask: Tensor | None,
    ) -> Tensor:
        """Rolls (B, H, A) actions out from one frame; proprio holds one state, or all H."""
        H = actions.shape[1]
        state, z = proprio[:, 0], latents
        imagined = []
        for t in range(H):
            if proprio.shape[1] == H:
                state = proprio[:, t]
            if t == H - 1:
                for layer in cache.layers:
                    layer.is_last = True
            action = actions[:, t]
            camera = extrinsics[:, t : t + 1] if extrinsics is not None else None
            z = self._step(z, state[:, None], action[:, None], camera, cache, view_mask)
            with torch.autocast(state.device.type, enabled=False):  # millimetres need float32
                state = integrate(state, action)
            imagined.append(z)
        return torch.cat(imagined, dim=1)  # (B, H, N, D)

    def _step(
        self,
        latents: Tensor,
        proprio: Tensor,
        actions: Tensor,
        extrinsics: Tensor | None,
        cache: PredictorCache | None,
        view_mask: Tensor | None,
        embodiment: str = END_EFFECTOR,
    ) -> Tensor:
        if view_mask is None and embodiment == END_EFFECTOR:
            predicted = self.predictor(latents, proprio, actions, extrinsics, cache)
            return self._norm(predicted.to(latents.dtype))
        if not isinstance(self.predictor, ActionConditionedPredictor):
            raise ValueError(
                f"a {type(self.predictor).__name__} has one view and speaks in end-effector poses; "
                "leave view_mask and embodiment out"
            )
        predicted = self.predictor(
            latents, proprio, actions, extrinsics, cache, view_mask=view_mask, embodiment=embodiment
        )
        return self._norm(predicted.to(latents.dtype))

    def _norm(self, prediction: Tensor) -> Tensor:
        if self.standardise:
            return prediction
        return F.layer_norm(prediction, prediction.shape[-1:], eps=LATENT_NORM_EPS)

    def _check_rollout(self, latents: Tensor, proprio: Tensor, actions: Tensor) -> None:
        if actions.ndim not in (3, 4) or actions.shape[-1] != ACTION_SIZE:
            raise ValueError(
                f"actions must have shape (batch, [plans,] steps, {ACTION_SIZE}), "
                f"got {tuple(actions.shape)}"
            )
        C, steps = latents.shape[1], actions.shape[-2]
        if steps < C:
            raise ValueError(
                f"{C} context frames need at least {C} actions (the first {C - 1} lie between "
                f"them), got {steps}"
            )
        if proprio.shape[1] not in (C, steps):
            raise ValueError(
                f"proprio must hold the {C} context frames or all {steps} steps, "
                f"got {proprio.shape[1]}"
            )
