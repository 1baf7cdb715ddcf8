"""Run the remaining work of a run as jobs: on Slurm, or on this machine. Start with `plan`."""
