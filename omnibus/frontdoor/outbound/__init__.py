"""Connections that the front door opens because somebody outside named an address: files of requests, and webhooks."""
