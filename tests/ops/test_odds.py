"""Log-odds: the inverse of the sigmoid, finite at the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvos_jax.ops.odds import EDGE, log_odds


@pytest.mark.parametrize("edge", [EDGE, 1e-6])
def test_the_sigmoid_undoes_log_odds_between_the_edges(edge):
    probs = jnp.asarray([edge, 0.01, 0.3, 0.5, 0.9, 1 - edge])
    np.testing.assert_allclose(jax.nn.sigmoid(log_odds(probs, edge)), probs, rtol=2e-5)
    ends = log_odds(jnp.asarray([0.0, 1.0]), edge)
    np.testing.assert_allclose(ends, np.log((1 - edge) / edge) * np.array([-1, 1]), rtol=1e-2)
