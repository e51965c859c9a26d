"""A simulation of many replicas on measured costs: `python -m bench.scale`."""
