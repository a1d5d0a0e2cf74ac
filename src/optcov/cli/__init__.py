"""Command line: Hydra, the pipeline of a run, and its report."""
