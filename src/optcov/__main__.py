"""``python -m optcov train|evaluate|sample|report|prepare KEY=VALUE ...``."""

from optcov.cli.main import command

if __name__ == "__main__":
    command()
