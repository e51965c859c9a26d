"""The presence of replicas: each one's record, its heartbeats, and the view of them that others keep."""
