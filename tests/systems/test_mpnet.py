"""MP-Net's own properties, on the tiny network, and each of its formulas against loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvos_jax as uvos
from uvos_jax.errors import ConfigError, DataError, ShapeError
from uvos_jax.ops.evidence import motion_evidence
from uvos_jax.ops.flow import flow_to_residual, planar_motion, rigid_residual
from uvos_jax.systems.mpnet import combine, objectness
from uvos_jax.train.stages import plan


def drawn(system, seed):
    """Variables of a system that let signals of every size through."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(0.5 + rng.random(leaf.shape), jnp.float32)
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

    shapes = jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def tiny():
    system = uvos.build("mpnet:tiny")
    return system, drawn(system, 2)


@partial(jax.jit, static_argnums=0, static_argnames="train")
def run(system, variables, batch, train=False):
    return system.apply(variables, batch, train=train)


def clip(H=64, W=64, T=2, seed=0):
    rng = np.random.default_rng(seed)
    flow = 3 * rng.standard_normal((1, T, H, W, 2))
    return {
        "frames": jnp.zeros((1, T, H, W, 3), jnp.uint8),
        "flow": jnp.asarray(flow, jnp.float32),
        "masks": jnp.asarray(rng.random((1, T, H, W)) < 0.3, jnp.uint8),
    }


# ----- the network ----------------------------------------------------------------------------


def test_full_network_has_as_many_parameters_as_the_release():
    shapes = jax.eval_shape(uvos.build("mpnet").init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 10_774_209


@pytest.mark.parametrize("size,half", [((64, 96), (32, 48)), ((58, 106), (29, 53))])
def test_logits_have_half_the_size_of_the_field(tiny, size, half):
    system, variables = tiny
    outputs, _ = jax.eval_shape(lambda: system.apply(variables, clip(*size), train=True))
    assert outputs["logits"].shape == (1, 2, *half, 1)


def test_at_test_time_the_field_is_resized_to_the_network():
    system = uvos.build("mpnet")
    assert system.spec.input_size is None
    assert system.module_inputs(clip(480, 856, 1))[0].shape == (1, 1, 232, 424, 2)
    assert system.network_size((856, 480)) == (424, 232)  # portrait
    other = uvos.build("mpnet:other_data")
    assert other.network_size((480, 640)) == (232, 309)
    assert other.network_size((100, 50)) == (464, 232)
    assert uvos.build("mpnet:tiny").network_size((58, 106)) == (58, 106)


def test_a_field_too_small_for_five_poolings_is_refused(tiny):
    system, variables = tiny
    with pytest.raises(ShapeError, match=r"at least 32 pixels a side, got \(31, 64\)"):
        system.apply(variables, clip(31, 64), train=False)


def test_missing_flow_is_named(tiny):
    system, variables = tiny
    batch = clip()
    del batch["flow"]
    with pytest.raises(DataError, match=r"nothing but the batch key 'flow'.*frames"):
        system.apply(variables, batch, train=False)


# ----- the encoding ---------------------------------------------------------------------------


def slow_encoding(flow, diagonal, zero_below):
    field = np.zeros(flow.shape)
    for index in np.ndindex(flow.shape[:-1]):
        u, v = (float(x) for x in flow[index])
        length = np.hypot(u, v)
        angle = np.arccos(np.clip(u / length, -1, 1)) if length > zero_below else 0.0
        field[index] = angle, length / (diagonal / 6)
    return field


@pytest.mark.parametrize("train,diagonal,zero_below", [(True, 550.73, 0.0), (False, None, 1.0)])
def test_angle_and_length_equal_a_slow_formula(train, diagonal, zero_below):
    system = uvos.build("mpnet")
    flow = np.random.default_rng(0).standard_normal((5, 7, 2)).astype(np.float32)
    field = np.asarray(system.encode(jnp.asarray(flow), train=train))
    expected = slow_encoding(flow, diagonal or np.hypot(5, 7), zero_below)
    np.testing.assert_allclose(field, expected, atol=1e-4)
    assert field[..., 0].min() >= 0
    assert field[..., 0].max() <= np.pi


def test_faster_flow_of_the_same_direction_changes_the_length_only():
    system = uvos.build("mpnet:tiny")
    flow = clip()["flow"]
    slow, fast = (system.encode(k * flow, train=True) for k in (1, 5))
    np.testing.assert_allclose(slow[..., 0], fast[..., 0], atol=2e-3)
    np.testing.assert_allclose(5 * slow[..., 1], fast[..., 1], rtol=1e-5)


def test_the_unsigned_angle_cannot_tell_up_from_down():
    system = uvos.build("mpnet:tiny")
    flow = clip()["flow"]
    flipped = flow * jnp.array([1.0, -1.0])
    np.testing.assert_allclose(system.encode(flow), system.encode(flipped), atol=1e-6)
    signed = uvos.build("mpnet:tiny", angle_mode="atan2")
    assert not np.allclose(signed.encode(flow), signed.encode(flipped))


@pytest.mark.parametrize("mode,channels", [("acos", 2), ("atan2", 2), ("sincos", 3), ("raw", 2)])
def test_encodings_and_their_channels(mode, channels):
    system = uvos.build("mpnet:tiny", angle_mode=mode)
    field = system.encode(jnp.zeros((1, 1, 4, 4, 2)))
    assert field.shape[-1] == channels
    assert np.all(field == 0)
    kernel = jax.eval_shape(system.init, jax.random.key(0))["params"]["stream"]["block1"]["conv"]
    assert kernel["kernel"].shape == (7, 7, channels, 8)


def test_a_rigid_scene_adds_its_three_channels_behind_the_plane():
    plane, rigid = (uvos.build(f"mpnet:tiny,angle_mode={m}") for m in ("residual", "rigid"))
    flow = clip(seed=3)["flow"]
    expected = flow_to_residual(flow, rigid=True)
    np.testing.assert_array_equal(rigid.encode(flow), expected)
    np.testing.assert_array_equal(plane.encode(flow), expected[..., :5])
    kernel = jax.eval_shape(rigid.init, jax.random.key(0))["params"]["stream"]["block1"]["conv"]
    assert kernel["kernel"].shape == (7, 7, 8, 8)
    # the camera's plane may be given: it changes nothing
    known = rigid.encode(flow, camera=planar_motion(flow))
    np.testing.assert_allclose(known, expected, atol=1e-4)


def test_the_detour_over_eight_bits_keeps_range_and_loses_steps():
    flow = clip()["flow"]
    exact = np.asarray(uvos.build("mpnet:tiny").encode(flow))
    rough = np.asarray(uvos.build("mpnet:tiny", eight_bit=True).encode(flow))
    span = exact.max((2, 3)) - exact.min((2, 3))
    assert np.all(np.abs(rough - exact).max((2, 3)) <= span / 255 * 0.51)
    assert len(np.unique(rough[0, 0, ..., 0])) <= 256


# ----- inference ------------------------------------------------------------------------------


def test_objectness_counts_the_best_proposals():
    proposals = np.zeros((4, 2, 3), bool)
    proposals[0, 0], proposals[1, 0, 0], proposals[3, 1] = True, True, True
    expected = [[1.0, 0.5, 0.5], [0, 0, 0]]
    np.testing.assert_allclose(objectness(jnp.asarray(proposals), top=3), expected)
    assert np.all(objectness(jnp.zeros((2, 3, 3))) == 0)


@pytest.mark.parametrize("p,o,expected", [(0.6, 0.5, 0.6), (0.6, 1.0, 0.9), (0.8, 1.0, 1.0),
                                          (0.6, 0.0, 0.3)])  # fmt: skip
def test_probability_is_weighted_and_clipped(p, o, expected):
    np.testing.assert_allclose(combine(jnp.float32(p), o), expected, rtol=1e-6)


def test_prediction_takes_an_objectness_map(tiny):
    system, variables = tiny
    batch = clip()
    predict = jax.jit(system.predict)
    _, plain = predict(variables, (), batch)
    _, none = predict(variables, (), {**batch, "objectness": jnp.zeros((1, 2, 64, 64))})
    np.testing.assert_allclose(none, 0.5 * plain, rtol=1e-5)


# ----- training -------------------------------------------------------------------------------


def test_loss_is_the_mean_cross_entropy_at_half_size(tiny):
    system, _ = tiny
    batch = clip(8, 10)
    batch["masks"] = batch["masks"].at[0, 0, :4, :4].set(255)
    batch["flow_valid"] = jnp.array([[True, False]])
    z = np.random.default_rng(1).standard_normal((1, 2, 4, 5, 1))
    loss, _ = system.loss_fn({"logits": jnp.asarray(z)}, batch, step=0)
    labels = np.asarray(batch["masks"])[0, 0, ::2, ::2]
    terms = [
        np.log1p(np.exp(-z[0, 0, y, x, 0] if labels[y, x] else z[0, 0, y, x, 0]))
        for y, x in np.ndindex(4, 5)
        if labels[y, x] != 255
    ]
    assert len(terms) == 16
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


def test_rate_and_decay_fall_together():
    segments = plan(uvos.load_config("mpnet"))
    assert [s.stage.steps for s in segments] == [9 * 3221] * 3
    rates = [(s.config.optim.lr, s.config.optim.weight_decay) for s in segments]
    np.testing.assert_allclose(rates, [(3e-3, 5e-3), (3e-4, 5e-4), (3e-5, 5e-5)])
    assert not any(s.stage.reset_optimizer for s in segments)


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("angle_mode", "polar", r"model\.angle_mode is 'polar'.*acos"),
        ("stage_factors", (), r"model\.stage_factors must hold one positive factor"),
        ("widths", (8, 8), r"model\.widths must hold 6 numbers, got \(8, 8\)"),
    ],
)
def test_wrong_options_are_refused_by_name(field, value, message):
    with pytest.raises(ConfigError, match=message):
        uvos.build("mpnet:tiny", **{field: value})


def test_every_variant_of_the_config_file_builds():
    from uvos_jax.config import list_variants

    for variant in list_variants("mpnet"):
        assert uvos.build(f"mpnet:{variant}").spec.requires == {"flow"}


# ----- ours: residual motion and memory -------------------------------------------------------


@pytest.fixture(scope="module")
def forgetful_and_not():
    systems = []
    for memory in (0.0, 0.5):
        systems.append(
            uvos.build(f"mpnet:tiny,angle_mode=residual,flow_direction=backward,memory={memory}")
        )
    shapes = jax.eval_shape(systems[0].init, jax.random.key(0))
    rng = np.random.default_rng(5)
    variables = jax.tree.map(
        lambda x: jnp.asarray(0.1 + 0.1 * rng.random(x.shape), jnp.float32), shapes
    )
    return systems, variables


def test_memory_adds_the_odds_of_the_frame_before_where_flow_leads(forgetful_and_not):
    systems, _ = forgetful_and_not
    rng = np.random.default_rng(7)
    probs = rng.uniform(0.05, 0.95, (1, 3, 16, 20)).astype(np.float32)
    flow = np.zeros((1, 3, 16, 20, 2), np.float32)
    flow[..., 0] = 2.0  # what is here was two pixels to the right
    state = systems[1].init_state({}, 1, (16, 20))
    _, found = systems[1].remember(state, jnp.asarray(probs), jnp.asarray(flow))
    odds, before = np.log(probs / (1 - probs)), np.zeros((16, 20))
    for t in range(3):
        moved = before[:, np.minimum(np.arange(20) + 2, 19)]
        before = np.clip(odds[0, t] + 0.5 * moved, -6, 6)
        np.testing.assert_allclose(found[0, t], 1 / (1 + np.exp(-before)), atol=1e-5)


def test_windows_and_a_whole_video_remember_alike(forgetful_and_not):
    systems, variables = forgetful_and_not
    video = clip(T=4, seed=3)
    predict = jax.jit(systems[1].predict)
    state = systems[1].init_state(variables, 1, (64, 64))
    _, whole = predict(variables, state, video)
    for start in (0, 2):
        part = {k: v[:, start : start + 2] for k, v in video.items()}
        state, probs = predict(variables, state, part)
        np.testing.assert_allclose(probs, whole[:, start : start + 2], atol=1e-5)
    _, alone = jax.jit(systems[0].predict)(variables, (), video)
    assert np.abs(np.asarray(alone[:, 1:]) - np.asarray(whole[:, 1:])).max() > 1e-3


def test_flow_in_both_directions_averages_the_log_odds(forgetful_and_not):
    systems, variables = forgetful_and_not
    both = uvos.build("mpnet:tiny,angle_mode=residual,flow_direction=both,temperature=2.0")
    back, ahead = clip(seed=1), clip(seed=2)
    joined = {**back, "flow": jnp.concatenate([back["flow"], ahead["flow"]], axis=-1)}
    logits = [systems[0].apply(variables, x, train=False)[0]["logits"] for x in (back, ahead)]
    expected = both.probabilities((logits[0] + logits[1]) / 2, (64, 64))
    _, found = jax.jit(both.predict)(variables, (), joined)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    hot = both.probabilities(logits[0], (64, 64))
    cold = systems[0].probabilities(logits[0] / 2, (64, 64))
    np.testing.assert_allclose(hot, cold, atol=1e-6)


def test_edges_are_left_out_of_some_examples_and_averaged_at_inference():
    system = uvos.build("mpnet:tiny,angle_mode=residual,edges=true,edge_dropout=0.5")
    rng, variables = np.random.default_rng(11), drawn(system, 11)
    batch = clip(T=1, seed=4)
    batch = {k: jnp.repeat(v, 16, axis=0) for k, v in batch.items()}
    pixels = rng.integers(0, 256, batch["frames"].shape)
    batch["frames"] = jnp.asarray(pixels, jnp.uint8)
    field = system._field(batch, train=True, rngs={"dropout": jax.random.key(1)})
    assert field.shape[-1] == 5 + 2
    left_out = np.asarray((field[..., 5:] == 0).all((1, 2, 3, 4)))
    assert 0 < left_out.sum() < 16
    whole = system._field(batch, train=False)
    np.testing.assert_array_equal(field[~left_out], whole[~left_out])

    one = {k: v[:1] for k, v in batch.items()}
    seen = whole[:1]
    logits = [
        system.module.apply(variables, x)["logits"] for x in (seen, seen.at[..., 5:].set(0.0))
    ]
    expected = system.probabilities((logits[0] + logits[1]) / 2, (64, 64))
    _, found = jax.jit(system.predict)(variables, (), one)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ConfigError, match=r"edge_dropout must lie in \[0, 1\), got 1.0"):
        uvos.build("mpnet:tiny,edge_dropout=1.0")


def test_of_two_ways_one_is_seen_with_edges_and_one_without():
    overrides = "angle_mode=residual,edges=true,edge_dropout=0.5,flow_direction=both"
    system = uvos.build(f"mpnet:tiny,{overrides}")
    rng, variables = np.random.default_rng(12), drawn(system, 12)
    back, ahead = clip(T=1, seed=5), clip(T=1, seed=6)
    back["frames"] = jnp.asarray(rng.integers(0, 256, back["frames"].shape), jnp.uint8)
    fields = [system._field({**back, "flow": x["flow"]}, train=False) for x in (back, ahead)]
    fields[1] = fields[1].at[..., 5:].set(0.0)
    logits = [system.module.apply(variables, x)["logits"] for x in fields]
    joined = {**back, "flow": jnp.concatenate([back["flow"], ahead["flow"]], axis=-1)}
    _, found = jax.jit(system.predict)(variables, (), joined)
    expected = system.probabilities((logits[0] + logits[1]) / 2, (64, 64))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_joint_flow_is_seen_at_once_and_trained_in_either_order_of_time():
    overrides = "angle_mode=residual,edges=true,flow_direction=both,joint_flow=true,memory=0.5"
    system = uvos.build(f"mpnet:tiny,{overrides}")
    variables = system.init(jax.random.key(0))
    back, ahead = clip(T=2, seed=5), clip(T=2, seed=6)
    many = jnp.concatenate([back["flow"], ahead["flow"]], axis=-1)
    batch = {**back, "flow": many}
    field = system._field(batch, train=False)
    assert field.shape[-1] == 2 * 5 + 2
    np.testing.assert_array_equal(field[..., :5], system.encode(back["flow"]))
    np.testing.assert_array_equal(field[..., 5:10], system.encode(ahead["flow"]))
    state, probs = jax.jit(system.predict)(variables, jnp.zeros((1, 64, 64, 1)), batch)
    assert probs.shape == (1, 2, 64, 64)
    assert state.shape == (1, 64, 64, 1)

    crowd = jnp.repeat(many, 32, axis=0)
    first, second = system.ways(crowd, jax.random.key(3))
    prev, follow = crowd[..., :2], crowd[..., 2:]
    same = lambda a, b: np.asarray((a == b).all((2, 3, 4)))  # noqa: E731
    swapped, alone = same(first, follow), same(second, -first)
    assert 16 < swapped.sum() < 48
    assert 0 < alone.sum() < 20
    assert (swapped | same(first, prev)).all()
    assert (alone | np.where(swapped, same(second, prev), same(second, follow))).all()
    with pytest.raises(ShapeError, match="joint_flow needs flow to the previous and to the next"):
        system.apply(variables, back, train=False)
    with pytest.raises(ConfigError, match=r"model\.flow_direction is 'backward': set it to 'both'"):
        uvos.build("mpnet:tiny,flow_direction=backward,joint_flow=true")


# ----- ours: evidence of motion ---------------------------------------------------------------


@pytest.fixture(scope="module")
def sceptic():
    overrides = "angle_mode=residual,flow_direction=both,memory=0.5,edges=true,edge_dropout=0.5"
    system = uvos.build(f"mpnet:tiny,{overrides},evidence=true,evidence_dropout=0.5")
    rng, variables = np.random.default_rng(13), drawn(system, 13)
    video = clip(T=4, seed=8)
    video["frames"] = jnp.asarray(rng.integers(0, 256, video["frames"].shape), jnp.uint8)
    video["flow"] = jnp.concatenate([video["flow"], -video["flow"]], axis=-1)
    return system, variables, video


def test_evidence_stands_behind_the_edges_and_the_first_frame_has_none(sceptic):
    system, _, video = sceptic
    field = system._field({**video, "flow": video["flow"][..., :2]}, train=False)
    assert field.shape[-1] == 5 + 2 + 2
    frames = video["frames"]
    expected = motion_evidence(frames[:, 1:], frames[:, :-1], video["flow"][:, 1:, ..., :2])
    np.testing.assert_allclose(field[:, 1:, ..., 7:], expected, atol=1e-5)
    np.testing.assert_array_equal(field[:, 0, ..., 7:], 0.0)


def test_the_frame_before_a_window_is_remembered(sceptic):
    system, variables, video = sceptic
    predict = jax.jit(system.predict)
    state = first = system.init_state(variables, 1, (64, 64))
    _, whole = predict(variables, state, video)
    for start in (0, 2):
        part = {k: v[:, start : start + 2] for k, v in video.items()}
        state, probs = predict(variables, state, part)
        np.testing.assert_allclose(probs, whole[:, start : start + 2], atol=1e-5)
    _, unknown = predict(variables, {**first, "odds": state["odds"]}, part)
    assert np.abs(np.asarray(unknown - probs))[:, 0].max() > 1e-4


def test_both_ways_see_evidence_and_one_of_them_edges(sceptic):
    system, variables, video = sceptic
    fields = []
    for way in (video["flow"][..., :2], video["flow"][..., 2:]):
        field = system._field({**video, "flow": way}, train=False)
        fields.append(field)
    fields[1] = jnp.concatenate(
        [fields[1][..., :5], jnp.zeros_like(fields[0][..., 5:7]), fields[0][..., 7:]], axis=-1
    )
    logits = [system.module.apply(variables, x)["logits"] for x in fields]
    own = system.probabilities((logits[0] + logits[1]) / 2, (64, 64))
    odds = jnp.zeros((1, 64, 64, 1))
    _, expected = system.remember(odds, own, video["flow"][..., :2])
    state = system.init_state(variables, 1, (64, 64))
    _, found = jax.jit(system.predict)(variables, state, video)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_training_leaves_out_evidence_at_times_and_every_first_frame(sceptic):
    system, variables, video = sceptic
    crowd = {k: jnp.repeat(v, 8, axis=0) for k, v in video.items()}
    field = system._field(crowd, train=True, rngs={"dropout": jax.random.key(1)})
    gone = np.asarray((field[:, 1:, ..., 7:] == 0).all((2, 3, 4)))
    assert 4 < gone.sum() < 20
    outputs, _ = system.apply(variables, video, train=True, rngs={"dropout": jax.random.key(1)})
    assert outputs["logits"].shape == (1, 3, 32, 32, 1)
    loss, _ = system.loss_fn(outputs, video, step=0)
    changed = {**video, "masks": video["masks"].at[:, 0].set(1 - video["masks"][:, 0])}
    assert loss == system.loss_fn(outputs, changed, step=0)[0]
    with pytest.raises(DataError, match=r"one frame only: set data\.clip_len to at least 2"):
        system.apply(variables, {k: v[:, :1] for k, v in video.items()}, train=True)


def test_log_odds_without_evidence_are_doubted(sceptic):
    evidence, known = np.float32([-0.2, 0.0, 0.05, 0.1, 0.4, 0.0]), np.float32([1, 1, 1, 1, 1, 0.5])
    system = uvos.build(
        "mpnet:tiny,flow_direction=backward,evidence_full=0.1,evidence_doubt=2.0,memory=0.5"
    )
    seen = jnp.stack([jnp.asarray(evidence), jnp.asarray(known)], axis=-1).reshape(1, 1, 1, 6, 2)
    for odds in (1.5, -1.5):
        probs = jnp.full((1, 1, 1, 6), 1 / (1 + np.exp(-odds)))
        found = np.asarray(system.doubted(probs, seen))[0, 0, 0]
        for p, e, k in zip(found, evidence, known, strict=True):
            share = min(max(e / 0.1, 0), 1)
            doubted = (share * odds if odds > 0 else odds) - 2 * (1 - share)
            np.testing.assert_allclose(np.log(p / (1 - p)), k * doubted + (1 - k) * odds, atol=1e-4)
    # the network's input is the same, and what it says is doubted before it is remembered
    _, _, video = sceptic
    back = {**video, "flow": video["flow"][..., :2]}
    variables, state = drawn(system, 3), system.init_state({}, 1, (64, 64))
    _, found = jax.jit(system.predict)(variables, state, back)
    plain = uvos.build("mpnet:tiny,flow_direction=backward")
    _, own = jax.jit(plain.predict)(variables, (), back)
    frames, flow = video["frames"], back["flow"]
    evidence = motion_evidence(frames[:, 1:], frames[:, :-1], flow[:, 1:])
    own = own.at[:, 1:].set(system.doubted(own[:, 1:], evidence))
    _, expected = system.remember(state["odds"], own, flow)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_any_scene_at_rest_explains_is_doubted_in_part_as_well(sceptic):
    _, _, video = sceptic
    back = {**video, "flow": video["flow"][..., :2]}
    fields = "flow_direction=backward,evidence_full=0.1,evidence_doubt=2.0"
    system = uvos.build(f"mpnet:tiny,{fields},evidence_rigid=0.4")
    once = uvos.build(f"mpnet:tiny,{fields}")
    variables, state = drawn(system, 3), system.init_state({}, 1, (64, 64))
    _, found = jax.jit(system.predict)(variables, state, back)
    _, expected = jax.jit(once.predict)(variables, state, back)
    frames, flow = video["frames"], back["flow"][:, 1:]
    evidence = motion_evidence(frames[:, 1:], frames[:, :-1], flow, flow - rigid_residual(flow))
    twice = once.doubted(expected[:, 1:], evidence, 0.4)
    assert np.abs(twice - expected[:, 1:]).max() > 0.02
    np.testing.assert_allclose(found[:, 1:], twice, atol=1e-4)
    np.testing.assert_allclose(found[:, :1], expected[:, :1], atol=1e-6)


def test_impossible_evidence_is_refused():
    with pytest.raises(ConfigError, match=r"evidence_rigid must lie in \[0, 1\], got 1.5"):
        uvos.build("mpnet:tiny,flow_direction=both,evidence_full=0.1,evidence_rigid=1.5")
    with pytest.raises(ConfigError, match=r"evidence_rigid=0\.5 repeats the doubt of"):
        uvos.build("mpnet:tiny,flow_direction=both,evidence_rigid=0.5")
    for asked in ("evidence=true", "evidence_full=0.1"):
        with pytest.raises(
            ConfigError, match=r"model\.evidence .*compares with the previous frame"
        ):
            uvos.build(f"mpnet:tiny,{asked}")
    with pytest.raises(ConfigError, match=r"evidence_full must lie in \[0, 1\], got 2.0"):
        uvos.build("mpnet:tiny,evidence_full=2.0")
    with pytest.raises(ConfigError, match=r"evidence_dropout must lie in \[0, 1\), got 1.0"):
        uvos.build("mpnet:tiny,evidence_dropout=1.0")


def test_impossible_memories_are_refused():
    with pytest.raises(ConfigError, match="memory follows flow to the previous frame"):
        uvos.build("mpnet:tiny,memory=0.5")
    with pytest.raises(ConfigError, match=r"memory must lie in \[0, 1\), got 1.0"):
        uvos.build("mpnet:tiny,memory=1.0")
    with pytest.raises(ConfigError, match=r"use one of \('forward', 'backward', 'both'\)"):
        uvos.build("mpnet:tiny,flow_direction=sideways")
