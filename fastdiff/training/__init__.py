"""Training: the forward process, losses, and the variational bound; `fastdiff.losses` is their face."""
