"""A compact inference runtime on PyTorch whose every seam is a hook target.

Start at `runtime.entrypoints.engine.Engine`, or on the command line with `python -m runtime generate`.
"""
