"""The conversation of a WebSocket of `/v1/realtime`: pure, events of the client in, events of the server and acts out."""
