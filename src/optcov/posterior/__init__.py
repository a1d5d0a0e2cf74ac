"""Posterior samplers scored against exact posteriors: conditioned covariances, and published rivals.

    from optcov import posterior

    rows = posterior.run(["digits_inpaint"], ["rank_8", "pi_gdm"], budgets=[10, 25])     # a list of dicts
    rows = posterior.run(output="outputs/posterior")                                     # all of them, and files

``python -m optcov.posterior --help`` is the command line.  Tasks are in `optcov.posterior.tasks`, the rivals' formulas
in `optcov.posterior.rivals`, and the scores in `optcov.posterior.scores`.
"""

from optcov.posterior.cells import run
from optcov.posterior.methods import METHODS
from optcov.posterior.tasks import TASKS

__all__ = ["METHODS", "TASKS", "run"]
