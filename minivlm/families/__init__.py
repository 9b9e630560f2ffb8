"""Models beside LLaVA-1.5, each a subclass: LLaVA-NeXT (anyres, tiles) and InternVL."""
