"""Optical flow: estimators behind one interface, files, and flow of whole videos.

The convention, everywhere in this library: flow is float32 `[...,H,W,2]`, channel 0 is u (to the
right), channel 1 is v (down), in pixels of the field's own resolution; whoever resizes a field
scales its vectors (`uvos_jax.ops.flow.resize_flow`). `flow[t]` belongs to the pixel grid of frame
t. Forward flow leads to where the pixel is in frame t+1, backward flow to where it was in frame
t-1; `ModelSpec.flow_direction` says which of them a system reads under the batch key `flow`, and
`ModelSpec.flow_at_end` what the frame without such a neighbour gets. Warping frame t+1 by the
forward flow of frame t (`uvos_jax.ops.warp.backward_warp`) gives frame t back.

    provider = make_provider("tvl1")                  # or tvl1_fast, lk, opencv_dis, a folder, ...
    flow = provider(frames)                           # uint8 [N+1,H,W,3] -> float32 [N,H,W,2]
    flow = provider.between(first, second)            # uint8 [N,H,W,3] each

Estimators that need weights are `flownets:FILE`, `flownetc:FILE` and `pwc_lite:FILE`; options
follow a colon, `tvl1:warps=3,iterations=10`. Missing flow is never replaced in silence: a provider
that lacks its library, weights or files says what to do.
"""

from uvos_jax.flow.providers import (
    DEFAULT_PROVIDER,
    PROVIDERS,
    FlowProvider,
    PrecomputedFlow,
    make_provider,
)

__all__ = ["DEFAULT_PROVIDER", "PROVIDERS", "FlowProvider", "PrecomputedFlow", "make_provider"]
