"""Checks of the product on a GPU, in one program: `python -m tools.gpu_check`."""
