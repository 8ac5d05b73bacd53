import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.encoder import VideoEncoder
from worldmodel.images import fit_frames
from worldmodel.jepa import JEPA, encode_frames, normalise_rgb
from worldmodel.planners.interfaces import WorldModel
from worldmodel.pose import action_between, integrate
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.state_head import StateHead, pose_vector


def frames_of(batch: int, steps: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, steps, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def uncached_rollout(
    world: JEPA, latents: Tensor, proprio: Tensor, actions: Tensor, cameras: Tensor | None = None
) -> Tensor:
    """What `rollout` must equal: the whole sequence again at every step, by `predict` alone."""
    C, steps = latents.shape[1], actions.shape[1]
    states, sequence = proprio[:, :C], latents
    for t in range(C, steps + 1):
        seen = None if cameras is None else cameras[:, :t]
        ahead = world.predict(sequence, states, actions[:, :t], seen)
        sequence = torch.cat((sequence, ahead[:, -1:]), dim=1)
        states = torch.cat((states, integrate(states[:, -1:], actions[:, t - 1 : t])), dim=1)
    return sequence[:, C:]


@torch.inference_mode()
def test_single_frames_give_the_latents_of_the_reference_implementation(
    golden_world, golden
) -> None:
    latents = golden_world.encode(golden["frames"])
    expected = golden["frame_tokens_normalised"].unflatten(1, (3, 16))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_rollout_with_given_states_is_that_of_the_reference_implementation(
    golden_world, golden
) -> None:
    latents = golden["frame_tokens_normalised"].unflatten(1, (3, 16))
    imagined = golden_world.rollout(latents[:, :1], golden["states"], golden["actions"])
    expected = golden["rollout_tokens_normalised"].unflatten(1, (3, 16))
    torch.testing.assert_close(imagined, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_uint8_frames_and_the_same_frames_normalised_give_the_same_latents(make_world) -> None:
    world, frames = make_world(), frames_of(2, 3)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    normalised = ((frames / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(world.encode(frames), world.encode(normalised), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalise_rgb(frames), normalised, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_frames_are_encoded_one_by_one_and_each_token_is_normed(make_world) -> None:
    world, frames = make_world(), frames_of(2, 3)
    latents = world.encode(frames)
    assert latents.shape == (2, 3, 16, 24)
    torch.testing.assert_close(latents[:, 1:2], world.encode(frames[:, 1:2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(latents.mean(-1), torch.zeros(2, 3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        latents.var(-1, correction=0), torch.ones(2, 3, 16), atol=1e-3, rtol=0
    )


@torch.inference_mode()
@pytest.mark.parametrize("merge", [2, 4])
def test_merging_only_moves_numbers_into_the_token_of_their_square(make_world, merge: int) -> None:
    encoder, frames = make_world().encoder, frames_of(2, 1)[:, 0]
    separate = encode_frames(encoder, frames).unflatten(1, (4, 4))  # (2, rows, columns, D)
    merged = encode_frames(encoder, frames, merge)
    side = 4 // merge
    assert merged.shape == (2, side**2, 24 * merge**2)
    for row in range(side):
        for column in range(side):
            square = separate[:, row * merge :, column * merge :][:, :merge, :merge]
            assert torch.equal(merged[:, row * side + column], square.flatten(1))


@torch.inference_mode()
def test_standardising_takes_the_mean_and_divides_by_the_spread(make_world) -> None:
    world, frames = make_world(merge=2, standardise=True), frames_of(2, 2)
    raw = encode_frames(world.encoder, frames.flatten(0, 1), 2).unflatten(0, (2, 2))
    expected = (raw - world.latent_mean) / world.latent_std
    torch.testing.assert_close(world.encode(frames), expected)
    assert not torch.allclose(raw, expected)


@torch.inference_mode()
@pytest.mark.parametrize("standardise", [False, True])
def test_predictions_live_in_the_space_of_encoded_frames(
    make_world, make_motion, standardise: bool
) -> None:
    world, (proprio, actions) = make_world(standardise=standardise), make_motion(2, 2)
    latents = world.encode(frames_of(2, 2))
    raw = world.predictor(latents, proprio, actions)
    expected = raw if standardise else F.layer_norm(raw, (24,), eps=1e-5)
    assert torch.equal(world.predict(latents, proprio, actions), expected)


@torch.inference_mode()
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_cached_rollout_equals_running_everything_again(
    make_world, make_motion, context: int, standardise: bool
) -> None:
    world, (proprio, actions) = make_world(standardise=standardise), make_motion(2, 5)
    latents = world.encode(frames_of(2, context))
    imagined = world.rollout(latents, proprio[:, :context], actions)
    assert imagined.shape == (2, 6 - context, 16, 24)
    expected = uncached_rollout(world, latents, proprio[:, :context], actions)
    torch.testing.assert_close(imagined, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_given_states_equal_integrated_ones_where_they_agree(make_world, make_motion) -> None:
    world, (proprio, actions) = make_world(), make_motion(2, 4)  # proprio follows the actions
    latents = world.encode(frames_of(2, 1))
    integrated = world.rollout(latents, proprio[:, :1], actions)
    torch.testing.assert_close(
        world.rollout(latents, proprio, actions), integrated, atol=1e-5, rtol=1e-5
    )
    elsewhere = proprio.clone()
    elsewhere[:, 2] += 0.3
    given = world.rollout(latents, elsewhere, actions)
    assert torch.allclose(given[:, :2], integrated[:, :2], atol=1e-5)
    assert float((given[:, 2] - integrated[:, 2]).abs().max()) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("context", [1, 2])
def test_many_plans_at_once_equal_one_after_the_other(
    make_world, make_motion, context: int
) -> None:
    world, (proprio, _) = make_world(merge=2, standardise=True), make_motion(2, 4)
    latents = world.encode(frames_of(2, context))
    plans = torch.stack([make_motion(2, 4, seed=s)[1] for s in range(5)], dim=1)  # (2, 5, 4, 7)
    plans[:, :, : context - 1] = plans[:, :1, : context - 1]  # what was done is the same in all
    for states in (proprio[:, :context], proprio):
        together = world.rollout(latents, states, plans)
        assert together.shape == (2, 5, 5 - context, 4, 96)
        apart = [world.rollout(latents, states, plan) for plan in plans.unbind(1)]
        torch.testing.assert_close(together, torch.stack(apart, dim=1), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_camera_poses_reach_every_step_of_a_rollout(make_world, make_motion) -> None:
    world, (proprio, actions) = make_world(use_extrinsics=True), make_motion(2, 4)
    latents = world.encode(frames_of(2, 2))
    cameras = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    expected = uncached_rollout(world, latents, proprio[:, :2], actions, cameras)
    imagined = world.rollout(latents, proprio[:, :2], actions, cameras)
    torch.testing.assert_close(imagined, expected, atol=1e-5, rtol=1e-5)
    plans = actions[:, None].expand(-1, 3, -1, -1)
    many = world.rollout(latents, proprio[:, :2], plans, cameras)
    torch.testing.assert_close(many[:, 2], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("standardise", [False, True])
def test_under_autocast_latents_are_float32_and_nearly_the_same(
    make_world, make_motion, standardise: bool
) -> None:
    world, (proprio, actions) = make_world(standardise=standardise), make_motion(2, 3)
    frames = frames_of(2, 1)

    def outputs() -> list[Tensor]:
        latents = world.encode(frames)
        imagined = world.rollout(latents, proprio[:, :1], actions)
        return [latents, world.predict(latents, proprio[:, :1], actions[:, :1]), imagined]

    exact = outputs()
    with torch.autocast("cpu", torch.bfloat16):
        lower = outputs()
    for a, b in zip(lower, exact, strict=True):
        assert a.dtype == torch.float32
        assert 0 < float((a - b).norm() / b.norm()) < 0.03


@torch.inference_mode()
def test_under_autocast_poses_are_integrated_exactly(make_world, make_motion, monkeypatch) -> None:
    """Rounded to bfloat16, a rotation would be off by a quarter of a degree."""
    world, (proprio, actions) = make_world(), make_motion(2, 3)
    seen: list[Tensor] = []
    world.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.autocast("cpu", torch.bfloat16):
        world.rollout(world.encode(frames_of(2, 1)), proprio[:, :1], actions)
    torch.testing.assert_close(torch.cat(seen, dim=1), proprio, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_proposals_lead_from_the_state_read_now_to_the_one_read_from_the_goal(
    make_world, make_motion
) -> None:
    world, (proprio, _) = make_world(), make_motion(2, 1)
    now, goal = world.encode(frames_of(2, 2)).unbind(1)
    with pytest.raises(ValueError, match="train it with state_weight above 0"):
        world.propose(now, proprio[:, 0], goal)
    world.state_head = StateHead(latent_dim=24, num_tokens=16)
    proposed = world.propose(now, proprio[:, 0], goal)
    there = integrate(world.state_head(now), proposed)
    torch.testing.assert_close(pose_vector(there), pose_vector(world.state_head(goal)))
    assert not torch.allclose(there, world.state_head(now), atol=1e-3)
    stay = world.propose(goal, proprio[:, 0], goal)  # at the goal the head's error cancels
    torch.testing.assert_close(stay, torch.zeros_like(stay), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_under_autocast_a_proposal_is_as_exact_as_what_was_read(make_world, make_motion) -> None:
    world, (proprio, _) = make_world(), make_motion(2, 1)
    world.state_head = StateHead(latent_dim=24, num_tokens=16)
    now, goal = world.encode(frames_of(2, 2)).unbind(1)
    with torch.autocast("cpu", torch.bfloat16):
        here, there = world.state_head(now), world.state_head(goal)
        proposed = world.propose(now, proprio[:, 0], goal)
    assert torch.equal(proposed, action_between(here, there))


def test_a_state_head_of_another_size_is_refused(make_encoder, make_predictor) -> None:
    head = StateHead(latent_dim=24, num_tokens=4)
    message = "takes 16 tokens of size 24 a frame, but the state head 4 of size 24"
    with pytest.raises(ValueError, match=message):
        JEPA(encoder=make_encoder(), predictor=make_predictor(), image_size=32, state_head=head)


def test_a_jepa_is_what_planners_call_a_world_model(make_world) -> None:
    assert isinstance(make_world(), WorldModel)


@pytest.mark.parametrize(
    "frames, error, message",
    [
        (
            torch.zeros(1, 2, 48, 48, 3, dtype=torch.uint8),
            ValueError,
            r"uint8 frames must have shape \(batch, frames, 32, 32, 3\) for this model, got "
            r"\(1, 2, 48, 48, 3\); resize them to 32x32 pixels first",
        ),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), ValueError, r"got \(2, 32, 32, 3\)"),
        (
            torch.zeros(1, 2, 32, 32, 3),
            ValueError,
            r"float32 frames must have shape \(batch, frames, 3, 32, 32\)",
        ),
        (
            torch.zeros(1, 2, 32, 32, 3, dtype=torch.int64),
            TypeError,
            "frames must be uint8 or floating point, got torch.int64",
        ),
    ],
)
def test_frames_that_do_not_fit_are_refused(make_world, frames, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make_world().encode(frames)


@pytest.mark.parametrize(
    "proprio, actions, message",
    [
        ((1, 1, 7), (1, 4, 6), r"actions must have shape \(batch, \[plans,\] steps, 7\), got \(1"),
        ((1, 1, 7), (4, 7), r"actions must have shape .* got \(4, 7\)"),
        ((1, 2, 7), (1, 1, 7), r"2 context frames need at least 2 actions .* got 1"),
        ((1, 3, 7), (1, 4, 7), r"proprio must hold the 2 context frames or all 4 steps, got 3"),
        ((1, 2, 6), (1, 4, 7), r"proprio must have shape \(1, 1, 7\)"),
    ],
)
def test_a_rollout_of_wrong_shapes_is_refused(
    without_shape_checks, make_world, proprio: tuple, actions: tuple, message: str
) -> None:
    context = 1 if proprio[1] == 1 else 2
    with pytest.raises(ValueError, match=message):
        make_world().rollout(
            torch.zeros(1, context, 16, 24), torch.zeros(proprio), torch.zeros(actions)
        )


def test_an_encoder_and_a_predictor_of_different_sizes_are_refused(
    make_encoder, make_predictor
) -> None:
    message = (
        r"the encoder gives 4 tokens of size 96 a frame, but the predictor takes 16 of size 24"
    )
    with pytest.raises(ValueError, match=message):
        JEPA(encoder=make_encoder(), predictor=make_predictor(), image_size=32, merge=2)


@pytest.mark.parametrize("image_size, merge", [(36, 1), (32, 3)])
def test_an_image_that_patches_do_not_tile_is_refused(
    make_encoder, make_predictor, image_size: int, merge: int
) -> None:
    with pytest.raises(ValueError, match=f"image_size={image_size} must be a multiple of patch"):
        JEPA(encoder=make_encoder(), predictor=make_predictor(), image_size=image_size, merge=merge)


def test_pictures_of_another_size_are_cut_and_resized_as_in_training(make_encoder, make_predictor):
    world = JEPA(
        encoder=make_encoder(), predictor=make_predictor(), image_size=32, crop="square"
    ).eval()
    wide = torch.randint(0, 256, (2, 1, 60, 100, 3), dtype=torch.uint8)
    fitted = np.stack([fit_frames(frames, 32, "square") for frames in wide.numpy()])
    with torch.no_grad():
        latents, expected = world.encode(wide), world.encode(torch.from_numpy(fitted))
    torch.testing.assert_close(latents, expected, atol=0, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("batch, working, group", [(1, 0, 1), (1, 60_000, 2), (2, 60_000, 1)])
def test_plans_imagined_in_groups_are_those_imagined_at_once(
    make_world, make_motion, monkeypatch, context: int, batch: int, working: int, group: int
) -> None:
    world, (proprio, _) = make_world(), make_motion(batch, 4)
    latents = world.encode(frames_of(batch, context))
    plans = torch.stack([make_motion(batch, 4, seed=s)[1] for s in range(5)], dim=1)
    plans[:, :, : context - 1] = plans[:, :1, : context - 1]
    together = world.rollout(latents, proprio[:, :context], plans)

    calls: list[tuple[int, int]] = []
    world.predictor.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[:2]))
    monkeypatch.setattr("worldmodel.jepa.MIB", 1)  # a plan here works on 29 kB
    monkeypatch.setattr("worldmodel.jepa.CPU_WORKING_MIB", working)
    grouped = world.rollout(latents, proprio[:, :context], plans)
    torch.testing.assert_close(grouped, together, atol=1e-5, rtol=1e-5)
    steps = [(batch * len(x), 1) for x in torch.arange(5).split(group) for _ in range(5 - context)]
    before = [(batch, context - 1)] if context > 1 else []  # once, whatever the groups
    assert [tuple(shape) for shape in calls] == before + steps


@torch.inference_mode()
def test_a_rollout_keeps_no_keys_that_nothing_will_read(
    make_world, make_motion, monkeypatch
) -> None:
    world, (proprio, actions) = make_world(), make_motion(2, 3)
    caches = []
    new_cache = world.predictor.new_cache
    monkeypatch.setattr(
        world.predictor, "new_cache", lambda: caches.append(new_cache()) or caches[-1]
    )
    tokens: list[list[int]] = []
    world.predictor.register_forward_hook(
        lambda *_: tokens.append(
            [0 if layer.keys is None else layer.keys.shape[2] for layer in caches[-1].layers]
        )
    )
    world.rollout(world.encode(frames_of(2, 1)), proprio[:, :1], actions)
    assert tokens == [[18, 18], [36, 36], [0, 0]]


@torch.inference_mode()
def test_kept_values_do_not_keep_queries_and_keys_alive(make_world, make_motion) -> None:
    world, (proprio, actions) = make_world(), make_motion(1, 1)
    cache = world.predictor.new_cache()
    world.predictor(world.encode(frames_of(1, 1)), proprio, actions, cache=cache)
    for layer in cache.layers:
        assert layer.keys is not None and layer.values is not None
        for kept in (layer.keys, layer.values):
            assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def published_world() -> JEPA:
    """The geometry of V-JEPA 2-AC without numbers in it."""
    with torch.device("meta"):
        return JEPA(
            encoder=VideoEncoder(embed_dim=1408, depth=1, num_heads=22),
            predictor=ActionConditionedPredictor(latent_dim=1408, grid_size=(16, 16)),
            image_size=256,
        )


def test_the_published_search_fits_beside_its_weights_into_16_gib() -> None:
    world = published_world().bfloat16()
    weights_mib = 2 * (1_012_000_000 + 305_220_992) / 2**20  # ViT-g and the predictor
    assert world.plans_within(16 * 1024 - weights_mib, steps=1) >= 800
    assert 1 <= world.plans_within(16 * 1024 - weights_mib, steps=8) < 100  # all keys are kept


def test_a_plan_is_as_large_as_the_arithmetic_says() -> None:
    world = published_world()
    one_step = 4 * (259 * 1024 * (2 + 2 * 4) + 3 * 256 * 1408)  # what a block works on
    one_step += 4 * (2 * 259 * 1024 + 2 * 256 * 1408)  # one layer's keys and values; the result
    assert world.plans_within(10.5 * one_step / 2**20, steps=1) == 10
    more = 4 * (2 * (24 + 1) * 259 * 1024 + 2 * 256 * 1408)  # a frame in all layers, one joined
    assert world.plans_within(10.5 * (one_step + 2 * more) / 2**20, steps=3) == 10
    assert world.bfloat16().plans_within(10.5 * one_step / 2**20, steps=1) == 21
    with pytest.raises(ValueError, match=r"one plan of 3 steps needs \d+\.\d MiB .* memory_mib=9"):
        world.plans_within(9, steps=3)


def two_views(make_encoder) -> JEPA:
    encoder = make_encoder()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        predictor = ActionConditionedPredictor(
            latent_dim=encoder.embed_dim,
            grid_size=(32 // encoder.patch_size,) * 2,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_views=2,
        )
    return JEPA(encoder=encoder, predictor=predictor, image_size=32).eval()


@torch.inference_mode()
@pytest.mark.parametrize("context", [1, 2])
def test_several_views_are_encoded_and_imagined_step_by_step(
    make_encoder, make_motion, context: int
) -> None:
    world = two_views(make_encoder)
    frames = torch.randint(0, 256, (2, context, 2, 32, 32, 3), dtype=torch.uint8)
    latents = world.encode(frames)
    torch.testing.assert_close(latents[:, :, [1, 0]], world.encode(frames[:, :, [1, 0]]))
    proprio, actions = make_motion(2, context + 2)
    imagined = world.rollout(latents, proprio[:, :context], actions)
    assert imagined.shape == (2, 3, *latents.shape[2:])
    # The same by running the whole sequence again at every step.
    sequence, states = latents, proprio[:, :context]
    for t in range(3):
        length = context + t
        step = world.predict(sequence, states, actions[:, :length])[:, -1:]
        torch.testing.assert_close(imagined[:, t : t + 1], step, atol=1e-5, rtol=1e-5)
        sequence = torch.cat((sequence, step), dim=1)
        last = integrate(states[:, -1], actions[:, length - 1])
        states = torch.cat((states, last[:, None]), dim=1)


@torch.inference_mode()
def test_a_missing_view_changes_nothing_that_is_imagined_of_the_other(
    make_encoder, make_motion
) -> None:
    world = two_views(make_encoder)
    latents = torch.randn(1, 2, 2, *world.encode(torch.zeros(1, 1, 2, 3, 32, 32)).shape[3:])
    proprio, actions = make_motion(1, 3)
    plans = actions[:, None].repeat(1, 5, 1, 1)
    plans[:, :, 1:, :3] += torch.randn(1, 5, 2, 3) * 0.05
    mask = torch.tensor([[[True, True], [True, False]]])
    imagined = world.rollout(latents, proprio[:, :2], plans, view_mask=mask)
    other = latents.clone()
    other[:, 1, 1] = torch.nan
    again = world.rollout(other, proprio[:, :2], plans, view_mask=mask)
    torch.testing.assert_close(again[:, :, :, 0], imagined[:, :, :, 0], atol=0, rtol=0)
    seen = world.rollout(latents, proprio[:, :2], plans)
    assert not torch.allclose(seen[:, :, :, 0], imagined[:, :, :, 0], atol=1e-4)
