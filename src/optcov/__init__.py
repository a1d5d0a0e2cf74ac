"""optcov: the optimal reverse-process covariance of diffusion models."""

__version__ = "0.1.0"
