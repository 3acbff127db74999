"""Which labels are suspicious, given what a model that did not learn from them finds probable: confident learning.

Being wrong is not enough, because models are wrong about hard clips too. A label is suspicious if the model finds
another class so probable as it finds that class, on average, for clips that carry its label. So a class of which the
model is never sure raises no alarm, and neither does one that it always leans to.

Source: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels": the confident
joint, and the normalised margin as the order of suspicion.
"""

import numpy as np
from numpy.typing import NDArray


def suspected_classes(probabilities_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns, for each clip, the class that it seems to be instead of its label; -1: nothing speaks against the label.

    With labels (0, 0, 1, 1) and probabilities of class 1 of (0.1, 0.9, 0.8, 0.6), a clip counts as class 1 from 0.7
    on, and as class 0 from 0.5 on: clip 1 seems to be of class 1, the others are not suspicious.

    Args:
        probabilities_NK: By a model that did not learn from the clip; each row sums to 1.
        labels_N: Class indices.
    """
    num_classes = probabilities_NK.shape[1]
    thresholds_K = np.full(num_classes, np.inf)  # a class that no label names here cannot be told
    for label in np.unique(labels_N):
        thresholds_K[label] = probabilities_NK[labels_N == label, label].mean()
    confident_NK = np.where(probabilities_NK >= thresholds_K, probabilities_NK, -1.0)
    best_N = confident_NK.argmax(axis=1)
    is_suspected = (confident_NK.max(axis=1) > 0) & (best_N != labels_N)
    suspected: NDArray[np.int64] = np.where(is_suspected, best_N, -1)
    return suspected


def suspicion(probabilities_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns how far each clip's label is from what the model finds probable, `(N,)` in 0..1.

    0: the model is sure of the label; 0.5: it finds another class as probable; 1: it is sure of another class.
    """
    rows = np.arange(len(labels_N))
    of_label_N = probabilities_NK[rows, labels_N]
    others_NK = probabilities_NK.copy()
    others_NK[rows, labels_N] = 0.0
    margins: NDArray[np.float64] = (1 + others_NK.max(axis=1) - of_label_N) / 2
    return margins
