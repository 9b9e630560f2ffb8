"""LLaVA from scratch, with visual token pruning.

    from minivlm import ask, prune, shipped
    from pruning import FastV
    from weights import load

    model = shipped()                                   # or load("llava-hf/llava-1.5-7b-hf"), or load("a/folder")
    image = "minivlm/toy/samples/00003.png"
    answer = ask(model, image, "what shape is the red object ?", FastV(keep=0.1))
    answer.text, answer.kept, answer.places             # the answer; the kept visual tokens; their tile, row, column
    answer.picture()                                    # what was kept, a PIL image
    prune(model, image, "...", FastV(keep=0.1)).trace   # the same without an answer, and what entered each layer

To read the network: attention, llama, clip, llava; then cache, generate, trace. Skip kernels, parts, families and io at
first.
"""

from importlib import import_module

# Imported when they are first used: who imports one file of the network waits for no other.
HOME = {
    "ask": "minivlm.api",
    "prune": "minivlm.api",
    "shipped": "minivlm.api",
    "Answer": "minivlm.api",
    "Pruned": "minivlm.api",
    "Conversation": "minivlm.generate",
    "Sampling": "minivlm.generate",
    "Trace": "minivlm.trace",
    "UserError": "pruning.errors",
}
__all__ = list(HOME)


def __getattr__(name):
    """The public name, from its file."""
    if name not in HOME:
        raise AttributeError(f"module 'minivlm' has no attribute {name!r}: its names are {', '.join(HOME)}")
    return getattr(import_module(HOME[name]), name)


def __dir__():
    """The public names too, for a REPL's completion."""
    return sorted([*globals(), *HOME])
