"""All iterations of a packed XnODR layer at once, for inference: see `loop.py`."""
