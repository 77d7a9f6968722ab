"""Workflows of ComfyUI that others drew, read as requests of this project."""
