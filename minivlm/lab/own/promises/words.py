"""A drawn case in words, so that a reader can type it by hand: how many tokens, which are visual, their attention."""

from pruning.base import UserError

SHOWN = 12                             # numbers of a list


def in_words(case, side="before"):
    """A Case: its tokens, its attention in the view `side`, the method's options."""
    parts = [sequence(case), attention(case, side), options(case)]
    return "; ".join(filter(None, parts))


def sequence(case):
    """How many tokens there are, and which are visual."""
    if case.pruner.site in ("image", "vision"):
        tiles, side = case.sizes
        return f"{plural(tiles, 'tile')} of {side} x {side} patches, each after its class token"
    tokens = case.tokens
    T = len(tokens.hidden)
    visual = tokens.visual.tolist()
    where = f"layer {tokens.layer}"
    if case.pruner.site == "embed":
        where = "the decoder"
    which = f"rows {numbers(visual)} are"
    if len(visual) == 1:
        which = f"row {visual[0]} is"
    return f"{T} tokens before {where}, of which {which} visual{of_images(case)}"


def of_images(case):
    """What is unusual about the images; "" for one image on one grid."""
    if case.is_plain:
        return ""
    images = len(case.sizes) // 2
    if images > 1:
        return f" (of {images} images)"
    return " (an image of tiles: the base tile, then a map with a newline after each row)"


def attention(case, side):
    """What the last row, or the class token, gives the visual tokens; "" if nothing has been computed."""
    tokens = case.tokens
    view = getattr(tokens, side)
    at_tower = case.pruner.site in ("image", "vision")
    try:
        if at_tower:
            given = view.cls_attention().mean(dim=0)                               # (n,)
        else:
            given = view.mean_attention("last")[0, tokens.visual]                  # (n,)
    except UserError:
        return f"states drawn at random ({case.noise}, seed {case.seed})"
    shown = decimals(given.tolist())
    if at_tower:
        return f"the class token gives them {shown}"
    layer = tokens.layer
    if side == "before":
        layer -= 1
    return f"the last row gives them {shown} in layer {layer}"


def options(case):
    """The method's keep, and what is unusual about the numbers."""
    words = []
    keep = getattr(case.pruner, "keep", None)
    if keep is not None and case.keep is not None:
        if isinstance(keep, float):
            keep = round(keep, 3)
        words.append(f"keep={keep} of {case.tokens.n}")
    if case.dtype.itemsize < 4:
        kind = str(case.dtype)
        words.append(kind.removeprefix("torch."))
    return ", ".join(words)


def numbers(values):
    """numbers([2, 3, 5]) -> "2, 3, 5"; of more than four that rise one by one "2 to 13"."""
    if not values:
        return "none"
    first = values[0]
    last = first + len(values) - 1
    is_range = values == list(range(first, last + 1))
    if is_range and len(values) > 4:
        return f"{first} to {last}"
    shown = [str(value) for value in values[:SHOWN]]
    more = len(values) - len(shown)
    if more > 0:
        shown.append(f"{more} more")
    return ", ".join(shown)


def decimals(values):
    """decimals([0.125, 1.0]) -> ".12 1.00" """
    shown = []
    for value in values[:SHOWN]:
        text = f"{value:.2f}"
        shown.append(text.removeprefix("0"))
    if len(values) > SHOWN:
        shown.append("..")
    return " ".join(shown)


def kept(r):
    """it keeps 0, 2"""
    verb = "keeps" if r.merge is None else "merges into"
    return f"it {verb} {numbers(r.keep.tolist())}"


def plural(count, noun):
    """plural(2, "tile") -> "2 tiles" """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
