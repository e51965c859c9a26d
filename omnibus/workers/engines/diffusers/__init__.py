"""diffusers as an engine."""
