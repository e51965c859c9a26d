"""Clients that know only what a client can know: they ask again under the same key until they receive an end."""
