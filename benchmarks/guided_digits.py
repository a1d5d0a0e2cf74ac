"""Measures how often generated digits show the requested digit, according to a classifier of real digits.

    python sample.py run=RUN guidance=classifier_free guidance.weight=3 num_samples=1000 hydra.run.dir=w3
    python benchmarks/guided_digits.py w3/samples.npz ...

The classifier is scikit-learn's SVC, fitted to the 1500 training digits; its accuracy on the 297 test digits is printed
first.
"""

import sys

import numpy as np
from sklearn.svm import SVC  # type: ignore[import-untyped]

from optcov.data import DigitsData


def main(paths: list[str]) -> None:
    data = DigitsData()
    classifier = SVC(gamma="scale").fit(data.load("train").flatten(1).numpy(), data.labels("train").numpy())
    real = classifier.score(data.load("test").flatten(1).numpy(), data.labels("test").numpy())
    print(f"{'real test digits':40} {real:.1%}")
    for path in paths:
        saved = np.load(path)
        images, labels = saved["arr_0"], saved["arr_1"]
        share = classifier.score(images.reshape(len(images), -1), labels)
        error = (share * (1 - share) / len(labels)) ** 0.5
        spread = np.mean([images[labels == label].std(0).mean() for label in np.unique(labels)])
        print(f"{path:40} {share:.1%} ± {error:.1%}, spread within a class {spread:.1f} of 255 levels")


if __name__ == "__main__":
    main(sys.argv[1:])
