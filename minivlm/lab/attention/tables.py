"""The figures of `attention` as text: a row per layer, a row per method, and what other position ids do."""

from minivlm.lab.attention.figures import AFTER, is_late

LEGEND = (
    "index r: correlation of the attention row with the index of the image token, mean over the questions, and its",
    "95 % interval; above 0, late tokens get more. of mean: that of the mean row. image: share of the row that the",
    "image gets. alike: mean correlation between the maps of two families. Then the share of each row of patches, in %",
)
CAUSES = "the cause", "a part of the cause", "not the cause"
READ_BY = {
    "model": "Other position ids of the image, read by the whole model",
    "layer": "Other position ids of the image, read only by the layer whose attention it is",
}


def lines(result):
    """The tables and sentences."""
    heads = numbered_rows(result["side"])
    yield f"layer  index r                  of mean  image  alike   {heads}"
    for layer in result["layers"]:
        usual = layer["correlation"]["usual"]
        alike = "" if layer["alike"] is None else signed(layer["alike"])
        cells = f"{with_interval(usual):23}  {signed(usual['of_mean']):>7}  {layer['share']:5.0%}  {alike:>5}"
        yield f"{layer['layer']:5}  {cells}   {percents(layer['by_row'])}"
    yield ""
    yield from LEGEND
    drawn = result["side"] ** 2
    if drawn != round(result["tokens"]):
        yield f"of {result['tokens']:.0f} image tokens (on average) the {drawn} of the tile that shows all of it count"
    if result["kept"]:
        yield ""
        yield from kept_lines(result, heads)
    yield from position_lines(result)


def prompt_lines(result, layers):
    """The same of one prompt, of these layers."""
    rows = [result["layers"][l] for l in layers]
    heads = numbered_rows(len(rows[0]["by_row"]))
    yield f"layer  index r  image   {heads}"
    for row in rows:
        yield f"{row['layer']:5}  {signed(row['correlation']):>7}  {row['share']:5.0%}   {percents(row['by_row'])}"


def numbered_rows(side):
    """The heads of the columns of `percents`."""
    return " ".join(f"{row:>4}" for row in range(1, side + 1))


def with_interval(correlated):
    """A correlation as text: +.28 (+.21 to +.35)"""
    low, high = correlated["interval"]
    return f"{signed(correlated['value'])} ({signed(low)} to {signed(high)})"


def signed(number):
    """signed(.283) -> "+.28"; what rounds to zero has no sign."""
    text = f"{number:+.2f}".replace("0.", ".", 1)
    return " .00" if text in ("+.00", "-.00") else text


def percents(shares):
    """Shares as columns of percentages."""
    return " ".join(f"{100 * share:4.1f}" for share in shares)


def kept_lines(result, heads):
    """The tokens that each method keeps, by row of patches."""
    title = "kept tokens, % by row"
    width = max(map(len, [title, *result["kept"]]))
    yield f"{title:{width}}  tokens   {heads}"
    for label, kept in result["kept"].items():
        shares = percents(kept["by_row"]) if kept["by_row"] else "none on a patch"
        yield f"{label:{width}}  {kept['tokens']:6.1f}   {shares}"


# --- the causal test --------------------------------------------------------------------------------------------------

def position_lines(result):
    """A table for each reader of other ids, and its sentences; nothing if only the usual ids were read."""
    labels = list(result["layers"][0]["correlation"])
    for reader, title in READ_BY.items():
        own = [label for label in labels if label.endswith(f", {reader}")]
        if not own:
            continue
        names = [label.partition(",")[0] for label in own]
        yield ""
        yield f"{title}: index r (paired difference to the usual ids)"
        yield "layer  usual  " + "".join(f"{name:38}" for name in names).rstrip()
        for layer in result["layers"]:
            correlated = layer["correlation"]
            cells = "".join(f"{position_cell(correlated[label]):38}" for label in own)
            yield f"{layer['layer']:5}  {signed(correlated['usual']['value'])}   {cells}".rstrip()
        yield from sentences(result, reader, own)


def position_cell(correlated):
    """A case as text, with the difference to the usual ids and the verdict: -.12 (-.40, -.47 to -.33) turns over"""
    low, high = correlated["difference_interval"]
    difference = f"{signed(correlated['difference'])}, {signed(low)} to {signed(high)}"
    return f"{signed(correlated['value'])} ({difference}) {correlated['verdict']}"


def sentences(result, reader, labels):
    """What follows for the claim that rotary positions make late tokens win, from the intervals."""
    layers = result["layers"]
    for label in labels:
        lower = []
        higher = []
        for layer in layers:
            low, high = layer["correlation"][label]["difference_interval"]
            if high < 0:
                lower.append(layer)
            if low > 0:
                higher.append(layer)
        yield f"{ids_of(label)}: index r is lower in {of_facts(lower)}, higher in {of_facts(higher)}."
    late = [layer for layer in layers if is_late(layer["correlation"]["usual"])]
    if not late:
        yield "With the usual ids late tokens get more in no layer: there is no bias to explain."
        return
    yield f"With the usual ids late tokens get more in {of_facts(late)}."
    for label in labels:
        outcomes = grouped(late, AFTER, lambda layer: layer["correlation"][label]["verdict"])
        yield f"{ids_of(label)}: this bias {outcomes}."
    if f"reversed, {reader}" in labels:
        parts = grouped(late, CAUSES, lambda layer: cause(layer["correlation"], labels))
        yield f"Rotary positions are {parts}."


def ids_of(label):
    """The ids of a case's label: of "reversed, model" they are "reversed"."""
    ids, _, _ = label.partition(",")
    return ids


def grouped(layers, outcomes, outcome_of):
    """The layers of each outcome as text: turns over in layer 1, stays in layers 2, 3"""
    parts = []
    for outcome in outcomes:
        own = [layer for layer in layers if outcome_of(layer) == outcome]
        if own:
            parts.append(f"{outcome} in {of_facts(own)}")
    return ", ".join(parts)


def cause(correlated, labels):
    """Which of CAUSES rotary positions are, for the late bias of a layer.

    They are the cause if the map turns over with the reversed ids and the bias weakens, or turns over, with all other
    ids that were read. They are not the cause if it does not even weaken with the reversed ids.
    """
    turned, weakened, *_ = AFTER
    whole, part, none = CAUSES
    verdicts = {ids_of(label): correlated[label]["verdict"] for label in labels}
    if verdicts["reversed"] not in (turned, weakened):
        return none
    all_weaken = all(verdict in (turned, weakened) for verdict in verdicts.values())
    if verdicts["reversed"] == turned and all_weaken:
        return whole
    return part


def of_facts(layers):
    """The numbers of the layers whose facts these are, as text."""
    return numbers([layer["layer"] for layer in layers])


def numbers(layers):
    """Numbers of layers as text: layers 1, 2; or: no layer"""
    if not layers:
        return "no layer"
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {', '.join(map(str, layers))}"
