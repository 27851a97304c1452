"""Flow providers: one interface, options, refusals; every estimator finds a known motion."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from uvos_jax.convert import flownets as networks
from uvos_jax.data import flow_files
from uvos_jax.errors import CheckpointError, ConfigError, DataError, ShapeError, UnsupportedError
from uvos_jax.flow import PROVIDERS, PrecomputedFlow, make_provider
from uvos_jax.flow.providers import FlowProvider, shrink
from uvos_jax.modules.flownets import FlowNetS, PWCNet


@pytest.fixture(scope="module")
def clip():
    """Three frames of a texture that moves by (2, 1) pixels a frame."""
    noise = np.random.default_rng(0).normal(size=(90, 110, 3))
    image = ndimage.gaussian_filter(noise, (2, 2, 0))
    image = (127 + 50 * image / image.std()).clip(0, 255).astype(np.uint8)
    return np.stack([image[10 - k : 74 - k, 10 - 2 * k : 90 - 2 * k] for k in range(3)])


FAST = ["tvl1:levels=2,warps=2,iterations=8", "tvl1_fast", "lk:levels=2,warps=2"]
OPTIONAL = ["opencv_dis", "opencv_dis:preset=fast", "opencv_farneback", "skimage_tvl1"]


@pytest.mark.parametrize("spec", FAST + OPTIONAL)
def test_every_estimator_finds_a_constant_motion(clip, spec):
    library = {"opencv": "cv2", "skimage": "skimage"}.get(spec.partition("_")[0])
    if library:
        pytest.importorskip(library)
    provider = make_provider(spec)
    flow = provider(clip)
    assert flow.shape == (2, 64, 80, 2)
    assert flow.dtype == np.float32
    inside = flow[:, 12:-12, 12:-12]
    assert np.abs(np.median(inside, (0, 1, 2)) - [2, 1]).max() < 0.15
    np.testing.assert_allclose(provider.between(clip[1:], clip[:-1]).mean((0, 1, 2)), [-2, -1], atol=0.4)  # fmt: skip # noqa: E501
    assert provider.name == spec


def test_a_short_last_batch_changes_nothing(clip):
    one, many = make_provider("lk:levels=2,warps=1"), make_provider("lk:levels=2,warps=1")
    one.batch, many.batch = 1, 4
    np.testing.assert_allclose(one(clip), many(clip), atol=1e-4)


def test_shrinking_averages_whole_cells():
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
    want = x.reshape(2, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(shrink(jnp.asarray(x), (2, 3))[0, ..., 0], want)
    assert shrink(jnp.zeros((1, 5, 7, 3)), (2, 4)).shape == (1, 2, 4, 3)


@pytest.mark.parametrize(
    "spec,message",
    [
        ("tvl2", r"flow provider 'tvl2' is unknown.*did you mean 'tvl1'"),
        ("tvl1:wraps=3", r"no option 'wraps=3': write NAME:option=value with the options scale"),
        ("tvl1:warps=many", r"warps='many' is no int"),
        ("tvl1:scale=2", r"scale must lie in \(0, 1\], got 2\.0"),
        ("tvl1:longest=-1", "longest must be a number of pixels, got -1"),
        ("skimage_tvl1:x=1", "with the options none"),
    ],
)
def test_wrong_specifications_are_explained(spec, message):
    if spec.startswith("skimage"):
        pytest.importorskip("skimage")
    with pytest.raises(ConfigError, match=message):
        make_provider(spec)


@pytest.mark.parametrize("kind", ["lk", "tvl1"])
def test_the_longest_side_sets_the_scale(kind):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 24, 40, 3)).astype(np.uint8)
    options = "levels=1,warps=1"
    half = make_provider(f"{kind}:scale=0.5,{options}")(frames)
    np.testing.assert_array_equal(make_provider(f"{kind}:longest=20,{options}")(frames), half)
    whole = make_provider(f"{kind}:{options}")(frames)
    np.testing.assert_array_equal(make_provider(f"{kind}:longest=40,{options}")(frames), whole)


@pytest.mark.parametrize("spec", ["opencv_dis", "opencv_farneback", "skimage_tvl1"])
def test_a_missing_library_is_named_with_its_installation(monkeypatch, spec):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("cv2", "skimage"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=rf"'{spec}' needs (cv2|skimage), which is not inst"):
        make_provider(spec)


def test_networks_want_weights():
    with pytest.raises(CheckpointError, match="'flownets' needs weights: flownets:FILE"):
        make_provider("flownets")


def test_networks_are_saved_and_used_again(tmp_path, clip):
    arguments = {"widths": (4, 6), "radius": 1, "dense_widths": (4,)}
    image = jnp.zeros((1, 8, 8, 3))
    variables = jax.jit(PWCNet(**arguments).init)(jax.random.key(0), image, image)
    path = tmp_path / "pwc.npz"
    networks.save_network("pwc_lite", arguments, variables, path)
    flow = make_provider(f"pwc_lite:{path}")(clip)
    assert flow.shape == (2, 64, 80, 2)
    with pytest.raises(CheckpointError, match="belong to 'pwc_lite', not to 'flownets'"):
        make_provider(f"flownets:{path}")


def test_official_flownets_load_and_those_of_other_normalisation_are_refused(tmp_path):
    from tests.parity.rule import shapes_of

    shapes = shapes_of(networks.flownets(norm=True), FlowNetS(norm=True), jnp.zeros((1, 64, 64, 6)))
    arrays = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    path = tmp_path / "flownets_bn.npz"
    np.savez_compressed(path, **arrays)
    module, variables = networks.load_network("flownets", path)
    assert module.norm
    assert variables["params"]["conv6_1"]["conv"]["kernel"].shape == (3, 3, 1024, 1024)
    with pytest.raises(CheckpointError, match=r"is no flownetc: .*missing"):
        networks.load_network("flownetc", path)
    np.savez(tmp_path / "flownet2s.npz", **{"predict_flow2.bias": np.zeros(2)})
    with pytest.raises(CheckpointError, match="normalised otherwise"):
        networks.load_network("flownets", tmp_path / "flownet2s.npz")


def test_frames_of_the_wrong_kind_are_refused(clip):
    provider = make_provider("lk:levels=1,warps=1")
    with pytest.raises(ShapeError, match=r"expected frames uint8 \[N,H,W,3\] RGB"):
        provider(clip.astype(np.float32))
    with pytest.raises(DataError, match="at least two frames, got one"):
        provider(clip[:1])


def test_precomputed_flow_belongs_to_named_videos(tmp_path, clip):
    flow_files.write_flo(tmp_path / "cat" / "a.flo", np.ones((4, 5, 2), np.float32))
    provider = make_provider(tmp_path)
    assert isinstance(provider, PrecomputedFlow)
    track = provider.track("cat", ["a", "b"], "forward")
    np.testing.assert_array_equal(track(0), 1)
    assert track(1) is None
    with pytest.raises(DataError, match=r"no optical flow of 'dog'.*tools/compute_flow\.py"):
        provider.track("dog", ["a", "b"], "forward")
    with pytest.raises(DataError, match="frame 'b' of 'cat'"):
        provider.track("cat", ["a", "b", "c"], "forward")(1)
    with pytest.raises(DataError, match="holds forward flow, but backward"):
        provider.track("cat", ["a", "b"], "backward")
    with pytest.raises(UnsupportedError, match="cannot serve frames in memory or a stream"):
        provider(clip)


def test_all_providers_are_described():
    assert all(entry.about for entry in PROVIDERS.values())


@pytest.mark.parametrize("spec", ["tvl1:longest=40,levels=2,warps=1,iterations=4", "twice"])
def test_flow_can_be_had_at_another_size_in_its_pixels(clip, spec):
    class Twice(FlowProvider):
        name = "twice"

        def between(self, first, second):
            return np.full((*first.shape[:3], 2), 2.0, np.float32)

    provider = Twice() if spec == "twice" else make_provider(spec)
    full, small = provider(clip), provider(clip, size=(32, 20))
    assert small.shape == (2, 32, 20, 2)
    # 64x80 to 32x20: half the motion down, a quarter of the motion to the right
    expected = full.mean((1, 2)) * [0.25, 0.5]
    np.testing.assert_allclose(small.mean((1, 2)), expected, rtol=0.02)
