import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.adaln_predictor import MODULATION_STD, AdaLNPredictor
from worldmodel.jepa import JEPA
from worldmodel.transformer import Block


def make_adaln(*, proprio_dim: int = 5, residual: bool = True) -> AdaLNPredictor:
    predictor = AdaLNPredictor(
        latent_dim=24,
        grid_size=(4, 4),
        embed_dim=32,
        depth=2,
        num_heads=2,
        proprio_dim=proprio_dim,
        residual=residual,
    )
    randomise(predictor)
    return predictor.eval()


@torch.no_grad()
def randomise(predictor: AdaLNPredictor) -> None:
    """Gives every weight a random value, large enough that no part of the model is nearly idle."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in predictor.named_parameters():
        noise = 0.15 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    predictor.action_std.fill_(0.1)


def latents_of(batch: int, frames: int) -> Tensor:
    return torch.randn(batch, frames, 16, 24, generator=torch.Generator().manual_seed(5))


def arguments(make_motion, *, batch: int = 1, frames: int = 2) -> dict[str, Tensor]:
    proprio, actions = make_motion(batch, frames)
    return {"latents": latents_of(batch, frames), "proprio": proprio, "actions": actions}


@torch.inference_mode()
@pytest.mark.parametrize("changed_input", ["latents", "proprio", "actions"])
@pytest.mark.parametrize("frame", [1, 2, 3])
def test_a_later_frame_changes_nothing_before_it_by_a_single_bit(
    make_motion, changed_input: str, frame: int
) -> None:
    predictor, inputs = make_adaln(), arguments(make_motion, batch=2, frames=4)
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
    make_motion, pieces: tuple[int, ...]
) -> None:
    predictor, inputs = make_adaln(), arguments(make_motion, batch=2, frames=5)
    cache, outputs = predictor.new_cache(), []
    for piece in zip(*(x.split(pieces, dim=1) for x in inputs.values()), strict=True):
        outputs.append(predictor(*piece, cache=cache))
    whole = predictor(**inputs)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.num_frames == 5


@torch.inference_mode()
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("proprio_dim", [0, 5])
def test_a_world_model_rolls_it_out_as_if_it_ran_the_whole_sequence_at_every_step(
    make_encoder, make_motion, context: int, proprio_dim: int
) -> None:
    predictor = make_adaln(proprio_dim=proprio_dim)
    world = JEPA(encoder=make_encoder(), predictor=predictor, image_size=32, standardise=True)
    steps, plans = context - 1 + 3, 4
    latents = latents_of(2, context)
    proprio, _ = make_motion(2, steps)
    actions = torch.stack([make_motion(2, steps, seed=s)[1] for s in range(plans)], dim=1)
    actions[:, :, : context - 1] = actions[:, :1, : context - 1]
    imagined = world.rollout(latents, proprio, actions)
    assert imagined.shape == (2, plans, 3, 16, 24)
    for plan in range(plans):
        sequence = latents
        for t in range(context, steps + 1):
            ahead = predictor(sequence, proprio[:, :t], actions[:, plan, :t])
            sequence = torch.cat((sequence, ahead[:, -1:]), dim=1)
        torch.testing.assert_close(imagined[:, plan], sequence[:, context:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_an_action_reaches_every_patch_of_its_frame_through_every_block(make_motion) -> None:
    inputs = arguments(make_motion, batch=2, frames=1)
    moved = inputs | {"actions": inputs["actions"] + 0.05}
    for idle in ([], [0], [1]):
        predictor = make_adaln()
        for index in idle:  # this block hears the action no more
            predictor.predictor_blocks[index].modulation.weight.zero_()
        change = (predictor(**moved) - predictor(**inputs)).abs().amax(dim=-1)
        assert float(change.min()) > 1e-2
    for index in (0, 1):
        predictor.predictor_blocks[index].modulation.weight.zero_()
    assert torch.equal(predictor(**moved), predictor(**inputs))


@torch.inference_mode()
def test_a_block_with_open_gates_and_no_shift_is_the_plain_block() -> None:
    block = make_adaln().predictor_blocks[0]
    plain = Block(embed_dim=32, num_heads=2, mlp_ratio=4.0, layer_norm_eps=1e-6)
    plain.attn.load_state_dict(block.attn.state_dict())
    plain.mlp.load_state_dict(block.mlp.state_dict())
    shift, scale, gate = torch.zeros(32), torch.zeros(32), torch.ones(32)
    block.modulation.weight.zero_()
    block.modulation.bias.copy_(torch.cat((shift, scale, gate, shift, scale, gate)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 32, generator=generator)
    rope = (torch.ones(12, 16), torch.zeros(12, 16))  # no rotation
    steered = block(x, torch.randn(2, 3, 32, generator=generator), rope)
    torch.testing.assert_close(steered.flatten(1, 2), plain(x.flatten(1, 2), rope))
    block.modulation.bias[2 * 32 : 3 * 32] = 0  # closed gates let nothing of a branch through
    block.modulation.bias[5 * 32 :] = 0
    assert torch.equal(block(x, torch.zeros(2, 3, 32), rope), x)


@torch.inference_mode()
def test_scale_and_shift_act_on_the_normed_tokens_of_each_branch() -> None:
    block = make_adaln().predictor_blocks[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 1, 32, generator=generator)
    condition = torch.randn(2, 1, 32, generator=generator)
    rope = (torch.ones(1, 16), torch.zeros(1, 16))
    parts = block.modulation(condition / (1 + (-condition).exp())).unflatten(-1, (6, 32))
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts.squeeze(1).unbind(1)
    before = F.layer_norm(x.view(2, 32), (32,), eps=1e-6) * (1 + scale) + shift
    value = block.attn.qkv(before)[:, 64:]  # a token alone attends to itself with weight 1
    middle = x.view(2, 32) + gate * block.attn.proj(value)
    inner = F.layer_norm(middle, (32,), eps=1e-6) * (1 + mlp_scale) + mlp_shift
    expected = middle + mlp_gate * block.mlp(inner)
    torch.testing.assert_close(block(x, condition, rope).view(2, 32), expected)


@torch.inference_mode()
def test_the_pose_can_be_left_out(make_motion) -> None:
    inputs = arguments(make_motion, batch=2)
    moved = inputs | {"proprio": inputs["proprio"] + 0.1}
    without, having = make_adaln(proprio_dim=0), make_adaln(proprio_dim=5)
    assert torch.equal(without(**moved), without(**inputs))
    assert "state_encoder.weight" not in without.state_dict()
    assert float((having(**moved) - having(**inputs)).abs().max()) > 1e-2


@torch.inference_mode()
def test_a_roll_of_pi_and_of_minus_pi_are_the_same_pose(make_motion) -> None:
    inputs = arguments(make_motion, frames=1)
    above, below = inputs["proprio"].clone(), inputs["proprio"].clone()
    above[..., 3], below[..., 3] = torch.pi, -torch.pi
    predictor = make_adaln()
    at_above, at_below = (predictor(**(inputs | {"proprio": x})) for x in (above, below))
    torch.testing.assert_close(at_above, at_below, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_pose_is_the_vector_that_the_other_predictor_makes_of_it(
    make_predictor, make_motion
) -> None:
    proprio, _ = make_motion(2, 3)
    expected = make_predictor(rotation_input="matrix").pose_vector(proprio)
    assert torch.equal(make_adaln().pose_vector(proprio), expected)


@torch.inference_mode()
def test_input_scales_divide_actions_and_standardise_poses(make_motion) -> None:
    inputs, predictor = arguments(make_motion), make_adaln()
    mean, std = torch.arange(10.0), torch.arange(1.0, 11.0)
    predictor.proprio_mean.copy_(mean)
    predictor.proprio_std.copy_(std)
    predictor.action_std.copy_(std[:7])
    scaled = predictor(**inputs)
    predictor.proprio_mean.zero_()
    predictor.proprio_std.fill_(1)
    predictor.action_std.fill_(1)
    weight = predictor.state_encoder.weight
    weight.div_(std)
    predictor.state_encoder.bias.sub_(weight @ mean)
    predictor.action_encoder.weight.div_(std[:7])
    torch.testing.assert_close(predictor(**inputs), scaled, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("moved", ["proprio", "actions"])
def test_a_millimetre_counts_under_autocast(make_motion, moved: str) -> None:
    predictor, inputs = make_adaln(), arguments(make_motion)
    predictor.action_std.fill_(1)
    inputs[moved][..., 0] = 0.6  # bfloat16 has no other number within a millimetre of it
    further = inputs | {moved: inputs[moved] + 1e-3 * torch.eye(7)[0]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(predictor(**further), predictor(**inputs))


@torch.inference_mode()
def test_a_residual_predictor_adds_its_output_to_the_latents(make_motion) -> None:
    inputs = arguments(make_motion)
    added, plain = make_adaln(residual=True)(**inputs), make_adaln(residual=False)(**inputs)
    torch.testing.assert_close(added, inputs["latents"] + plain)


@torch.inference_mode()
def test_a_token_is_rotated_by_its_own_place_in_the_grid(make_motion) -> None:
    predictor, inputs = make_adaln(), arguments(make_motion, frames=1)
    order = torch.arange(16).view(4, 4).T.flatten()  # rows and columns exchanged
    moved = predictor(**(inputs | {"latents": inputs["latents"][:, :, order]}))
    straight = predictor(**inputs)[:, :, order]
    assert float((moved - straight).abs().max()) > 1e-3


@torch.inference_mode()
def test_the_rotary_table_is_tiled_unless_told_otherwise(make_motion) -> None:
    by_default, tiled, interleaved = make_adaln(), make_adaln(), make_adaln()
    tiled.rope, interleaved.rope = "tiled", "interleaved"
    inputs = arguments(make_motion)
    assert torch.equal(by_default(**inputs), tiled(**inputs))
    assert float((tiled(**inputs) - interleaved(**inputs)).abs().max()) > 1e-3


def test_the_modulation_of_a_new_predictor_is_ten_times_as_large_as_its_other_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        predictor = AdaLNPredictor(
            latent_dim=24, grid_size=(4, 4), embed_dim=64, depth=3, num_heads=2
        )
    for block in predictor.requires_grad_(False).predictor_blocks:
        assert float(block.modulation.weight.std()) == pytest.approx(MODULATION_STD, rel=0.05)
        assert not block.modulation.bias.any()
        assert float(block.mlp.fc2.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_the_size_for_droid_is_twelve_blocks_as_wide_as_dinov3_large() -> None:
    with torch.device("meta"):
        predictor = AdaLNPredictor(latent_dim=1024, grid_size=(16, 16))
    E = 1024
    block = (6 * E * E + 6 * E) + (4 * E * E + 4 * E) + (8 * E * E + 5 * E)
    rest = 2 * (E * E + E) + 2 * E + (7 * E + E)  # in and out, norm, action
    assert sum(p.numel() for p in predictor.parameters()) == 12 * block + rest


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("latents", (1, 2, 9, 24), r"latents must have shape \(batch, frames, 16, 24\), got \(1"),
        ("latents", (2, 16, 24), r"latents must have shape .*, got \(2, 16, 24\)"),
        ("proprio", (1, 2, 6), r"proprio must have shape \(1, 2, 7\) to go with latents"),
        ("actions", (1, 1, 7), r"actions must have shape \(1, 2, 7\) .* got \(1, 1, 7\)"),
        ("actions", (1, 2, 8), r"actions must have shape \(1, 2, 7\) .* got \(1, 2, 8\)"),
        ("extrinsics", (1, 2, 6), "an AdaLNPredictor takes no extrinsics"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    without_shape_checks, make_motion, name: str, shape: tuple, message: str
) -> None:
    inputs = arguments(make_motion) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        make_adaln()(**inputs)


def test_a_negative_size_of_the_pose_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="proprio_dim must be 0 or more, got -1"):
        make_adaln(proprio_dim=-1)


def spots(places: Tensor) -> Tensor:
    """Latents (..., 16, 4) of a soft spot at `places` (..., 2) in a grid of 4 x 4 patches."""
    centres = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 4)])  # (16, 2)
    distance = (places[..., None, :] - centres).square().sum(-1)
    bump = 3 * (-distance / (2 * 0.25**2)).exp()
    return bump[..., None] * torch.tensor([1.0, -1.0, 0.5, 0.0])


def moves(n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames of a spot that the x and y of an action move; proprio tells nothing about it."""
    generator = torch.Generator().manual_seed(seed)
    step = 0.3 * torch.rand(n, 2, 2, generator=generator) - 0.15
    start = 0.3 + 0.4 * torch.rand(n, 1, 2, generator=generator)
    places = torch.cat((start, start + step.cumsum(1)), dim=1)  # (n, 3, 2)
    latents = spots(places)
    return latents[:, :2], torch.zeros(n, 2, 7), F.pad(step, (0, 5)), latents[:, 1:]


def test_it_learns_what_actions_do() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        predictor = AdaLNPredictor(
            latent_dim=4, grid_size=(4, 4), embed_dim=48, depth=2, num_heads=2
        )
    predictor.action_std.fill_(0.09)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=5e-3)
    for step in range(150):
        *inputs, after = moves(16, seed=step)
        loss = F.l1_loss(predictor(*inputs), after)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        latents, proprio, actions, after = moves(256, seed=10_000)
        error = float(F.l1_loss(predictor(latents, proprio, actions), after))
        misled = float(F.l1_loss(predictor(latents, proprio, actions.roll(1, dims=0)), after))
        copied = float(F.l1_loss(latents, after))
    print(f"true action {error:.4f}, another's action {misled:.4f}, no change {copied:.4f}")
    assert error < copied / 3
    assert misled > 3 * error
