"""The HTTP routes, a file an endpoint: the shapes of its bodies in OpenAI's words, how they map to requests, the route."""
