"""Responses: the log of each, the events and the object that it becomes, and the runner of those in the background."""
