"""Reading videos and data sets: the data contract, sources, transforms, pipelines."""
