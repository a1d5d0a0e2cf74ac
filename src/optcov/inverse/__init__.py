"""Inverse problems: linear operators, and what a measurement makes of a mean and its covariance."""

from optcov.inverse.conditioning import ConditionedCovariance, condition, innovation
from optcov.inverse.operator import BlockAverage, Blur, Mask, MatrixOperator, Operator, PairOperator

__all__ = [
    "BlockAverage",
    "Blur",
    "ConditionedCovariance",
    "Mask",
    "MatrixOperator",
    "Operator",
    "PairOperator",
    "condition",
    "innovation",
]
