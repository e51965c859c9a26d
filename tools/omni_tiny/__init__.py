"""The making and the grading of omni-tiny: its grammar, its training, and graders of its answers."""
