"""Who gets a task: the choice of a replica for stages whose tasks are directed."""
