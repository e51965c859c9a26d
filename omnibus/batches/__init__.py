"""Batches: files of requests, each of which is answered once, whatever dies meanwhile."""
