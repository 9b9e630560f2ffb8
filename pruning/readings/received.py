"""Without a class token, as in InternVL and SigLIP: the attention received from the patches of the tile, on average."""

from dataclasses import replace


class ByReceived:
    """The attention that a patch receives from the patches of its tile ranks in place of the class token's."""

    preconditions = frozenset()

    def reduce(self, tokens):
        return super().reduce(replace(tokens, before=ReceivedView(tokens.before)))


class ReceivedView:
    """A block of the tower in which what a patch receives stands in for the class token's attention."""

    def __init__(self, view):
        self.view = view

    def __getattr__(self, name):
        return getattr(self.view, name)                    # everything else is the other view's own

    def cls_attention(self):
        return self.view.received()[None]                  # (1, n)  over heads it is the mean already

    def block(self, l):
        return ReceivedView(self.view.block(l))
