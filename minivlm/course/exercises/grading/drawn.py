"""Cases: prompts and tensors that are made of a few numbers, which hypothesis draws and shrinks, or typed by hand."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from pruning.base import LayerView, Tokens, whole_grid

HEADS = 2
WIDTH = 8                              # D, and Hk*Dh
HEAD_WIDTH = 4                         # Dh


def noise(seed):
    """A function that draws normal tensors of a shape, always the same ones for a seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)
    return normal


@dataclass(frozen=True)
class Prompt:
    """A prompt with one or two images in text, and a number of tokens to keep."""

    images: tuple                      # (rows, columns) of each
    before: int                        # tokens of text before the first image; one is between two images
    after: int                         # and after the last
    keep: int
    seed: int
    kind: str = "even"                 # of hidden states and keys: "even" all different; "copies": of three

    @property
    def n(self):
        """Visual tokens."""
        return sum(rows * columns for rows, columns in self.images)

    def visual(self):
        """(n,) rows of the sequence that are visual tokens."""
        rows = []
        start = self.before
        for height, width in self.images:
            rows += range(start, start + height * width)
            start += height * width + 1
        return torch.tensor(rows)

    def length(self):
        """T."""
        return int(self.visual()[-1]) + 1 + self.after

    def tokens(self, layer=2):
        """The Tokens, with drawn states, and views of two layers."""
        normal = noise(self.seed)
        T = self.length()
        grid = torch.cat([whole_grid(rows, columns, tile) for tile, (rows, columns) in enumerate(self.images)])
        before = self.view(normal)
        here = self.view(normal)
        hidden = self.rows(normal, T, WIDTH)
        tokens = Tokens.start(hidden, self.visual(), grid, before, here, layer)
        return replace(tokens, prompt=tokens.without_views())

    def rows(self, normal, T, width):
        """(T, width) all different, or, of copies, near one of three directions."""
        if self.kind == "even":
            return normal(T, width)
        directions = 4 * normal(3, width)
        which = (normal(T) * 10).long() % 3
        return directions[which] + 0.2 * normal(T, width)

    def view(self, normal):
        """A layer's attention, logits, queries and keys."""
        T = self.length()
        query = normal(HEADS, T, HEAD_WIDTH)
        key = normal(1, T, HEAD_WIDTH)
        logits = query @ key.mT / HEAD_WIDTH ** 0.5                                # (H, T, T)
        causal = torch.full((T, T), float("-inf")).triu(1)
        attention = (logits + causal).softmax(dim=-1)
        stream_key = self.rows(normal, T, WIDTH)
        return LayerView.of(attention=attention, logits=logits, query=query, key=key, stream_key=stream_key)

    def __str__(self):
        pictures = " and ".join(f"an image of {rows} x {columns}" for rows, columns in self.images)
        kind = " in three directions" if self.kind == "copies" else ""
        return (f"{pictures} tokens{kind} (rows {rows_in_words(self.visual())} of {self.length()}), "
                f"keep {self.keep}, seed {self.seed}")


def rows_in_words(rows):
    """rows_in_words(tensor([2, 3, 4, 6])) -> "2-4, 6"."""
    words = []
    rows = rows.tolist()
    starts = [row for row in rows if row - 1 not in rows]
    ends = [row for row in rows if row + 1 not in rows]
    for start, end in zip(starts, ends):
        words.append(str(start) if start == end else f"{start}-{end}")
    return ", ".join(words)


SEEDS = st.integers(0, 999)


@st.composite
def prompts(draw, images=2, kinds=("even",), largest=5, share=1.0):
    """Prompts with at most so many images, of up to largest x largest tokens; at most a share of the tokens is kept."""
    side = st.integers(1, largest)
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=images))
    n = sum(rows * columns for rows, columns in sizes)
    return Prompt(
        images=tuple(sizes),
        before=draw(st.integers(0, 3)),
        after=draw(st.integers(1, 3)),
        keep=draw(st.integers(1, max(1, int(share * n)))),
        seed=draw(SEEDS),
        kind=draw(st.sampled_from(kinds)),
    )


def typed(kinds, attention=None, hidden=None, grid=None, layer=2, **views):
    """Tokens of "t"ext and "v"isual rows: typed("tvvt", [.1, .2, .5, .2]), the attention of the last row.

    before, here: {name of LayerView.of: matrix}. hidden: (T, D); by default each row's is its own index.
    """
    visual = [row for row, kind in enumerate(kinds) if kind == "v"]
    if hidden is None:
        hidden = torch.arange(len(kinds)).float()[:, None]
    if attention is not None:
        views["before"] = dict(views.get("before", {}), attention=torch.tensor(attention))
    made = {side: LayerView.of(**whole(view, len(kinds))) for side, view in views.items()}
    return Tokens.start(hidden, visual, grid, layer=layer, **made)


def whole(view, T):
    """The same with all rows: a single row of attention is the last of T, and the others look at themselves."""
    view = dict(view)
    attention = view.get("attention")
    if attention is not None and attention.ndim == 1:
        rows = torch.eye(T)
        rows[-1] = attention
        view["attention"] = rows
    return view


@dataclass(frozen=True)
class Vectors:
    """So many vectors of some width, drawn with a seed."""

    count: int
    width: int
    seed: int

    def tensor(self):
        """(count, width)"""
        return noise(self.seed)(self.count, self.width)

    def __str__(self):
        return f"{self.count} vectors of width {self.width}, seed {self.seed}"
