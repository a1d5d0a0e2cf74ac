"""Variance strategies, one file each: models of the covariance of x_0 given x_t."""
