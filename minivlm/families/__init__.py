"""Models other than LLaVA-1.5, each a subclass: LLaVA-NeXT, InternVL, SmolVLM; registry.py chooses among them."""
