"""What the stage kernels' machine code is predicted to reach: a model, for where no GPU has run them yet."""
