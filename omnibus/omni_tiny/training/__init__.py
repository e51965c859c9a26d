"""How omni-tiny's checkpoints are made: `python -m omnibus.omni_tiny.training --out DIR`."""
