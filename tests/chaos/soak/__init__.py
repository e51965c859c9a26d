"""`make soak`: mixed load and kills for long, and whether anything grows meanwhile."""
