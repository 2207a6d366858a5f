"""What scores say: probabilities, and the classes that a picture shows. Arrays are numpy's; torch is not needed."""

from __future__ import annotations

import numpy as np

from torchcaps.forms import ScoreForm


def to_probabilities(scores: np.ndarray, form: ScoreForm) -> np.ndarray:
    """Return scores [n, classes] as probabilities in [0, 1], as `form.to_probability` says: float32 [n, classes]."""
    scores = np.asarray(scores, np.float32)
    match form.to_probability:
        case "softmax":
            raised = np.exp(scores - scores.max(1, keepdims=True))
            return raised / raised.sum(1, keepdims=True)
        case "share":
            return scores / scores.sum(1, keepdims=True).clip(min=1e-7)
        case "sigmoid":
            return np.exp(-np.logaddexp(np.float32(0), -scores))
        case "none":
            return scores.clip(0, 1)


def score_word(form: ScoreForm) -> str:
    """Return what the numbers of `to_probabilities` are called: a probability only where the scores are made to be
    one.
    """
    if form.to_probability != "none" or form.kind == "probability":
        return "probability"
    return "length" if form.kind == "length" else "score"


def show_score(value: float, word: str) -> str:
    """Return a number of `to_probabilities` as people read it: a probability in per cent, what has another
    `score_word` as the number that it is.
    """
    return f"{value:.1%}" if word == "probability" else f"{value:.2f}"


def shown_classes(scores: np.ndarray, form: ScoreForm) -> list[np.ndarray]:
    """Return the classes that each picture shows, by rows of scores [n, classes]: int64, the highest score first.

    As many as `form.shown` says; where that is None, those whose score exceeds `form.threshold`, which may be none.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    if form.shown is not None:
        return list(order[:, : form.shown])
    return [row[scores[n, row] > form.threshold] for n, row in enumerate(order)]
