"""optcov: the optimal reverse-process covariance of diffusion models.

denoiser = optcov.load(network, ...)                        # any callable (x, t) -> prediction
strategy = optcov.fit("sn_dpm", denoiser, images)
samples = optcov.sample(denoiser, strategy, num_steps=10, count=64)
bits = optcov.bits_per_dim(denoiser, strategy, images)
strategy.save_pretrained(folder)                            # and optcov.load_strategy(folder) again
restored = optcov.restore(denoiser, strategy, y, operator)  # given y = A x_0 + noise
unknown = optcov.uncertainty(denoiser, strategy, x_t, t)    # of x_0: mean, standard deviations, main directions
denoiser = optcov.pretrained("cifar10_small")               # a network that comes with the package
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["bits_per_dim", "fit", "load", "load_strategy", "pretrained", "restore", "sample", "uncertainty"]

if TYPE_CHECKING:
    from optcov.reference.pretrained import pretrained
    from optcov.restoring import restore
    from optcov.uncertainties import uncertainty
    from optcov.verbs import bits_per_dim, fit, load, load_strategy, sample


def __getattr__(name: str) -> Any:
    """Import a verb, and PyTorch with it, on first use; the command line checks its arguments without PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = {"pretrained": "reference.pretrained", "restore": "restoring", "uncertainty": "uncertainties"}.get(
        name, "verbs"
    )
    return getattr(import_module(f"optcov.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
