"""Measurements: each module is run as `python -m bench.<name>` and ends with one line of JSON; `bench.all` runs them all."""
