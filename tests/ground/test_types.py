"""The `Variables` pytree."""

import jax
import jax.numpy as jnp
import numpy as np

from uvos_jax.types import Variables


def test_tree_map_keeps_type_and_meta():
    v = Variables({"params": {"w": jnp.ones(3)}}, meta={"system": "cosnet"})
    doubled = jax.tree.map(lambda x: 2 * x, v)
    assert isinstance(doubled, Variables)
    assert doubled.meta == {"system": "cosnet"}
    np.testing.assert_array_equal(doubled["params"]["w"], 2 * np.ones(3))


def test_different_meta_does_not_break_tree_operations():
    a = Variables({"params": jnp.ones(2)}, meta={"x": 1})
    b = Variables({"params": jnp.ones(2)}, meta={"x": 2})
    total = jax.tree.map(jnp.add, a, b)
    assert float(total["params"].sum()) == 4.0


def test_passes_through_jit_without_recompiling_for_other_meta():
    traces = []

    @jax.jit
    def f(v):
        traces.append(1)
        return v["params"] + 1

    f(Variables({"params": jnp.ones(2)}, meta={"x": 1}))
    f(Variables({"params": jnp.ones(2)}, meta={"x": 2}))
    assert len(traces) == 1


def test_paths_use_dictionary_keys():
    v = Variables({"params": {"w": jnp.ones(1)}})
    paths = [jax.tree_util.keystr(p, simple=True, separator="/")
             for p, _ in jax.tree_util.tree_leaves_with_path(v)]  # fmt: skip
    assert paths == ["params/w"]
