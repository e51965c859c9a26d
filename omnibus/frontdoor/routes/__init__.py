"""The routes: one file an endpoint. A route parses, submits, waits and answers; decisions are in `mapping`."""
