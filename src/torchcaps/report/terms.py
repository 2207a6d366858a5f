"""The words of the field, each in a sentence or two: what pages say at a term's first use, and the site's glossary."""

from __future__ import annotations

TERMS = {
    "activation": "How strongly a capsule says that what it stands for is there, where that is a number beside the "
    "pose and not the pose's length.",
    "agreement": "How well votes for one parent fit each other, or fit the parent: parts of one object predict the "
    "same whole, parts of different objects do not.",
    "backbone": "The network before the capsules, which makes features of the image: a few convolutions, or a known "
    "network such as a ResNet.",
    "budget": "How much of a paper's training is done: full is the paper's schedule, fast at most 30 epochs, short at "
    "most 8, cpu a narrowed network, smoke only a trial.",
    "calibration": "How often what a score says comes true: of a calibrated model nine in ten of the predictions with "
    "a score of 0.9 are right.",
    "capsule": "A group of neurons that together stand for one thing, such as a class or a part of an object: their "
    "values, the pose, say how it looks.",
    "cell": "One number of a table of a paper, with the configuration that fills it, where training does, and what is "
    "published.",
    "child": "A capsule of the lower one of two layers, a part; it votes for the parents.",
    "class capsule": "A capsule of the last layer; there is one for each class.",
    "confusion": "A table of which class was taken for which: rows are what is there, columns what was found.",
    "coupling": "How much of a child's vote goes to a parent: a share, which routing finds anew for each image.",
    "decoder": "A small network that paints the image from the pose of one class capsule; it is taught together with "
    "the capsules.",
    "epoch": "One pass over all training images.",
    "head": "The last part of a network, which makes scores of the features that the backbone gives.",
    "iteration": "One round of routing: couplings are set, and the parents computed with them; the next round starts "
    "from these parents.",
    "kernel": "Of speed: a function compiled for the machine's processor or GPU, which takes a step of routing at once "
    "and writes no votes to memory. Of a convolution: its window of weights.",
    "length": "The Euclidean norm of a pose, squashed to below 1: the longer a class capsule, the surer the network is "
    "that the class is there. Those of an image need not add up to 1.",
    "logit": "A number of any size before it becomes a share or a probability: the larger, the likelier.",
    "loss": "The number that training makes small.",
    "multiply-adds": "Products, each added to a sum: how much there is to compute for one image.",
    "norm": "The Euclidean length of a pose that is not squashed: it says little about whether its class is there.",
    "parent": "A capsule of the higher one of two layers, a whole that parts belong to; of the last layer the parents "
    "are the classes.",
    "part": "What a capsule of a lower layer stands for: a stroke at a place, a wheel.",
    "placebo": "Couplings that a routing did not choose, such as uniform or random ones or another image's: an answer "
    "that does not change with them does not depend on the routing.",
    "plain step": "A step of routing by ordinary operations of PyTorch, without a kernel.",
    "pose": "The numbers of one capsule, which say how its object looks: slant, width, thickness. Which number means "
    "what is not prescribed but learnt.",
    "pose sweep": "One number of a pose is moved while all others stay, and the image is decoded at each position.",
    "primary capsule": "A capsule of the first layer, made from the features of a convolution at one place.",
    "probability": "How likely a class is there, from 0 % to 100 %.",
    "reconstruction": "The image that a decoder paints from the pose of a capsule.",
    "recipe": "A name for a complete configuration: data, model, loss, optimiser, schedule.",
    "revision": "A number that grows when what a configuration computes is changed, so that results of older code are "
    "not taken for those of the new.",
    "routing": "The rule by which a layer decides which parent each child's vote goes to.",
    "score": "The number by which the model ranks the classes of an image; the highest is its answer.",
    "seed": "The number that random choices follow from: the same seed gives the same run.",
    "squash": "The function that keeps a vector's direction and brings its length to below 1.",
    "twin": "A head of ordinary layers with as many parameters as one of capsules: the control for its size.",
    "uniform": "The routing in which every child gives every parent the same share: capsules without agreement, the "
    "control for what a routing adds.",
    "validation split": "Images that are kept out of training, by which the best epoch is chosen.",
    "test split": "Images that neither training nor choice has seen, used once, at the end.",
    "vote": "What a child predicts for the pose of a parent: its own pose times a learnt matrix.",
}


class Explained:
    """Remembers which of `TERMS` a page has explained, so that each is explained once, at its first use."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def first(self, *terms: str) -> list[tuple[str, str]]:
        """Return those of `terms` that were not asked for before, each with its sentences."""
        new = [term for term in dict.fromkeys(terms) if term not in self.said]
        self.said.update(new)
        return [(term, TERMS[term]) for term in new]
