"""The choice of a replica for stages whose tasks are directed."""
