"""Inverse problems: linear operators, and the update of a mean and its covariance by a measurement."""

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
