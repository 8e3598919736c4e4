"""Running: one evaluation, the loop, the adaptive driver, CUDA graphs, and what a run reports."""
