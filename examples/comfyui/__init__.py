"""Nodes for ComfyUI: copy this folder to ComfyUI/custom_nodes/fastdiff, with fastdiff installed beside ComfyUI."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
