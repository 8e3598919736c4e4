"""fastdiff against PyTorch, one operation at a time, and against `torch.compile`: `python -m benchmarks`."""
