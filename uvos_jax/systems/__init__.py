"""The eighteen systems: one file or small folder per paper, loaded through `uvos_jax.registry`."""
