"""The training of omni-tiny's checkpoints: `python -m tools.omni_tiny.training --out DIR`."""
