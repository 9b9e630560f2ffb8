"""A method of your own. It begins as a method like ASAP, with a mask and a merge: change `visibility` and `reduce`.

    python run.py check mine.py:Mine               which promises it keeps, what it costs, how well it does
    python run.py compare minivlm/toy/samples/00003.png "what shape is the red object ?" --method asap,mine.py:Mine \
        --keep 0.25 --out mine.png
    python run.py score mine.py:Mine               a row of the leaderboard
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning import Ranked, Reduction
from pruning.fields import Amount, Layer, ToOne, option
from pruning.ranked import cosines


@dataclass(frozen=True)
class Mine(Ranked):
    """Let visual tokens see later ones, rank them, and merge each dropped token into the kept one most like it."""

    # Options: --set visible=0.5, --keep 0.25. Add your own in the same way.
    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(0.25, "share, or number, of visual tokens left")
    visible: ToOne = option(0.5, "how visible later visual tokens are, in (0, 1]")

    # What it promises. `check` tests these; leave out what your method does not promise (pruning/laws.py has them all).
    laws = frozenset({"ordered", "budget", "convex", "disjoint"})

    def mask_at(self, layers):
        """The layers before which `mask` is called: all before the cut."""
        return tuple(range(self.layer))

    def mask(self, tokens):
        """(T, T), added to the attention logits of a layer in place of the causal mask; -inf hides a token."""
        mask = tokens.here.mask().clone()                                          # (T, T)  causal
        image = self.image_of(tokens)                                              # (n,)
        is_later = (image[:, None] == image).triu(1)                               # (n, n)  [i, j]: j after i
        log_visible = self.visibility(tokens).log().to(mask.dtype)                 # (n,)
        visual_pairs = (tokens.visual[:, None], tokens.visual)                     # an (n, n) part of the mask
        mask[visual_pairs] = torch.where(is_later, log_visible, mask[visual_pairs])
        return mask

    def visibility(self, tokens):
        """(n,) in (0, 1]: how visible each visual token is to those before it."""
        return torch.full((tokens.n,), self.visible, device=tokens.visual.device)

    def image_of(self, tokens):
        """(n,) a number for the image of each visual token: of text tokens before it, since text separates images."""
        return torch.searchsorted(tokens.text(), tokens.visual)

    def score(self, tokens):
        """(n,) the attention that each visual token receives from the last prompt token, under the mask."""
        attention = tokens.before.mean_attention("last")                           # (1, T)
        return attention[0, tokens.visual]

    def reduce(self, tokens):
        """Keep the best, and merge each of the others into the kept token that it is most like."""
        best = super().reduce(tokens)
        keep = best.keep                                                           # (k,)
        similarity = cosines(tokens.hidden[tokens.visual])                         # (n, n)
        destination = similarity[:, keep].argmax(dim=1)                            # (n,)  which of the k
        destination[keep] = torch.arange(len(keep), device=keep.device)            # a kept token stays itself
        merge = F.one_hot(destination, len(keep)).T.float()                        # (k, n)
        merge = merge / merge.sum(dim=1, keepdim=True)                             # weighted means: each row sums to 1
        return Reduction(keep, merge, score=best.score)
