"""The death of a replica: it is detected once, its tasks go back to the queue, and its attempts are noted."""
