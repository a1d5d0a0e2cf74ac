"""The task ``prepare``: decodes the data into the cache before any run needs them."""

from __future__ import annotations

import logging

from hydra.utils import instantiate

from optcov.cli.errors import config_errors
from optcov.data.prepare import prepare as prepare_data
from optcov.keys import Config


def prepare(config: Config) -> None:
    """Fill the cache for every split of the data, and print a line for each.

    Raises:
        ConfigError: if the training split is not available, or a cache does not match its checksum.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with config_errors("data"):
        for line in prepare_data(instantiate(config.data)):
            print(line)
