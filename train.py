"""Train a mean network, fit its variance, sample and score: ``python train.py model=unet var=sn_dpm``."""

from optcov.cli.main import main

if __name__ == "__main__":
    main("train")
