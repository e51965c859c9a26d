"""From HTTP bodies to requests, and from results to HTTP bodies. Pure: no clock, no I/O."""
