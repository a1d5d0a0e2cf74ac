"""Inverse problems: linear operators, and the update of a mean and its covariance by a measurement."""

from optcov.inverse.base import Operator
from optcov.inverse.blur import Blur, ReflectedBlur
from optcov.inverse.conditioning import Conditioned, ConditionedCovariance, condition, innovation
from optcov.inverse.operator import BlockAverage, Mask, MatrixOperator, PairOperator

__all__ = [
    "BlockAverage",
    "Blur",
    "Conditioned",
    "ConditionedCovariance",
    "Mask",
    "MatrixOperator",
    "Operator",
    "PairOperator",
    "ReflectedBlur",
    "condition",
    "innovation",
]
