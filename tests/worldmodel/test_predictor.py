import pytest
import torch
from torch import Tensor

from worldmodel.frame_groups import block_causal_mask
from worldmodel.predictor import ActionConditionedPredictor


def latents_of(batch: int, frames: int, tokens: int = 16, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, frames, tokens, size, generator=generator)


@torch.inference_mode()
def test_teacher_forcing_gives_what_the_reference_implementation_gives(
    golden_world, golden
) -> None:
    latents = golden["frame_tokens_normalised"].unflatten(1, (3, 16))
    predicted = golden_world.predictor(latents, golden["states"], golden["actions"])
    expected = golden["predictor_teacher_forced"].unflatten(1, (3, 16))
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=0)


def test_v_jepa_2_ac_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        predictor = ActionConditionedPredictor(
            latent_dim=1408, grid_size=(16, 16), rotation_input="euler", num_frequencies=0
        )
    assert sum(p.numel() for p in predictor.parameters()) == 305_220_992
    assert len(list(predictor.parameters())) == 300


@torch.inference_mode()
@pytest.mark.parametrize("changed_input", ["latents", "proprio", "actions"])
@pytest.mark.parametrize("frame", [1, 2, 3])
def test_a_later_frame_changes_nothing_before_it_by_a_single_bit(
    make_predictor, make_motion, changed_input: str, frame: int
) -> None:
    predictor = make_predictor()
    inputs = arguments(make_motion, batch=2, frames=4)
    before = predictor(**inputs)
    inputs[changed_input] = inputs[changed_input].clone()
    inputs[changed_input][:, frame] += 0.5
    after = predictor(**inputs)
    assert torch.equal(after[:, :frame], before[:, :frame])
    for t in range(frame, 4):  # the frame itself and all after it see the change
        assert not torch.equal(after[:, t], before[:, t])


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1), (2, 3), (1, 3, 1), (4, 1)])
def test_frames_given_in_pieces_with_a_cache_equal_all_at_once(
    make_predictor, make_motion, pieces: tuple[int, ...]
) -> None:
    predictor, latents, (proprio, actions) = make_predictor(), latents_of(2, 5), make_motion(2, 5)
    cache, outputs = predictor.new_cache(), []
    parts = (x.split(pieces, dim=1) for x in (latents, proprio, actions))
    for piece in zip(*parts, strict=True):
        outputs.append(predictor(*piece, cache=cache))
    whole = predictor(latents, proprio, actions)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.num_frames == 5


@torch.inference_mode()
def test_a_repeated_cache_serves_each_copy_of_a_batch_entry(make_predictor, make_motion) -> None:
    predictor, latents, (proprio, actions) = make_predictor(), latents_of(2, 3), make_motion(2, 3)
    cache = predictor.new_cache()
    predictor(latents[:, :2], proprio[:, :2], actions[:, :2], cache=cache)
    last = [x[:, 2:].repeat_interleave(3, dim=0) for x in (latents, proprio, actions)]
    copies = predictor(*last, cache=cache.repeat(3)).unflatten(0, (2, 3))
    whole = predictor(latents, proprio, actions)[:, None, 2:].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(copies, whole, atol=1e-5, rtol=1e-5)
    assert cache.num_frames == 2  # the original is not touched
    assert cache.layers[0].keys is not None and len(cache.layers[0].keys) == 2


def test_the_mask_is_causal_by_frames_and_full_within_one() -> None:
    assert block_causal_mask(3, 2).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert torch.equal(block_causal_mask(2, 3, past_frames=2), block_causal_mask(4, 3)[6:])


@torch.inference_mode()
def test_camera_poses_join_the_group_of_their_frame(make_predictor, make_motion) -> None:
    predictor = make_predictor(use_extrinsics=True)
    latents, (proprio, actions) = latents_of(2, 3), make_motion(2, 3)
    cameras = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(3))
    before = predictor(latents, proprio, actions, cameras)
    moved = cameras.clone()
    moved[:, 1] += 0.5
    after = predictor(latents, proprio, actions, moved)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.equal(after[:, 1], before[:, 1])
    cache = predictor.new_cache()
    parts = [
        predictor(*(x[:, t : t + 1] for x in (latents, proprio, actions, cameras)), cache=cache)
        for t in range(3)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), before, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_residual_predictor_adds_its_output_to_the_latents(make_predictor, make_motion) -> None:
    residual, plain = make_predictor(residual=True), make_predictor(residual=False)
    plain.load_state_dict(residual.state_dict())
    latents, (proprio, actions) = latents_of(2, 2), make_motion(2, 2)
    added = residual(latents, proprio, actions)
    torch.testing.assert_close(added, latents + plain(latents, proprio, actions))


@torch.inference_mode()
def test_a_roll_of_pi_and_of_minus_pi_are_the_same_pose_as_a_matrix_only(
    make_predictor, make_motion
) -> None:
    latents, (proprio, actions) = latents_of(2, 1), make_motion(2, 1)
    above, below = proprio.clone(), proprio.clone()
    above[..., 3], below[..., 3] = torch.pi, -torch.pi
    by_matrix, by_angles = make_predictor(), make_predictor(rotation_input="euler")
    torch.testing.assert_close(
        by_matrix(latents, above, actions), by_matrix(latents, below, actions), atol=1e-5, rtol=0
    )
    far = by_angles(latents, above, actions) - by_angles(latents, below, actions)
    assert float(far.abs().max()) > 0.1


@torch.inference_mode()
def test_input_scales_divide_actions_and_standardise_poses(make_predictor, make_motion) -> None:
    scaled, plain = (make_predictor(rotation_input="euler", num_frequencies=0) for _ in range(2))
    latents, (proprio, actions) = latents_of(2, 2), make_motion(2, 2)
    mean, std = torch.arange(7.0), torch.arange(1.0, 8.0)
    scaled.proprio_mean.copy_(mean)
    scaled.proprio_std.copy_(std)
    scaled.action_std.copy_(2 * std)
    torch.testing.assert_close(
        scaled(latents, proprio, actions),
        plain(latents, (proprio - mean) / std, actions / (2 * std)),
    )


@torch.inference_mode()
def test_a_pose_enters_also_as_waves_of_its_scaled_position(make_predictor, make_motion) -> None:
    predictor, (proprio, _) = make_predictor(num_frequencies=2), make_motion(2, 3)
    predictor.proprio_mean[:3] = torch.tensor([0.5, 0.0, 0.3])
    predictor.proprio_std[:3] = torch.tensor([0.1, 0.2, 0.1])
    scaled, waves = predictor.pose_features(proprio).split((10, 12), dim=-1)
    position = (proprio[..., :3] - predictor.proprio_mean[:3]) / predictor.proprio_std[:3]
    torch.testing.assert_close(scaled[..., :3], position)
    quarter = position * torch.pi / 2  # a standard deviation is a quarter of the longest wave
    angles = torch.stack((quarter, 2 * quarter), dim=-1).flatten(-2)
    torch.testing.assert_close(waves, torch.cat((angles.sin(), angles.cos()), dim=-1))


@torch.inference_mode()
def test_an_action_enters_also_as_the_pose_it_leads_to(make_predictor, make_motion) -> None:
    predictor, (proprio, actions) = make_predictor(), make_motion(2, 3)
    predictor.action_std.mul_(2)
    features = predictor.action_features(proprio, actions)
    torch.testing.assert_close(features[..., :7], actions / 2)
    led_to = predictor.pose_features(proprio[:, 1:])  # proprio follows the actions
    torch.testing.assert_close(features[:, :-1, 7:], led_to, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_poses_keep_single_precision_under_autocast(make_predictor, make_motion) -> None:
    predictor, given = make_predictor(), arguments(make_motion, batch=2)
    proprio, actions = given["proprio"], given["actions"]
    expected = [predictor.action_features(proprio, actions), predictor.pose_features(proprio)]
    entered = []
    for encoder in (predictor.action_encoder, predictor.state_encoder):
        encoder.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    further = given | {"actions": actions + 1e-3 * torch.eye(7)[0]}  # 1 mm along x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, far = predictor(**given), predictor(**further)
    for found, wanted in zip(entered[:2], expected, strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert not torch.equal(near, far)


@torch.inference_mode()
@pytest.mark.parametrize("rotation_input, frequencies", [("matrix", 2), ("euler", 0)])
def test_without_proprio_no_pose_is_told(
    make_predictor, make_motion, rotation_input, frequencies: int
) -> None:
    settings = {"rotation_input": rotation_input, "num_frequencies": frequencies}
    without, told = make_predictor(use_proprio=False, **settings), make_predictor(**settings)
    without.load_state_dict(told.state_dict())  # the same weights fit
    given = arguments(make_motion, batch=2)
    moved = given | {"proprio": given["proprio"] + 0.1}
    assert torch.equal(without(**moved), without(**given))
    assert not torch.equal(told(**moved), told(**given))
    other_way = given | {"actions": -given["actions"]}
    assert not torch.equal(without(**other_way), without(**given))

    features, proprio = without.pose_features(given["proprio"]), given["proprio"]
    assert features.shape == told.pose_features(proprio).shape and not features.any()


def test_without_proprio_there_are_no_other_embodiments() -> None:
    with pytest.raises(ValueError, match=r"not that of other embodiments \(joints\)"):
        ActionConditionedPredictor(
            latent_dim=24,
            grid_size=(4, 4),
            embed_dim=32,
            depth=1,
            num_heads=2,
            embodiments={"joints": (8, 9)},
            use_proprio=False,
        )


def test_a_negative_number_of_frequencies_is_refused(make_predictor) -> None:
    with pytest.raises(ValueError, match="num_frequencies must be 0 or more, got -1"):
        make_predictor(num_frequencies=-1)


@torch.inference_mode()
def test_a_token_is_rotated_by_its_own_place_in_the_grid(make_predictor, make_motion) -> None:
    predictor, (proprio, actions) = make_predictor(), make_motion(1, 1)
    latents = latents_of(1, 1)
    order = torch.arange(16).view(4, 4).T.flatten()  # rows and columns exchanged
    moved = predictor(latents[:, :, order], proprio, actions)
    straight = predictor(latents, proprio, actions)[:, :, order]
    assert float((moved - straight).abs().max()) > 1e-3


def arguments(make_motion, *, batch: int = 1, frames: int = 2) -> dict[str, Tensor]:
    proprio, actions = make_motion(batch, frames)
    return {"latents": latents_of(batch, frames), "proprio": proprio, "actions": actions}


@pytest.mark.parametrize(
    "name, shape, message",
    [
        (
            "latents",
            (1, 2, 9, 24),
            r"latents must have shape \(batch, frames, 16, 24\), got \(1, 2",
        ),
        ("latents", (2, 16, 24), r"latents must have shape .*, got \(2, 16, 24\)"),
        ("proprio", (1, 2, 6), r"proprio must have shape \(1, 2, 7\) to go with latents"),
        ("actions", (1, 1, 7), r"actions must have shape \(1, 2, 7\) .* got \(1, 1, 7\)"),
        ("actions", (1, 2, 8), r"actions must have shape \(1, 2, 7\) .* got \(1, 2, 8\)"),
        ("extrinsics", (1, 2, 7), r"extrinsics must have shape \(1, 2, 6\)"),
        ("extrinsics", (1, 2, 6), r"takes no extrinsics \(use_extrinsics=False\)"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(
    without_shape_checks, make_predictor, make_motion, name: str, shape: tuple, message: str
) -> None:
    inputs = arguments(make_motion) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        make_predictor()(**inputs)


def test_missing_extrinsics_are_refused(make_predictor, make_motion) -> None:
    predictor = make_predictor(use_extrinsics=True)
    with pytest.raises(ValueError, match="built with use_extrinsics=True; pass extrinsics"):
        predictor(**arguments(make_motion))


def test_an_unknown_rotation_input_is_refused(without_shape_checks) -> None:
    with pytest.raises(ValueError, match="must be 'euler' or 'matrix', got 'quaternion'"):
        ActionConditionedPredictor(
            latent_dim=24,
            grid_size=(4, 4),
            embed_dim=32,
            depth=1,
            num_heads=2,
            rotation_input="quaternion",  # type: ignore[arg-type]
        )
