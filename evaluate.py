"""Score a run again: ``python evaluate.py run=outputs/train/... num_samples=5000``."""

from optcov.cli.main import main

if __name__ == "__main__":
    main("evaluate")
