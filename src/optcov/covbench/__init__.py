"""covbench: estimators of ``C = Cov[x_0|x_t]`` scored against the exact one.

    from optcov import covbench

    rows = covbench.run(["digits_mixture/v1"], {"mine": my_estimator})     # tidy rows: a list of dicts
    rows = covbench.run(output="outputs/covbench")                         # all tasks and estimators, and files

An estimator is a function ``(denoiser, images) -> strategy``, such as those in `ESTIMATORS`; `fitted` makes one of an
option of ``var``.  ``python -m optcov.covbench --help`` is the command line.

Tasks are versioned, of 8x8 grey pixels, on the linear schedule, and have exact posteriors (`optcov.covbench.truths`).
Each is there again with a planted error of the mean, ``.../planted``.  The scores are in `optcov.covbench.scores`.
"""

from optcov.covbench.cells import run
from optcov.covbench.estimators import ESTIMATORS, Estimator, fitted
from optcov.covbench.tasks import TASKS, Task

__all__ = ["ESTIMATORS", "TASKS", "Estimator", "Task", "fitted", "run"]
