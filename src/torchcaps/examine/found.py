"""What the measures find, as JSON holds it. All shares are in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field

# Names of placebos: couplings that stand in for those of the routing.
ONE, UNIFORM, RANDOM = "one iteration", "uniform", "random"
SAME, OTHER = "of another image, same class", "of another image, other class"


@dataclass(frozen=True)
class Placebo:
    """The network with couplings that its routing did not choose."""

    name: str  #: of the couplings
    accuracy: float
    changed: float  #: share of the images that are predicted otherwise
    images: int  #: that have such couplings


@dataclass(frozen=True)
class CapsuleLayerFacts:
    """Capsules of one layer: those of the lowest children have no routing, and of it nothing."""

    name: str  #: of the stack in the model, and the layer in the stack, or "children"
    routing: str  #: its registered name, or ""
    t_score: tuple[float | None, ...]  #: by iteration: 1 a tree, 0 uniform; None without couplings or with one parent
    image_share: tuple[float | None, ...]  #: by iteration, of the couplings' variance: 0 static; None without couplings
    d_score: tuple[float, ...]  #: by iteration, see `measure_layers`
    activation: float  #: mean over capsules and images
    dead: float  #: share of the capsules
    gradient: float | None  #: mean norm, of the training loss by a capsule; None where the loss has none by them
    starved: float | None  #: share of the capsules; None where no gradient reaches any of them


@dataclass(frozen=True)
class Trees:
    """Parse trees below one class, of the images that are taken for it."""

    shown: str  #: its name
    images: int
    distinct: int
    entropy: float  #: in bits, at most log2(images)


@dataclass(frozen=True)
class Negation:
    """A layer's parents of its children, and of their negatives."""

    name: str
    cosine: float  #: of the two poses, mean: -1 where the layer is odd
    difference: float  #: mean change of an activation or length, over their mean: 0 where it sees no difference


@dataclass(frozen=True)
class Curve:
    """Accuracy on images that are changed, each as far as `values` say."""

    by: str  #: angle or shear in degrees, shift in pixels, scale as a factor
    values: tuple[float, ...]
    accuracy: tuple[float, ...]
    kept: tuple[float | None, ...]  #: share, of the images right unchanged, of those that stay right, or None


@dataclass(frozen=True)
class Equivariance:
    """How well the pose of the class that wins tells by how much an image was changed."""

    by: str
    r2: float | None  #: on images that the linear map was not fitted to; None where there are too few
    images: int  #: that it was taken of; the first examinations counted each of the four changes of one


@dataclass(frozen=True)
class Examination:
    """What routing does in one network, on some images of a split."""

    split: str
    images: int  #: that were looked at
    accuracy: float  #: on them, of the network as it is
    iterations: int | None  #: of its routing; None where it routes nothing
    placebos: tuple[Placebo, ...] = ()
    layers: tuple[CapsuleLayerFacts, ...] = ()
    trees: tuple[Trees, ...] = ()
    negation: tuple[Negation, ...] = ()
    robustness: tuple[Curve, ...] = ()
    equivariance: tuple[Equivariance, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)  #: measures that do not apply to this network, and why
