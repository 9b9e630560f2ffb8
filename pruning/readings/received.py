"""Importance without a class token."""


class ByReceived:
    """Importance without a class token, as in InternVL and SigLIP: the attention received from the patches of the tile,
    on average. It ranks in place of the class token's attention."""

    preconditions = frozenset()

    def importance(self, view):
        return view.received()
