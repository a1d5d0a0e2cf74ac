"""Benchmarks that compare the speed of this project with its peers: ``python -m benchmarks --help``."""
