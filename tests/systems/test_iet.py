"""IET: seeds, tracks, labels, the bilateral network and the graph cut against plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

import uvos_jax as uvos
from tests.cli.conftest import uvos_command, write_frames  # noqa: F401
from uvos_jax.convert.variables import save_variables
from uvos_jax.data.flow_files import write_flo
from uvos_jax.errors import ConfigError, ShapeError
from uvos_jax.systems.iet import bilateral, embed, numbers, propagate, propose

RNG = np.random.default_rng


def similarity(a, b):
    return 2 / (1 + np.exp(np.sum((a - b) ** 2)))


# ----- embedding --------------------------------------------------------------------------------


def test_similarity_is_one_for_equal_embeddings_and_symmetric():
    f = jnp.asarray(RNG(0).standard_normal((7, 4)), jnp.float32)
    R = np.exp(embed.log_similarity(embed.squared_distance(f, f)))
    np.testing.assert_allclose(np.diag(R), 1, atol=1e-5)
    np.testing.assert_allclose(R, R.T, atol=1e-6)
    for i in range(7):
        for j in range(7):
            assert abs(R[i, j] - similarity(np.asarray(f[i]), np.asarray(f[j]))) < 1e-5


def test_both_logarithms_are_those_of_the_formula_and_stay_finite():
    d = np.asarray([1e-4, 0.1, 1.0, 7.0, 60.0], np.float64)
    R = 2 / (1 + np.exp(d))
    # near d = 0 the result is a difference of two values of log 2: one rounding of those
    np.testing.assert_allclose(
        embed.log_similarity(jnp.asarray(d)), np.log(R), rtol=1e-5, atol=6e-8
    )
    np.testing.assert_allclose(
        embed.log_dissimilarity(jnp.asarray(d)), np.log(1 - R), rtol=2e-3, atol=1e-6
    )
    for d in (0.0, 1e4):
        assert np.isfinite(embed.log_similarity(jnp.float32(d)))
        assert np.isfinite(jax.grad(embed.log_dissimilarity)(jnp.float32(d)))


def test_embedding_loss_weighs_instances_equally_whatever_their_size():
    # all positions are drawn, so the loss can be written down: two instances, 12 and 4 positions
    ids = np.zeros((4, 4), np.int32)
    ids[0] = 1
    f = RNG(1).standard_normal((4, 4, 3)).astype(np.float32)
    got = embed.embedding_loss(
        jnp.asarray(f), jnp.asarray(ids), jax.random.key(0), points=16, instances=3
    )
    flat, labels = f.reshape(-1, 3).astype(np.float64), ids.reshape(-1)
    size, total, weights = np.bincount(labels), 0.0, 0.0
    for i in range(16):
        for j in range(16):
            R = similarity(flat[i], flat[j])
            w = 1 / size[labels[i]] / size[labels[j]]
            if labels[i] == labels[j]:
                total -= w * np.log(R)
            else:
                total -= w * np.log(1 - R)
            weights += w
    np.testing.assert_allclose(got, total / weights, rtol=1e-4)


def test_void_is_in_neither_loss():
    ids = np.zeros((6, 6), np.int32)
    ids[:3] = 1
    ids[5] = 255
    f = RNG(2).standard_normal((6, 6, 3)).astype(np.float32)
    logits = RNG(3).standard_normal((6, 6, 2)).astype(np.float32)

    def losses(f, logits):
        return (
            embed.embedding_loss(f, jnp.asarray(ids), jax.random.key(0), points=36, instances=3),
            embed.semantic_loss(logits, jnp.asarray(ids)),
        )

    one = losses(jnp.asarray(f), jnp.asarray(logits))
    f[5] += 3
    logits[5] += [2, -1]
    np.testing.assert_allclose(one, losses(jnp.asarray(f), jnp.asarray(logits)), rtol=1e-6)


# ----- seeds ------------------------------------------------------------------------------------


def embedding_map(seed=0, size=(9, 12), E=4):
    return RNG(seed).standard_normal((*size, E)).astype(np.float32)


def test_edges_and_candidates_equal_loops():
    f = embedding_map()
    h, w, _ = f.shape
    edges = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                if 0 <= y + dy < h and 0 <= x + dx < w:
                    edges[y, x] += np.linalg.norm(f[y, x] - f[y + dy, x + dx]) / 4
    got = np.asarray(propose.edge_strength(jnp.asarray(f)))
    np.testing.assert_allclose(got, edges, rtol=1e-5)
    expected = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            window = got[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            expected[y, x] = got[y, x] == window.min()
    np.testing.assert_array_equal(propose.candidates(jnp.asarray(got), 5), expected)


def test_seeds_are_those_of_farthest_point_selection():
    f, objects = embedding_map(1), RNG(4).random((9, 12)).astype(np.float32)
    allowed = RNG(5).random((9, 12)) < 0.4
    chosen, valid = propose.select_seeds(
        jnp.asarray(f), jnp.asarray(objects), jnp.asarray(allowed), 10
    )
    flat, open_ = f.reshape(-1, 4), np.flatnonzero(allowed)
    expected = [open_[np.argmax(objects.reshape(-1)[open_])]]
    while len(expected) < 10:
        distance = [
            -1 if i in expected else min(np.sum((flat[i] - flat[s]) ** 2) for s in expected)
            for i in open_
        ]
        expected.append(open_[int(np.argmax(distance))])
    assert np.asarray(chosen).tolist() == expected
    assert np.all(valid)


def test_fewer_candidates_than_seeds_leave_invalid_ones():
    f = embedding_map(2)
    allowed = np.zeros((9, 12), bool)
    allowed[2, 3] = allowed[7, 7] = True
    chosen, valid = propose.select_seeds(
        jnp.asarray(f), jnp.zeros((9, 12)), jnp.asarray(allowed), 5
    )
    assert np.asarray(valid).tolist() == [True, True, False, False, False]
    assert set(np.asarray(chosen)[:2].tolist()) == {2 * 12 + 3, 7 * 12 + 7}


def frame_seeds(f, objects, flow, count=8, window=3):
    return propose.frame_seeds(
        jnp.asarray(f), jnp.asarray(objects), jnp.asarray(flow), count=count, window=window,
        background_seeds=3,
    )  # fmt: skip


def test_regions_flows_and_motion_of_seeds_equal_loops():
    f = 0.4 * embedding_map(3)
    objects = RNG(6).random((9, 12)).astype(np.float32)
    flow = RNG(7).standard_normal((9, 12, 2)).astype(np.float32)
    seeds = jax.tree.map(np.asarray, frame_seeds(f, objects, flow))
    assert seeds.valid.all()
    for y in range(9):
        for x in range(12):
            distance = np.sum((seeds.position - [y, x]) ** 2, axis=1)
            assert distance[seeds.region[y, x]] == distance.min()
    for s in range(8):
        like = [
            flow[y, x] for y in range(9) for x in range(12)
            if seeds.region[y, x] == s and similarity(f[y, x], seeds.embedding[s]) > 0.5
        ]  # fmt: skip
        np.testing.assert_allclose(seeds.flow[s], np.mean(like, axis=0), atol=1e-5)
    lowest = np.argsort(seeds.objectness)[:3]
    motion = [min(np.sum((v - seeds.flow[b]) ** 2) for b in lowest) for v in seeds.flow]
    np.testing.assert_allclose(seeds.motion, np.asarray(motion) / max(motion), atol=1e-5)


def test_links_are_mutual_near_and_similar():
    f = embedding_map(4)
    objects, flow = np.ones((9, 12), np.float32), np.zeros((9, 12, 2), np.float32)
    seeds = frame_seeds(f, objects, flow)
    S = seeds.valid.shape[0]
    np.testing.assert_array_equal(propose.links(seeds, seeds), np.arange(S))
    order = jnp.asarray(RNG(8).permutation(S))
    shuffled = dataclasses.replace(
        seeds, position=seeds.position[order], embedding=seeds.embedding[order],
        valid=seeds.valid[order],
    )  # fmt: skip
    np.testing.assert_array_equal(propose.links(seeds, shuffled), np.argsort(order))
    far = dataclasses.replace(seeds, position=seeds.position + 100)
    assert np.all(propose.links(seeds, far) == -1)
    other = dataclasses.replace(seeds, embedding=seeds.embedding + 9)
    assert np.all(propose.links(seeds, other) == -1)


# ----- tracks and labels ------------------------------------------------------------------------


def test_scores_of_tracks_equal_walking_along_them():
    T, S = 6, 5
    score = RNG(9).random((T, S)).astype(np.float32)
    link = np.stack([RNG(t).permutation(S) for t in range(T - 1)])
    link[RNG(11).random(link.shape) < 0.3] = -1
    got = propagate.track_scores(jnp.asarray(score), jnp.asarray(link))
    tracks = {}
    for s in range(S):
        tracks[0, s] = [(0, s)]
    for t in range(T - 1):
        for s in range(S):
            tracks.setdefault((t, s), [(t, s)])
            if link[t, s] >= 0:
                tracks[t, s].append((t + 1, link[t, s]))
                tracks[t + 1, link[t, s]] = tracks[t, s]
    for s in range(S):
        tracks.setdefault((T - 1, s), [(T - 1, s)])
    for (t, s), nodes in tracks.items():
        np.testing.assert_allclose(got[t, s], np.mean([score[n] for n in nodes]), rtol=1e-5)


def scene(T=5, size=(24, 32), seed=0):
    """Embeddings of a background and two squares, the first of which moves by itself."""
    rng = RNG(seed)
    h, w = size
    ids = np.zeros((T, h, w), np.int32)
    flow = np.zeros((T, h, w, 2), np.float32)
    for t in range(T):
        ids[t, 4:12, 3 + 2 * t : 11 + 2 * t] = 1
        ids[t, 14:22, 20:28] = 2
        flow[t][ids[t] == 1] = [2, 0]
    embedding = 3.0 * np.eye(4)[ids] + 0.05 * rng.standard_normal((T, h, w, 4))
    objects = np.where(ids > 0, 0.95, 0.02) + 0.01 * rng.random(ids.shape)
    return embedding.astype(np.float32), objects.astype(np.float32), flow, ids


def region_similarity(mask, truth):
    return np.sum(mask & truth) / np.sum(mask | truth)


def test_with_perfect_embeddings_the_moving_object_is_found():
    system = uvos.build("iet:tiny")
    embedding, objects, flow, ids = scene()
    probs = jax.jit(system.label)(jnp.asarray(embedding), jnp.asarray(objects), jnp.asarray(flow))
    assert region_similarity(np.asarray(probs) > 0.5, ids == 1) > 0.9


def test_what_moves_is_found_by_flow_where_the_network_knows_nothing(monkeypatch):
    _, _, flow, ids = scene(size=(48, 64))
    found = {}
    for name, changes in {
        "network": {},
        "motion": {"objects": "motion", "motion_share": 3.0, "embedding_share": 0.5},
    }.items():
        system = uvos.build("iet:tiny", **changes)
        noise = 0.01 * RNG(1).standard_normal((len(ids), 24, 32, 8))
        blind = jnp.asarray(noise, jnp.float32), jnp.full((len(ids), 24, 32), 0.5)
        monkeypatch.setattr(system, "encode", lambda variables, frames, blind=blind: blind)
        chunk = {"frames": jnp.zeros((1, *ids.shape, 3), jnp.uint8), "flow": flow[None]}
        _, probs = jax.jit(lambda chunk: system.predict({}, (), chunk))(chunk)  # noqa: B023
        found[name] = region_similarity(np.asarray(probs[0]) > 0.5, ids == 1)
    assert found["motion"] > 0.6
    assert found["network"] < 0.3


def test_labels_do_not_change_when_all_embeddings_are_shifted():
    system = uvos.build("iet:tiny")
    embedding, objects, flow, _ = scene()
    run = jax.jit(system.label)
    a = run(jnp.asarray(embedding), jnp.asarray(objects), jnp.asarray(flow))
    b = run(jnp.asarray(embedding) + 0.5, jnp.asarray(objects), jnp.asarray(flow))
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_sets_of_the_first_frame_fail_where_online_sets_follow():
    embedding, objects, flow, ids = scene(T=6)
    drift = np.linspace(0, 4, 6)[:, None, None, None] * np.asarray([0, 1, 0, 0])
    embedding = (embedding + drift * (ids == 1)[..., None]).astype(np.float32)
    arrays = [jnp.asarray(x) for x in (embedding, objects, flow)]
    scores = {}
    for online in (True, False):
        probs = jax.jit(uvos.build("iet:tiny", online=online).label)(*arrays)
        scores[online] = region_similarity(np.asarray(probs)[-1] > 0.5, ids[-1] == 1)
    assert scores[True] > 0.9
    assert scores[True] >= scores[False]


# ----- bilateral network ------------------------------------------------------------------------


def test_filters_as_matrices_equal_a_convolution_with_zero_padding():
    kernel = jnp.asarray(RNG(0).standard_normal(5), jnp.float32)
    values = jnp.asarray(RNG(1).standard_normal(9), jnp.float32)
    expected = lax.conv_general_dilated(
        values[None, :, None], kernel[:, None, None], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"), precision="highest",
    )[0, :, 0]  # fmt: skip
    matrix = bilateral.toeplitz(kernel, 9)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(matrix @ values, expected, atol=1e-5)


def test_splatting_counts_every_position_once():
    lattice = (6, 6, 10, 10)
    flow = jnp.asarray(RNG(2).standard_normal((8, 11, 2)), jnp.float32)
    cells = bilateral.lattice_cells(flow, lattice)
    assert int(cells.min()) >= 0
    assert int(cells.max()) < 3600
    assert float(bilateral.splat(cells, jnp.ones((8, 11)), lattice).sum()) == 88


def test_cells_are_nearest_ones_along_every_axis():
    h, w, lattice = 8, 11, (5, 4, 7, 6)
    flow = RNG(3).standard_normal((h, w, 2)).astype(np.float32)
    cells = np.asarray(bilateral.lattice_cells(jnp.asarray(flow), lattice))

    def nearest(value, low, high, count):
        at = (value - low) / (high - low) * (count - 1)
        floor = np.clip(np.floor(at), 0, count - 2)
        return int(floor + (at - floor > 0.5))

    low, high = flow.min((0, 1)), flow.max((0, 1))
    for y in range(h):
        for x in range(w):
            parts = (
                nearest(y, 0, h, 5), nearest(x, 0, w, 4),
                nearest(flow[y, x, 1], low[1], high[1], 7),
                nearest(flow[y, x, 0], low[0], high[0], 6),
            )  # fmt: skip
            assert cells[y, x] == np.ravel_multi_index(parts, lattice)


def toy_graph(seed=0, T=3, S=6):
    """Two clusters with noisy unaries."""
    rng = RNG(seed)
    cluster = np.arange(S) < S // 2
    unary = np.clip(np.where(cluster, 0.75, 0.25) + 0.1 * rng.standard_normal((T, S)), 0.05, 0.95)
    same = (cluster[:, None] == cluster[None]) & ~np.eye(S, dtype=bool)
    within = np.broadcast_to(same, (T, S, S)).astype(np.float32)
    between = np.broadcast_to(same | np.eye(S, dtype=bool), (T - 1, S, S)).astype(np.float32)
    return unary.astype(np.float32), within, between, np.broadcast_to(cluster, (T, S))


def test_both_cuts_find_two_clusters():
    unary, within, between, cluster = toy_graph()
    np.testing.assert_array_equal(propagate.exact_cut(unary, within, between), cluster)
    relaxed = propagate.relaxed_cut(*map(jnp.asarray, (unary, within, between)))
    np.testing.assert_array_equal(relaxed, cluster)


def test_the_exact_cut_has_the_least_energy_of_all_labellings():
    rng = RNG(5)
    T, S = 2, 4
    unary = rng.uniform(0.1, 0.9, (T, S))
    w = rng.random((T, S, S)) * (rng.random((T, S, S)) < 0.6)
    within = np.stack([np.triu(x, 1) + np.triu(x, 1).T for x in w])
    between = rng.random((T - 1, S, S)) * (rng.random((T - 1, S, S)) < 0.5)

    def energy(labels):
        total = -np.sum(np.where(labels, np.log(unary), np.log(1 - unary)))
        for t in range(T):
            total += 0.5 * np.sum(within[t] * (labels[t][:, None] != labels[t][None]))
        return total + np.sum(between[0] * (labels[0][:, None] != labels[1][None]))

    found = energy(propagate.exact_cut(unary, within, between))
    every = [
        energy(np.asarray([code >> k & 1 for k in range(T * S)], bool).reshape(T, S))
        for code in range(2 ** (T * S))
    ]
    assert found <= min(every) + 1e-3


@pytest.mark.parametrize("cut", ["exact", "relaxed"])
def test_the_graph_labels_the_moving_object(cut):
    embedding, objects, flow, ids = scene()
    seeds = jax.vmap(lambda *x: frame_seeds(*x, count=24))(
        *map(jnp.asarray, (embedding, objects, flow))
    )
    background = jnp.asarray(np.where(ids == 1, 0.0, 1.0), jnp.float32)
    probs = jax.jit(lambda e, s, b: propagate.graph_labels(e, s, b, cut=cut))(
        jnp.asarray(embedding), seeds, background
    )
    assert region_similarity(np.asarray(probs) > 0.5, ids == 1) > 0.9


def test_the_bilateral_configuration_trains_its_filters_alone_and_predicts():
    config = uvos.load_config("iet:tiny_bilateral")
    system = uvos.build(config)
    stages = system.stages(config)
    assert [s.name for s in stages] == ["embedding", "bilateral"]
    variables = system.init(jax.random.key(0))
    assert set(variables["params"]["motion_background"]) == {"y", "x", "dx", "dy"}
    rng = RNG(0)
    batch = {
        "frames": jnp.asarray(rng.integers(0, 255, (1, 4, 64, 64, 3)), jnp.uint8),
        "flow": jnp.asarray(rng.standard_normal((1, 4, 64, 64, 2)), jnp.float32),
        "flow_valid": jnp.ones((1, 4), bool), "valid": jnp.ones((1, 4), bool),
        "has_mask": jnp.ones((1, 4), bool),
        "masks": jnp.asarray(rng.integers(0, 2, (1, 4, 64, 64)), jnp.uint8),
    }  # fmt: skip

    @jax.jit
    def gradient(params):
        def loss(params):
            v = {**variables, "params": params}
            outputs, _ = system.apply(v, batch, train=True, phase="bilateral")
            return system.loss_fn(outputs, batch, step=0, phase="bilateral")[0]

        return jax.grad(loss)(params)

    grads = gradient(variables["params"])
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads["backbone"]))
    _, probs = jax.jit(system.predict)(variables, (), batch)
    assert probs.shape == (1, 4, 64, 64)
    assert np.all((probs >= 0) & (probs <= 1))


# ----- numbered objects -------------------------------------------------------------------------


class OracleSystem:
    """Stands for an IET: a frame's red values name the rows of `table`, its embeddings."""

    def __init__(self, table):
        self.table = jnp.asarray(table, jnp.float32)
        embedding = {"embedding": self.table.shape[1]}
        self.config, self.spec = type("C", (), embedding), type("S", (), {"input_size": (24, 32)})

    def encode(self, table, frames):
        return table[frames[..., 0].astype(int)], None


def painted(ids):
    """A frame `[24,32,3]` whose red values are ids."""
    return np.repeat(np.asarray(ids, np.uint8)[..., None], 3, axis=-1)


def test_objects_keep_their_numbers_while_they_move_cross_and_return():
    table = 3.0 * np.eye(5)
    system = OracleSystem(table)
    finder = numbers.EmbeddingNumbers(system, system.table)
    kept = {}
    for t in range(6):
        ids = np.zeros((24, 32), int)
        ids[2:12, 3 + 3 * t : 11 + 3 * t] = 1
        if t not in (2, 3):  # hidden for two frames
            ids[8:20, 20 - 3 * t : 28 - 3 * t] = 2
        if t > 3:
            ids[18:23, 24:31] = 3
        found = finder.step(painted(ids), (ids > 0).astype(np.float32))
        assert found.dtype == np.uint8
        for i in np.unique(ids):
            (number,) = np.unique(found[ids == i])
            assert kept.setdefault(i, number) == number
    assert kept[0] == 0
    assert sorted(kept.values()) == [0, 1, 2, 3]


def test_an_object_whose_embedding_drifts_is_followed():
    start = 3.0 * np.eye(3)
    for t in range(5):
        table = start + t * np.array([[0.0] * 3, [0.5, 0, 0], [0, 0, 0.0]])
        if t == 0:
            system = OracleSystem(table)
            finder = numbers.EmbeddingNumbers(system, None)
        finder._variables = jnp.asarray(table, jnp.float32)
        ids = np.zeros((24, 32), int)
        ids[4:16, 4:16], ids[4:16, 20:30] = 1, 2
        found = finder.step(painted(ids), (ids > 0).astype(np.float32))
        if t == 0:
            first = found
    np.testing.assert_array_equal(found, first)  # 2.0 away from where it began


def test_no_more_than_twenty_objects_are_numbered():
    table = 3.0 * np.eye(30)
    system = OracleSystem(table)
    finder = numbers.EmbeddingNumbers(system, system.table)
    seen = set()
    for t in range(3):
        ids = np.zeros((24, 32), int)
        for k in range(9):
            y, x = 8 * (k // 3), 10 * (k % 3)
            ids[y + 1 : y + 7, x + 1 : x + 9] = 1 + k + 9 * t
        found = finder.step(painted(ids), (ids > 0).astype(np.float32))
        seen |= set(np.unique(found).tolist())
    assert seen == set(range(21))


def test_clusters_need_a_least_size_and_come_largest_first():
    points = np.concatenate([np.zeros((4, 2)), np.full((9, 2), 5.0), np.full((2, 2), -5.0)])
    centres = numbers.clusters(points, alike=0.5, least=3, limit=5)
    np.testing.assert_allclose(centres, [[5, 5], [0, 0]])
    assert len(numbers.clusters(points, alike=0.5, least=1, limit=2)) == 2
    assert numbers.clusters(points[:0], alike=0.5, least=1, limit=2).shape == (0, 2)
    np.testing.assert_allclose(
        numbers.similarity(points[:1], points[12:13] / 5),
        similarity(points[0], points[12] / 5),
        rtol=1e-6,
    )


def test_proposals_decide_where_one_object_ends():
    system = OracleSystem(3.0 * np.eye(3))
    finder = numbers.EmbeddingNumbers(system, system.table)
    ids = np.zeros((24, 32), int)
    ids[2:12, 3:11], ids[2:12, 15:25] = 1, 2
    prob = (ids > 0).astype(np.float32)
    both = finder.step(painted(ids), prob, np.stack([ids == 1, ids == 2]))
    assert {int(n) for n in np.unique(both)} == {0, 1, 2}
    assert not finder.step(painted(ids), prob, np.zeros((0, 24, 32), bool)).any()
    with pytest.raises(ShapeError, match=r"expected proposals \[N,24,32\]"):
        finder.step(painted(ids), prob, np.zeros((1, 5, 5), bool))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The tiny IET, not trained."""
    config = uvos.load_config("iet:tiny")
    path = tmp_path_factory.mktemp("iet") / "tiny.npz"
    save_variables(uvos.build(config).init(jax.random.key(0)), path, config=config)
    return path


def write_flow(folder, count, size):
    """Forward flow files of a video that moves one pixel to the right."""
    folder.mkdir(parents=True)
    for t in range(count):
        write_flo(folder / f"{t:05d}.flo", np.tile(np.float32([1, 0]), (*size, 1)))


@pytest.mark.parametrize("count", [2, 5])
def test_ids_of_instances_are_written_as_palette_pictures(tmp_path, weights, uvos_command, count):  # noqa: F811
    size = (37, 51)
    frames = RNG(0).integers(0, 255, (count, *size, 3)).astype(np.uint8)
    video = write_frames(tmp_path / "walk", frames)
    write_flow(tmp_path / "flow/walk", count, size)
    code, _, err = uvos_command(
        "predict", video, "--system", "iet", "--weights", weights, "--instances",
        "--flow", tmp_path / "flow", "--out", tmp_path / "o", "--threshold", "0.3",
    )  # fmt: skip
    assert code == 0, err
    files = sorted((tmp_path / "o/walk").glob("*.png"))
    assert len(files) == count
    for file in files:
        picture = Image.open(file)
        assert (picture.mode, picture.size) == ("P", size[::-1])
        assert np.asarray(picture).max() <= numbers.MAX_OBJECTS


def test_a_single_frame_is_taken_not_to_move(tmp_path, weights, uvos_command, caplog):  # noqa: F811
    video = write_frames(tmp_path / "walk", np.zeros((1, 37, 51, 3), np.uint8))
    code, _, err = uvos_command("predict", video, "--weights", weights, "--out", tmp_path / "o")
    assert code == 0, err
    assert "taken not to move" in caplog.text
    assert len(list((tmp_path / "o/walk").glob("*.png"))) == 1


# ----- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("labelling", "colour", r"model\.labelling is 'colour': use one of"),
        ("graph_cut", "none", r"model\.graph_cut is 'none'"),
        ("seeds", 3, r"model\.seeds must be at least 6.*got 3"),
        ("seed_window", 4, r"model\.seed_window must be odd, got 4"),
    ],
)
def test_impossible_settings_are_refused(field, value, says):
    with pytest.raises(ConfigError, match=says):
        uvos.build("iet:tiny", **{field: value})
