"""A deterministic simulation: the real product on a modelled broker, in virtual time, one seed an interleaving.

`python -m tests.simulation --seed N` replays one with its schedule; `--seeds A..B` runs many.
"""
