"""Is the model the model? Each stage of the pipeline beside what the reference library computed with the same weights.

The stages are run one by one, in the pipeline's order, each on the output of the one before: the first line that fails
names the module to look at. What was recorded in a batch is compared sample by sample.

Two correct programs differ by rounding, and how much is a matter of the weights: channels a thousand times as large
as the others cost three digits. So the tolerance is relative to the stage's own error, the distance of the reference
in its dtype from the reference in float64. A recording does not have it; our own model in float32 and in float64 then
gives the same figure, if the model is small enough to be held twice. Without either, the tolerance is a fixed one.
"""

import copy
from dataclasses import replace
from itertools import zip_longest
from math import inf, isfinite, isnan
from pathlib import Path
from typing import NamedTuple

import torch

from minivlm.families.llava_next_image import Tiles
from minivlm.generate import Conversation
from minivlm.io.image import open_image
from minivlm.io.text.template import Missing
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.check.recorded import NO_ROUNDING, Expected, distance, find_picture, read_expected, scale
from minivlm.parts.views import DecoderView
from pruning.base import UserError

# All of the largest value in a token's row (see `scale`), since rounding grows with it.
FACTOR = 5                             # times the own error: of two correct programs, 1.5 times was seen
LEAST = 2e-6                           # what is allowed at least, where the own error is known
# What is allowed where it is not: some rows of a real decoder reach 20000 (its thirty layers, in float32, were then
# seen 8e-6 apart). Half precision shows gross errors only, known or not.
TOLERANCE = {torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
PIXELS = 1e-5                          # the same arithmetic on the same bytes, in every dtype
SMALL = 2 ** 28                        # bytes: a model is held a second time, in float64, only below this


class Row(NamedTuple):
    """One stage: where it differs most, against the tolerance there."""

    stage: str
    difference: float                  # of ids: how many differ
    tolerance: float
    where: str                         # prompt and sample
    own_error: float | None = None     # what rounding alone does to the stage, if that is known
    scale: float = 1.0                 # of the row: difference, tolerance and own error grow with it

    @property
    def passed(self):
        """False for a difference that is infinite or not a number, too: the tolerance is then none either."""
        return isfinite(self.difference) and self.difference <= self.tolerance


def verify(model, folder, expected=None, images=None):
    """[Row, ...], one a stage in the pipeline's order, each the worst of all prompts.

    expected: an Expected, or the path of an expected.json (default: the folder's) with expected.safetensors beside it;
    images: the folder of its pictures (default: images/ in the checkpoint's folder or beside it). Load the model in
    float32: the outputs were recorded in it, whatever the file's dtype. Raises UserError where a file is missing.
    """
    if not isinstance(expected, Expected):
        expected = read_expected(expected or Path(folder) / "expected.json")
    places = [Path(images)] if images else [Path(folder) / "images", Path(folder).parent / "images", Path()]
    worst = {}
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):     # else a GPU rounds pixels to 10 bits
        for row in _rows(model, _twin(model), expected, places):
            if row.stage not in worst or _ratio(row) > _ratio(worst[row.stage]):
                worst[row.stage] = row
    return list(worst.values())


def lines(rows, whose):
    """The rows as a table. whose: "reference" or "model", the one that was run in float64 as well."""
    return [f"      {'stage':24}  difference   tolerance  {whose}'s own error", *map(_line, rows)]


def _line(row):
    own = "" if row.own_error is None else f"{row.own_error:.1e}"
    verdict = "PASS" if row.passed else "FAIL"
    return f"{verdict}  {row.stage:24}   {row.difference:9.2e}  of {row.tolerance:.0e}  {own:>11}  {row.where}"


def facts(rows):
    """The rows as plain data; a difference that JSON cannot write is None."""
    known = [dict(row._asdict(), passed=row.passed) for row in rows]
    return [{name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
            for row in known]


def _ratio(row):
    """The difference over the tolerance; infinite for one that is not a number, so that no later prompt hides it."""
    ratio = row.difference / row.tolerance if row.tolerance else row.difference
    return inf if isnan(ratio) else ratio


def _twin(model):
    """A small float32 model in float64; None of another."""
    weights = list(model.parameters())
    size = sum(weight.numel() * 8 for weight in weights)
    if size > SMALL or model.lm_head.weight.dtype != torch.float32 or model.device.type == "mps":
        return None
    return copy.deepcopy(model).double()


def _own_error(model, twin, sample, places):
    """{stage: distance of float32 from float64}: the reference's if recorded, else the model's own, else nothing."""
    if "own_error" in sample:
        return sample["own_error"]
    if twin is None:
        return {}
    exact = dict(computed(twin, sample, places))
    values = computed(model, sample, places)
    return {name: distance(value, exact[name]) for name, value in values if name not in NO_ROUNDING}


def _rows(model, twin, expected, places):
    for sample, where in expected.samples():
        yield from _prompt(model, sample, places, where, _own_error(model, twin, sample, places))
    if case := expected.eos_list_case:
        talk = _read(model, expected.prompts[case["prompt"]], places)
        recorded = case["generated"][0]
        eos = case["eos_token_id"]
        steps = len(recorded)
        if recorded[-1] in eos:
            steps += 1                                                     # one more comes, if nothing stops it
        yield _ids("eos_list_case", talk.generate(steps, eos=eos), recorded, f"prompt {case['prompt']}")


def _prompt(model, sample, places, where, own):
    """The rows of one prompt with its recorded stages. own: {stage: its own error}."""
    if "ids_unexpanded" in sample and model.tokenizer is not None:
        yield _ids("ids", model.tokenizer.encode(sample["text"]), sample["ids_unexpanded"], where)
    if "question" in sample and model.tokenizer is not None and not isinstance(model.config.template, Missing):
        text = prompt([(sample["question"], None)], template=model.config.template)
        yield _ids("prompt ids", model.tokenizer.encode(text), sample["ids_unexpanded"], where)
    dtype = model.lm_head.weight.dtype
    for name, value in computed(model, sample, places):
        stage, _, layer = name.partition(" ")
        if stage == "input_ids" and stage in sample:
            yield _ids(stage, value, sample[stage].tolist(), where)
        elif stage in sample:
            recorded = sample[stage]
            if layer:
                recorded = recorded[int(layer):][:1].squeeze(0)            # empty: no such layer
            if stage == "pixel_values" and recorded.ndim == 5:             # (images, most tiles, 3, S, S)
                recorded = recorded[recorded.flatten(2).any(dim=2)]        # missing tiles are 0
            yield _compare(name, value, recorded, dtype, own.get(name), where)
    talk = _read(model, sample, places)
    if "logits" in sample:
        yield _compare("logits after prefill", talk.logits, sample["logits"][-1], dtype, own.get("logits"), where)
    recorded = _sure(sample, relative_tolerance(dtype, own.get("logits")))
    steps = len(recorded)
    if recorded == sample["generated"] and steps < sample.get("n_generated", 0):
        steps += 1                                                         # it ended there
    yield _ids("greedy ids", talk.generate(steps), recorded, where)


def computed(model, sample, places):
    """(name, value) of each stage of one prompt, computed by the model's own modules in turn."""
    ids, images = _inputs(model, sample, places)
    pixels = [image.pixels if isinstance(image, Tiles) else image for image in images]
    if pixels:
        yield "pixel_values", torch.cat(pixels)                                    # (tiles, 3, S, S)
        yield from _vision(model, torch.cat(pixels).to(model.device))
    tokens = model.embed(ids, images)
    yield "input_ids", _expanded(model, ids, map(model.visual_tokens, images))
    if pixels:
        yield "image_features_packed", tokens.hidden[tokens.visual]                # (n, D)
    yield "inputs_embeds", tokens.hidden                                           # (T, D)
    decoder = model.language_model
    hidden = tokens.hidden                                                         # (T, D)
    rope, mask = decoder.shared(tokens)
    for l, layer in enumerate(decoder.layers):
        if "attentions" in sample:
            view = DecoderView(layer, replace(tokens, hidden=hidden), rope, mask)
            yield f"attentions {l}", view.attention()                              # (H, T, T)
        hidden = layer(hidden[None], rope, mask=mask)[0]
        yield f"layer_out {l}", hidden                                             # (T, D)
    hidden = decoder.norm(hidden)
    yield "final_hidden", hidden                                                   # (T, D)
    yield "logits", model.lm_head(hidden)                                          # (T, V)


def _vision(model, pixels):
    layers = model.config.vision_feature_layer
    if not isinstance(layers, list):
        layers = [layers]
    layers = [layer % (model.config.vision.num_hidden_layers + 1) for layer in layers]
    states = model.vision_tower(pixels, max(layers))
    yield "vision_hidden_0", states[0]                                             # (tiles, 1+P, C)
    yield "vision_hidden_m2", torch.cat([states[layer] for layer in layers], dim=-1)
    yield "projected", torch.stack([model.multi_modal_projector(model.features(p[None])[0]) for p in pixels])


def _inputs(model, sample, places):
    """Ids with one mark an image (the recorded ones, so that a wrong tokenizer fails alone) and each image's pixels."""
    pictures = [open_image(find_picture(name, places)) for name in sample["images"]]
    images = model.processor.pixels_of(pictures)
    if "ids_unexpanded" in sample:
        ids = sample["ids_unexpanded"]
    elif model.tokenizer is not None:
        ids = model.tokenizer.encode(sample["text"])
    elif "input_ids" in sample:
        ids = _unexpanded(model, sample["input_ids"].tolist(), map(model.visual_tokens, images))
    else:
        raise UserError(f"{model.folder} has no tokenizer and the recording no ids: "
                        "copy tokenizer.json from the checkpoint")
    if max(ids) >= max(model.config.text.vocab_size, model.config.image_token_index + 1):
        raise UserError(f"the recording is of another model: it has id {max(ids)}, and this vocabulary ends before")
    return ids, images


def _read(model, sample, places):
    """A conversation that has taken in the prompt."""
    talk = Conversation(model)
    talk.read(*_inputs(model, sample, places))
    return talk


def _expanded(model, ids, counts):
    """The ids with each picture's mark repeated for its visual tokens."""
    expanded = []
    for id in ids:
        expanded += [id] * (next(counts) if id == model.config.image_token_index else 1)
    return expanded


def _unexpanded(model, ids, counts):
    """The ids with one mark for each picture's visual tokens."""
    marks = []
    left = 0
    for id in ids:
        if left:
            left -= 1
        else:
            marks.append(id)
            left = next(counts) - 1 if id == model.config.image_token_index else 0
    return marks


def _sure(sample, tolerance):
    """The recorded greedy ids, up to the first step whose winner leads by less than rounding could take away."""
    slack = 2 * tolerance * max(1, sample.get("max_abs_logit", 1))
    close = (t for t, lead in enumerate(sample.get("top2_margins", ())) if lead < slack)
    return sample["generated"][:next(close, None)]


def _ids(stage, generated, recorded, where):
    """How many ids differ; an answer that cannot go on, for NaN, ends there."""
    ids = []
    try:
        for id in generated:
            ids.append(id)
    except UserError as error:
        where += f": {error}"
    different = sum(a != b for a, b in zip_longest(ids, recorded))
    return Row(stage, different, 0, where)


def relative_tolerance(dtype, own_error):
    """The tolerance of a stage in the scale of its row."""
    if own_error is None or not isfinite(own_error):
        return TOLERANCE[dtype]
    return max(FACTOR * own_error, LEAST if dtype == torch.float32 else TOLERANCE[dtype])


def _compare(stage, value, recorded, dtype, own_error, where):
    """The row of the entry that comes closest to its tolerance, or lies furthest beyond it."""
    recorded = recorded.to(value.device).float()
    if value.shape != recorded.shape:
        return Row(stage, float("inf"), 0, f"{where}: shape {tuple(value.shape)}, recorded {tuple(recorded.shape)}")
    gap = (value.float() - recorded).abs().amax(dim=-1)
    size = scale(recorded)
    relative = relative_tolerance(dtype, own_error)
    if stage == "pixel_values":
        size = torch.ones_like(size)
        relative = PIXELS
    worst = (gap / size).argmax()
    difference = gap.flatten()[worst].item()
    unit = size.flatten()[worst].item()
    own_error = None if own_error is None else own_error * unit
    return Row(stage, difference, relative * unit, where, own_error, unit)
