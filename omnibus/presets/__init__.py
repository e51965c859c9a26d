"""Python code of the shipped pipelines."""
