"""Draw samples from a run, with any sampler and number of steps: ``python sample.py run=outputs/train/...``."""

from optcov.cli.main import main

if __name__ == "__main__":
    main("sample")
