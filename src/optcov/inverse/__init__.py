"""Inverse problems: linear operators, and the update of a mean and its covariance by a measurement."""

from optcov.inverse.base import ForwardModel, Operator
from optcov.inverse.blur import Blur, ReflectedBlur
from optcov.inverse.conditioning import Conditioned, ConditionedCovariance, condition, innovation
from optcov.inverse.linearized import LinearizedOperator
from optcov.inverse.operator import BlockAverage, Mask, MatrixOperator, PairOperator
from optcov.inverse.strips import Strips

__all__ = [
    "BlockAverage",
    "Blur",
    "Conditioned",
    "ConditionedCovariance",
    "ForwardModel",
    "LinearizedOperator",
    "Mask",
    "MatrixOperator",
    "Operator",
    "PairOperator",
    "ReflectedBlur",
    "Strips",
    "condition",
    "innovation",
]
