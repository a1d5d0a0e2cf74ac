"""The command line: configs by Hydra, the pipeline of a run, and its report."""
