"""Webhooks: addresses that are called when a job of a tenant has ended, as the Standard Webhooks have it."""
