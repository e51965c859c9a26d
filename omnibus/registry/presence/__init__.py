"""Who is there: each replica's record, its heartbeats, and the view of them that others keep."""
