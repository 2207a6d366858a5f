"""The networks of EncapNet (Li et al. 2018): those of Table 2, the six layers of Table 1, and the feedback unit."""

from torchcaps.models.encapnet import network, six  # noqa: F401 - they register their names
from torchcaps.models.encapnet.feedback import Feedback, WithFeedback
from torchcaps.models.encapnet.staged import StagedModel

__all__ = ["Feedback", "StagedModel", "WithFeedback"]
