"""Models other than LLaVA-1.5, each a subclass: LLaVA-NeXT and InternVL; registry.py chooses among them."""
