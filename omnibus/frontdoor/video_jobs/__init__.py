"""Videos as jobs: a record of each, which outlives the process that made it, and the runner that sees a video to its end."""
