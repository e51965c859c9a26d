"""What crosses the HTTP edge, as pydantic models in OpenAI's shapes: one file an endpoint."""
