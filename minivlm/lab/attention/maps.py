"""Attention as pictures: maps on the grid of patches, or on a photograph, a panel per layer; bars of kept tokens."""

import torch
from PIL import Image, ImageDraw

from minivlm.lab.draw.draw import heat, heat_scale
from minivlm.lab.draw.sheet import captioned, sheet, words
from minivlm.lab.draw.view import View

PANEL = 120                            # pixels of a side of a map, about
LABEL = 110                            # of the names on the left
IN_ROW = 4                             # photographs
SMALLEST = 1e-30                       # so that attention of 0 divides
BAR = (0, 114, 178)
LEGEND = "a map from 0 (dark) to its largest value (yellow), which is below it in % of the attention row"


def attention_map(row, side):
    """A map of the attention (m,) of side x side patches, row by row from the top left."""
    row = torch.as_tensor(row)
    share = row / row.max().clamp_min(SMALLEST)
    color = heat(share).view(side, side, 3).to(torch.uint8)
    patch = max(1, PANEL // side)
    picture = Image.fromarray(color.numpy())
    return picture.resize((patch * side, patch * side), Image.Resampling.NEAREST)


def row_of_maps(name, maps, side, texts):
    """The name, and a map per layer with a text and its largest value below."""
    panels = [words(name, LABEL)]
    for row, text in zip(maps, texts):
        panel = attention_map(row, side)
        panels.append(captioned(panel, "", f"{text}: {100 * max(row):.2g} %"))
    return panels


def page(result, layers):
    """The sheet of many questions: a row of maps for each family, and for other position ids; bars of kept tokens."""
    texts = [f"layer {l}" for l in layers]
    named = dict(result["maps"])
    for label, maps in result["cases"].items():
        if label != "usual":
            named[f"ids {label}"] = maps
    rows = []
    for name, maps in named.items():
        own = [maps[l] for l in layers]
        rows.append(row_of_maps(name, own, result["side"], texts))
    bars = [words("kept tokens by row of patches", LABEL)]
    for label, kept in result["kept"].items():
        if kept["by_row"]:
            panel = histogram(kept["by_row"])
            bars.append(captioned(panel, label, ""))
    if len(bars) > 1:
        rows.append(bars)
    header = f"Attention of the {result['rows']} over {result['questions']} questions, {result['model']}"
    return sheet(rows, header, legend=LEGEND)


def histogram(shares):
    """A bar per row of patches, from the top; the longest fills the panel."""
    height = max(2, PANEL // len(shares))
    panel = Image.new("RGB", (PANEL, height * len(shares)), (235, 235, 235))
    pen = ImageDraw.Draw(panel)
    for i, share in enumerate(shares):
        top = height * i
        length = round((PANEL - 1) * share / max(shares))
        pen.rectangle((0, top, length, top + height - 2), BAR)
    return panel


def on_picture(picture, box, trace, attention, layers, header):
    """The photograph once per layer, its patches in the colour of the attention (L, n) of all image tokens."""
    view = View(picture, box, trace)
    every = torch.arange(len(view.tokens))
    panels = []
    for l in layers:
        row = attention[l]                                 # (n,)
        peak = row.max()
        share = row / peak.clamp_min(SMALLEST)
        color = heat(share)                                # (n, 3)
        panel = view.tinted(view.photo, every, color)
        text = f"brightest: {float(peak):.1%} of the row; the image gets {float(row.sum()):.0%}"
        panels.append(captioned(panel, f"layer {l}", text))
    scale = heat_scale(panels[0].width)
    rows = [panels[i:i + IN_ROW] for i in range(0, len(panels), IN_ROW)]
    return sheet([*rows, [scale]], header)
