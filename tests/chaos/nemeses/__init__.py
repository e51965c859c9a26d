"""Faults that are done to the system, one function a nemesis; `table` lists them all."""
