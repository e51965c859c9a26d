"""Nodes for ComfyUI that have pictures and speech made by a server: copy this folder to `ComfyUI/custom_nodes/omnibus`."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
