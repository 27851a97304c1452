"""The training engine: sharded steps, stages, logging, checkpoints that survive."""
