"""VisionZip: the paper's text, and a tower without a class token."""

from dataclasses import dataclass

from pruning.fields import option
from pruning.readings.received import ByReceived
from pruning.visionzip import VisionZip


@dataclass(frozen=True)
class VisionZipAverage(VisionZip):
    """The paper's text: a contextual token is the average of the target and its members."""

    laws = VisionZip.laws | {"convex"}

    def weights(self, members, target):
        members = members.scatter(1, target[:, None], 1.0)
        return members / members.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class VisionZipReceived(ByReceived, VisionZip):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""

    cls: bool = option(False, "the class token, if there is one, is a visual token, and the first dominant one")

    @property
    def preconditions(self):
        return frozenset({"cls"} if self.cls else ())
