"""Programs for the developers of Omnibus, which the wheel leaves out: training and grading of omni-tiny, `make demo`."""
