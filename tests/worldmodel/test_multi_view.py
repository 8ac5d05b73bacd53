"""Several views, several embodiments and a window in the action-conditioned predictor."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.checkpoint import arguments
from worldmodel.embodiment import END_EFFECTOR
from worldmodel.frame_groups import block_causal_mask
from worldmodel.predictor import ActionConditionedPredictor
from worldmodel.rope import rope_table

ROWS, COLUMNS, DIM = 2, 3, 12
N = ROWS * COLUMNS


def make(*, seed: int = 0, depth: int = 2, **settings) -> ActionConditionedPredictor:
    """A small predictor, every weight of which is random and large enough to matter."""
    predictor = ActionConditionedPredictor(
        latent_dim=DIM,
        grid_size=(ROWS, COLUMNS),
        embed_dim=24,
        depth=depth,
        num_heads=2,
        rotation_input="euler",
        num_frequencies=0,
        **settings,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return predictor.eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int, frames: int, views: int, *, extrinsics: bool = False) -> dict[str, Tensor]:
    of_view = (views,) if views > 1 else ()
    given = {
        "latents": random(batch, frames, *of_view, N, DIM, seed=1),
        "proprio": random(batch, frames, 7, seed=2),
        "actions": random(batch, frames, 7, seed=3),
    }
    return given | (
        {"extrinsics": random(batch, frames, *of_view, 6, seed=4)} if extrinsics else {}
    )


def some_missing(batch: int, frames: int, views: int) -> Tensor:
    """A view mask with about half missing, another half in each batch entry, no frame empty."""
    mask = random(batch, frames, views, seed=7) > 0
    mask[..., 1] |= ~mask.any(dim=-1)
    assert not torch.equal(mask[0], mask[1])
    return mask


def brute_force(
    predictor: ActionConditionedPredictor,
    latents: Tensor,
    proprio: Tensor,
    actions: Tensor,
    extrinsics: Tensor | None = None,
    view_mask: Tensor | None = None,
) -> Tensor:
    """Token by token: missing views make no tokens, every pair of tokens is looked at by itself.

    Returns (B, T, V, N, D), NaN where a view is missing.
    """
    B, T, V = latents.shape[:3]
    out = torch.full(latents.shape, torch.nan)
    for b in range(B):
        tokens, frames, places, patches = [], [], [], []
        for t in range(T):
            views = [v for v in range(V) if view_mask is None or view_mask[b, t, v]]
            group = [
                (predictor.action_encoder(actions[b, t]), (t, 0, 0), None),
                (predictor.state_encoder(proprio[b, t]), (t, 0, 0), None),
            ]
            if extrinsics is not None:
                for v in views:
                    camera = predictor.extrinsics_encoder(extrinsics[b, t, v])
                    group.append((camera + predictor.view_embed[v], (t, 0, 0), None))
            for v in views:
                for row in range(ROWS):
                    for column in range(COLUMNS):
                        n = row * COLUMNS + column
                        patch = predictor.predictor_embed(latents[b, t, v, n])
                        group.append((patch + predictor.view_embed[v], (t, row, column), (t, v, n)))
            for token, place, patch in group:
                tokens.append(token)
                frames.append(t)
                places.append(place)
                patches.append(patch)
        window = predictor.window or T
        mask = torch.tensor([[0 <= query - key < window for key in frames] for query in frames])
        x = torch.stack(tokens)[None]
        rope = rope_table(torch.tensor(places).float(), 12, predictor.rope)
        for block in predictor.predictor_blocks:
            x = block(x, rope, mask)
        x = predictor.predictor_proj(predictor.predictor_norm(x))[0]
        for token, patch in zip(x, patches, strict=True):
            if patch is not None:
                out[b][patch] = token + (latents[b][patch] if predictor.residual else 0)
    return out


@torch.inference_mode()
@pytest.mark.parametrize("extrinsics", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_views_windows_and_missing_views_equal_a_token_by_token_computation(
    window: int | None, missing: bool, extrinsics: bool
) -> None:
    predictor = make(num_views=3, window=window, use_extrinsics=extrinsics)
    given = inputs(2, 5, 3, extrinsics=extrinsics)
    if missing:
        given["view_mask"] = some_missing(2, 5, 3)
    expected = brute_force(predictor, **given)
    there = ~expected.isnan()
    assert bool(there.all()) != missing
    out = predictor(**given)
    torch.testing.assert_close(out[there], expected[there], atol=1e-5, rtol=1e-5)


# One view, one embodiment and no window: V-JEPA 2-AC.


def test_the_defaults_have_the_published_names_and_three_scales() -> None:
    names = {name for name in make().state_dict() if not name.startswith("predictor_blocks.")}
    layers = "predictor_embed action_encoder state_encoder extrinsics_encoder predictor_norm"
    expected = {f"{n}.{kind}" for n in layers.split() for kind in ("weight", "bias")}
    expected |= {"predictor_proj.weight", "predictor_proj.bias"}
    assert names == expected | {"proprio_mean", "proprio_std", "action_std"}


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 4])
def test_one_view_no_window_and_no_further_embodiment_is_the_same_to_the_bit(frames: int) -> None:
    plain = make()
    more = make(window=frames, embodiments={"arm": (7, 7), "other": (3, 5)}, seed=9)
    assert not more.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    arm = more.embodiment_encoders["arm"]
    arm.action_encoder.load_state_dict(plain.action_encoder.state_dict())
    arm.state_encoder.load_state_dict(plain.state_encoder.state_dict())
    given = inputs(2, frames, 1)
    expected = plain(**given)
    assert torch.equal(more(**given), expected)
    assert torch.equal(more(**given, embodiment=END_EFFECTOR), expected)
    assert torch.equal(more(**given, embodiment="arm"), expected)


@torch.inference_mode()
def test_two_views_of_which_one_is_missing_are_v_jepa_2_ac_with_one(golden_world, golden) -> None:
    single = golden_world.predictor
    double = ActionConditionedPredictor(**arguments(single) | {"num_views": 2, "window": 3})
    double.load_state_dict(single.state_dict(), strict=False)
    double.view_embed[0] = 0.0
    latents = golden["frame_tokens_normalised"].unflatten(1, (3, 16))
    both = torch.stack((latents, torch.full_like(latents, torch.nan)), dim=2)
    mask = torch.tensor([True, False]).expand(*latents.shape[:2], 2)
    predicted = double(both, golden["states"], golden["actions"], view_mask=mask)[:, :, 0]
    expected = golden["predictor_teacher_forced"].unflatten(1, (3, 16))
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=0)


# Causality, window and cache.


@torch.inference_mode()
@pytest.mark.parametrize("changed", ["latents", "proprio", "actions", "extrinsics"])
def test_a_later_frame_of_any_view_changes_nothing_before_it(changed: str) -> None:
    predictor, given = (
        make(num_views=2, use_extrinsics=True),
        inputs(2, 4, 2, extrinsics=True),
    )
    before = predictor(**given)
    given[changed] = given[changed].clone()
    given[changed][:, 2] += 0.5
    after = predictor(**given)
    assert torch.equal(after[:, :2], before[:, :2])
    for t in (2, 3):
        for view in (0, 1):
            assert not torch.equal(after[:, t, view], before[:, t, view])


@torch.inference_mode()
def test_one_block_with_a_window_forgets_the_frame_before_it() -> None:
    predictor, given = make(depth=1, num_views=2, window=2), inputs(1, 5, 2)
    before = predictor(**given)
    given["latents"] = given["latents"].clone()
    given["latents"][:, 1] += 1
    changed = [not torch.equal(predictor(**given)[:, t], before[:, t]) for t in range(5)]
    assert changed == [False, True, True, False, False]


def test_the_mask_of_a_window_is_a_band() -> None:
    assert block_causal_mask(4, 1, window=2).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
    banded = block_causal_mask(2, 3, past_frames=1, window=2)
    assert torch.equal(banded, block_causal_mask(4, 3, window=2)[6:, 3:])


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [(1,) * 6, (2, 4), (4, 1, 1), (3, 2, 1)])
@pytest.mark.parametrize("window", [None, 1, 2, 3])
@pytest.mark.parametrize("views", [1, 2])
def test_with_a_window_a_cache_changes_nothing_and_stays_small(
    views: int, window: int | None, pieces: tuple[int, ...]
) -> None:
    predictor, given = make(num_views=views, window=window, rope="tiled"), inputs(2, 6, views)
    if views > 1:
        given["view_mask"] = some_missing(2, 6, views)
    cache, outputs, seen = predictor.new_cache(), [], 0
    split = {name: value.split(pieces, dim=1) for name, value in given.items()}
    for i, count in enumerate(pieces):
        part = {name: values[i] for name, values in split.items()}
        outputs.append(predictor(**part, cache=cache))
        seen += count
        held = seen if window is None else min(seen, window - 1)
        assert cache.num_frames == seen
        for layer in cache.layers:
            assert layer.keys is not None and layer.values is not None
            assert layer.keys.shape[2] == layer.values.shape[2] == held * (2 + views * N)
        assert views == 1 or cache.view_mask.shape == (2, held, views)
    whole = predictor(**given)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("missing_in", ["past", "new"])
def test_views_may_be_missing_on_one_side_of_a_cache_only(missing_in: str) -> None:
    predictor, given = make(num_views=2), inputs(2, 4, 2)
    masks = {"past": None, "new": None, missing_in: some_missing(2, 2, 2)}
    cache = predictor.new_cache()
    predictor(**{k: v[:, :2] for k, v in given.items()}, view_mask=masks["past"], cache=cache)
    copies = {k: v[:, 2:].repeat_interleave(3, dim=0) for k, v in given.items()}
    new = masks["new"].repeat_interleave(3, dim=0) if missing_in == "new" else None
    out = predictor(**copies, view_mask=new, cache=cache.repeat(3))
    whole = [m if m is not None else torch.ones(2, 2, 2).bool() for m in masks.values()]
    expected = predictor(**given, view_mask=torch.cat(whole, dim=1))[:, 2:]
    torch.testing.assert_close(out, expected.repeat_interleave(3, dim=0), atol=1e-5, rtol=1e-5)


# Views.


@torch.inference_mode()
def test_what_stands_in_for_a_missing_view_changes_no_bit() -> None:
    predictor = make(num_views=3, use_extrinsics=True, residual=False)
    given, mask = inputs(2, 4, 3, extrinsics=True), some_missing(2, 4, 3)
    before = predictor(**given, view_mask=mask)
    for garbage in (0.0, 1e30, torch.inf, torch.nan):
        given["latents"][~mask] = garbage
        given["extrinsics"][~mask] = garbage
        assert torch.equal(predictor(**given, view_mask=mask), before)
    assert not predictor(**given)[mask].isfinite().all()  # without the mask it is read


@torch.inference_mode()
def test_views_that_are_all_there_need_no_mask() -> None:
    predictor, given = make(num_views=2), inputs(2, 3, 2)
    whole = predictor(**given, view_mask=torch.ones(2, 3, 2).bool())
    torch.testing.assert_close(whole, predictor(**given), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_view_is_known_by_its_embedding_not_by_its_place() -> None:
    predictor = make(num_views=2, use_extrinsics=True)
    given = inputs(2, 3, 2, extrinsics=True)
    before = predictor(**given)
    for name in ("latents", "extrinsics"):
        given[name] = given[name].flip(2)
    assert float((predictor(**given).flip(2) - before).abs().max()) > 0.1
    predictor.view_embed.copy_(predictor.view_embed.flip(0))
    torch.testing.assert_close(predictor(**given).flip(2), before, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["latents", "extrinsics"])
def test_each_view_hears_of_the_other(name: str) -> None:
    predictor = make(num_views=2, use_extrinsics=True)
    given = inputs(1, 1, 2, extrinsics=True)
    before = predictor(**given)
    given[name][:, :, 1] += 0.5
    assert not torch.equal(predictor(**given)[:, :, 0], before[:, :, 0])


def test_two_views_of_which_either_may_be_missing_are_learnt() -> None:
    """The hand moves by the action in view 0; view 1 shows a wall that stays as it is."""
    torch.manual_seed(0)
    predictor = ActionConditionedPredictor(
        latent_dim=DIM,
        grid_size=(ROWS, COLUMNS),
        embed_dim=24,
        depth=1,
        num_heads=2,
        rotation_input="euler",
        num_frequencies=0,
        num_views=2,
    )
    shown, wall = random(7, DIM) / 7**0.5, random(N, DIM, seed=1)

    no_hand, no_wall, both = slice(10), slice(10, 20), slice(20, 32)
    mask = torch.ones(32, 1, 2).bool()
    mask[no_hand, :, 0] = mask[no_wall, :, 1] = False

    def batch_of(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start, actions = torch.randn((2, 32, 1, 7), generator=generator)
        hand = [(x @ shown)[..., None, :].expand(-1, -1, N, -1) for x in (start, start + actions)]
        now, after = (torch.stack((x, wall.expand_as(x)), dim=2) for x in hand)  # (B, 1, 2, N, D)
        now[~mask] = torch.nan
        return now, after, start, actions

    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    for _ in range(300):
        now, after, start, actions = batch_of(generator)
        out = predictor(now, start, actions, view_mask=mask)
        optimizer.zero_grad()
        F.l1_loss(out[mask], after[mask]).backward()
        optimizer.step()

    now, after, start, actions = batch_of(generator)
    with torch.no_grad():
        out = predictor(now, start, actions, view_mask=mask)
    copying = F.l1_loss(now[both, :, 0], after[both, :, 0])
    for batch, view in ((both, 0), (no_wall, 0), (both, 1), (no_hand, 1)):
        assert F.l1_loss(out[batch, :, view], after[batch, :, view]) < copying / 2


# Embodiments.


@pytest.fixture
def mixed() -> ActionConditionedPredictor:
    return make(embodiments={"joints": (8, 9), "base": (3, 4)})


def of_embodiment(name: str) -> dict:
    action, proprio = {"joints": (8, 9), "base": (3, 4)}[name]
    return {
        "latents": random(2, 3, N, DIM, seed=1),
        "proprio": random(2, 3, proprio, seed=2),
        "actions": random(2, 3, action, seed=3),
        "embodiment": name,
    }


def test_embodiments_share_all_but_their_projections(mixed) -> None:
    trained = {}
    for name in ("joints", "base"):
        mixed.zero_grad(set_to_none=True)
        mixed(**of_embodiment(name)).square().mean().backward()
        trained[name] = {n for n, p in mixed.named_parameters() if p.grad is not None}
    shared = trained["joints"] & trained["base"]
    prefixes = ("predictor_embed", "predictor_blocks", "predictor_norm", "predictor_proj")
    assert shared == {n for n, _ in mixed.named_parameters() if n.startswith(prefixes)}
    for name in ("joints", "base"):
        assert trained[name] - shared == {
            f"embodiment_encoders.{name}.{layer}.{kind}"
            for layer in ("action_encoder", "state_encoder")
            for kind in ("weight", "bias")
        }


@torch.inference_mode()
@pytest.mark.parametrize("name", ["joints", "base"])
def test_an_embodiment_hears_its_actions_and_its_proprio_only_through_its_scales(
    mixed, name: str
) -> None:
    given = of_embodiment(name)
    before = mixed(**given)
    for part in ("actions", "proprio"):
        other = given | {part: given[part] + 0.5}
        assert not torch.equal(mixed(**other), before)
    robot = mixed.embodiment_encoders[name]
    robot.proprio_mean.fill_(0.5)
    robot.proprio_std.fill_(2)
    robot.action_std.fill_(4)
    mixed.action_std.fill_(100)  # of the end effector
    raw = given | {"proprio": 2 * given["proprio"] + 0.5, "actions": 4 * given["actions"]}
    torch.testing.assert_close(mixed(**raw), before)


@torch.inference_mode()
def test_a_predictor_is_made_again_from_its_arguments_as_json() -> None:
    settings = {"num_views": 2, "window": 3, "embodiments": {"joints": (8, 9)}}
    predictor = make(**settings)
    kept = json.loads(json.dumps(arguments(predictor)))
    again = ActionConditionedPredictor(**kept)
    assert arguments(again) == arguments(predictor)
    again.load_state_dict(predictor.state_dict())
    given = inputs(1, 4, 2)
    assert torch.equal(again(**given), predictor(**given))


# Errors.


@pytest.mark.parametrize(
    "name, shape, message",
    [
        (
            "latents",
            (1, 2, N, DIM),
            r"latents must have shape \(batch, frames, 2, 6, 12\), got \(1",
        ),
        ("latents", (1, 2, 3, N, DIM), r"latents must have shape .* got \(1, 2, 3, 6, 12\)"),
        ("extrinsics", (1, 2, 6), r"extrinsics must have shape \(1, 2, 2, 6\) .* got \(1, 2, 6\)"),
        ("view_mask", (1, 2), r"view_mask must have shape \(1, 2, 2\) .* got \(1, 2\)"),
        ("view_mask", (1, 2, 3), r"view_mask must have shape \(1, 2, 2\) .* got \(1, 2, 3\)"),
    ],
)
def test_a_wrong_shape_of_views_is_refused(
    without_shape_checks, name: str, shape: tuple, message: str
) -> None:
    given = inputs(1, 2, 2, extrinsics=True) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        make(num_views=2, use_extrinsics=True)(**given)


def test_a_frame_without_any_view_is_refused_by_its_place() -> None:
    mask = torch.ones(3, 4, 2).bool()
    mask[1, 2] = False
    with pytest.raises(ValueError, match="leaves frame 2 of batch entry 1 no view at all"):
        make(num_views=2)(**inputs(3, 4, 2), view_mask=mask)


def test_a_view_mask_for_a_single_view_is_refused() -> None:
    with pytest.raises(ValueError, match="this predictor has num_views=1"):
        make()(**inputs(2, 3, 1), view_mask=torch.ones(2, 3, 1).bool())


def test_an_unknown_embodiment_is_refused_with_the_nearest(mixed) -> None:
    given = of_embodiment("joints") | {"embodiment": "joint"}
    message = (
        "unknown embodiment 'joint'; did you mean 'joints'.* known: end_effector, joints, base"
    )
    with pytest.raises(ValueError, match=message):
        mixed(**given)


def test_actions_of_another_embodiment_are_refused(mixed) -> None:
    given = of_embodiment("joints") | {"embodiment": "base"}
    with pytest.raises(
        ValueError, match=r"proprio must have shape \(2, 3, 4\).* embodiment 'base'"
    ):
        mixed(**given)
    given = of_embodiment("joints") | {"embodiment": END_EFFECTOR}
    with pytest.raises(
        ValueError, match=r"\(2, 3, 7\) .* embodiment 'end_effector', got \(2, 3, 9"
    ):
        mixed(**given)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_views": 0}, "num_views must be 1 or more, got 0"),
        ({"window": 0}, "window must be 1 or more frames, or None for all, got 0"),
        ({"embodiments": {"end_effector": (7, 7)}}, "must not be named 'end_effector'"),
        ({"embodiments": {"arm.left": (7, 7)}}, "must not be named 'arm.left'"),
        ({"embodiments": {"arm": (7,)}}, r"'arm' must have two sizes .* got \(7,\)"),
        ({"embodiments": {"arm": (7, 0)}}, r"'arm' must have two sizes .* got \(7, 0\)"),
    ],
)
def test_a_predictor_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
