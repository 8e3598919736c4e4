"""What is fitted to a network: Analytic-DPM's Gamma, and times."""
