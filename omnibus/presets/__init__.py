"""What the shipped pipelines need beside their files."""
