"""What the reference library computed, prompt by prompt: the form that verify reads, and that hf.live gives.

On disk it is expected.json (prompts: text, images, ids, greedy ids) with expected.safetensors beside it (tensors named
pN.stage). tests/record_hf.py writes both.
"""

import os
from dataclasses import dataclass
from typing import Annotated, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minivlm.io.data import check_row, read_json
from pruning.base import UserError
from pruning.fields import Count, NotNegative, Range

ID = Annotated[int, Range(0, 2 ** 24)]
PROMPT = dict(
    text=str | tuple[str, ...],
    images=tuple[str, ...],
    generated=tuple[tuple[ID, ...], ...],
    ids_unexpanded=tuple[ID, ...] | None,
    n_image_tokens=Count | None,
    n_generated=Count | None,
    max_abs_logit=NotNegative | None,
    top2_margins=tuple[float, ...] | None,
)
EOS_LIST_CASE = dict(
    prompt=Count,
    eos_token_id=tuple[ID, ...],
    generated=tuple[tuple[ID, ...], ...],
)
DIMENSIONS = dict(
    attention_mask=(2,),
    input_ids=(2,),
    pixel_values=(4, 5),
    vision_hidden_0=(3,),
    vision_hidden_m2=(3,),
    projected=(3,),
    image_features_packed=(2,),
    inputs_embeds=(3,),
    attentions=(5,),
    layer_out=(4,),
    final_hidden=(3,),
    logits=(3,),
)
VISION = ("pixel_values", "vision_hidden_0", "vision_hidden_m2", "projected", "image_features_packed")     # by image
# stages that the model only takes in
NO_ROUNDING = {"input_ids", "attention_mask", "pixel_values", "image_sizes", "batch_num_images"}


@dataclass
class Expected:
    """A recording: `prompts` as in expected.json, and the tensors."""

    prompts: list
    tensors: Mapping[str, Tensor]
    eos_list_case: dict | None = None  # one prompt's generation with several end tokens

    def samples(self):
        """(sample, where) of each prompt, and of each sample of a batch as a prompt of its own, padding taken away.

        A sample is the prompt's fields and its tensors in one dict; `where` names it.
        """
        for n, prompt in enumerate(self.prompts):
            try:
                yield from self._samples(n, prompt)
            except (KeyError, IndexError, RuntimeError) as error:
                raise UserError(f"prompt {n} of the recording has tensors that do not belong together "
                                f"({type(error).__name__}): record it again") from None

    def _samples(self, n, prompt):
        texts = prompt["text"]
        if isinstance(texts, str):
            texts = [texts]
        prefix = f"p{n}."
        tensors = {}
        for name, value in self.tensors.items():
            if name.startswith(prefix):
                tensors[name.removeprefix(prefix)] = value
        shares = {}
        if len(texts) > 1:
            shares = _shares(tensors, prompt)
        for b, text in enumerate(texts):
            valid = tensors["attention_mask"][b].bool()
            if not valid.any():
                raise UserError(f"prompt {n} of the recording has no token in its attention_mask: record it again")
            own = {name: _own(name, value, b, valid, shares.get(name)) for name, value in tensors.items()}
            own.update(prompt, text=text, generated=prompt["generated"][b])
            if len(texts) == 1:
                yield own, f"prompt {n}"
            else:
                own["images"] = prompt["images"][b:b + 1]                      # a batch has one image per sample
                yield own, f"prompt {n}, sample {b}"


def read_expected(path):
    """The Expected in a JSON file and the safetensors file beside it. Raises UserError."""
    _check_there(path)
    try:
        recording = read_json(path, "recording")
        tensors = os.path.splitext(path)[0] + ".safetensors"
        _check_there(tensors)
        return _checked(recording, load_file(tensors))
    except UserError as error:
        raise UserError(f"{path} is no recording ({str(error).removeprefix(f'{path}: ')}): record it again") from None
    except (KeyError, OSError, SafetensorError) as error:
        raise UserError(f"{path} is no recording ({type(error).__name__}: {error}): record it again") from None


def _check_there(path):
    if not os.path.isfile(path):
        raise UserError(f"{path} is not there: record it, or use --live IMAGE QUESTION")


def _checked(recording, tensors):
    """The Expected of what the two files hold, every field of it looked at."""
    check_row(recording, "the file", "recording", prompts=tuple, eos_list_case=dict | None)
    prompts, case = recording["prompts"], recording.get("eos_list_case")
    for n, prompt in enumerate(prompts):
        check_row(prompt, f"prompt {n}", "prompt", **PROMPT)
        if prompt.get("ids_unexpanded") == []:
            raise UserError(f"prompt {n}: it has no ids")
        names = [f"p{n}.attention_mask"] + [name for name in tensors if name.startswith(f"p{n}.")]
        texts = 1 if isinstance(prompt["text"], str) else len(prompt["text"])
        _check_tensors({name: tensors[name] for name in names}, texts, len(prompt["generated"]))
    if case is not None:
        _check_case(case, prompts)
    said = [{name: value for name, value in prompt.items() if value is not None} for prompt in prompts]
    return Expected(said, tensors, case)


def _check_case(case, prompts):
    """UserError unless the generation with several end tokens is one of a single prompt that is there."""
    check_row(case, "eos_list_case", "case", **EOS_LIST_CASE)
    there = case["prompt"] < len(prompts) and isinstance(prompts[case["prompt"]]["text"], str)
    if not there or not any(case["generated"][:1]):
        raise UserError("eos_list_case: it is of a prompt that is not there, or generates nothing")


def _check_tensors(tensors, texts, answers):
    """UserError unless each has the dimensions of its stage, and as many samples as there are texts."""
    for name, tensor in tensors.items():
        stage = name.partition(".")[2]
        if tensor.ndim not in DIMENSIONS.get(stage, (tensor.ndim,)) or not tensor.numel():
            raise UserError(f"{name} has shape {tuple(tensor.shape)}")
        samples = texts
        if tensor.ndim:
            samples = tensor.shape[1 if stage in ("attentions", "layer_out") else 0]
        is_by_image = stage in (*VISION, "image_sizes")
        if answers != texts or (not is_by_image and samples != texts):
            raise UserError(f"{name} has {samples} samples of {texts} texts and {answers} answers")


def scale(recorded):
    """The size of a row's largest value, at least 1: differences are measured in it, since rounding grows with it."""
    return recorded.abs().amax(dim=-1).clamp(min=1)


def distance(value, exact):
    """The largest difference of one stage from `exact`, in the `scale` of its row."""
    return ((value.double() - exact).abs().amax(dim=-1) / scale(exact)).max().item()


def find_picture(name, places):
    """The picture of a recording in the first of the folders that has it. Raises UserError."""
    for place in places:
        if os.path.isfile(place / name):
            return place / name
    folders = " or ".join(map(str, places))
    raise UserError(f"{name}, a picture of the recording, is not in {folders}: name its folder")


def _shares(tensors, prompt):
    """Of a batch with an image a sample, what is laid one after the other: {name: how much of it is each sample's}."""
    if "pixel_values" not in tensors:
        return {}
    pixels = tensors["pixel_values"]
    ids = tensors["input_ids"]
    images = [1] * len(pixels)
    tiles = images
    if pixels.ndim == 5:                                                           # padding is 0
        tiles = pixels.flatten(2).any(dim=2).sum(dim=1).tolist()
    is_mark = next(ids == id for id in ids.unique() if (ids == id).sum() == prompt["n_image_tokens"])      # (B, S)
    return dict(zip(VISION, (images, tiles, tiles, tiles, is_mark.sum(dim=1).tolist())))


def _own(name, value, b, valid, shares):
    """One sample's share of a tensor."""
    if name in VISION:
        return value if shares is None else value.split(shares)[b]
    value = value[:, b] if name in ("attentions", "layer_out") else value[b]
    if valid.all() or name in ("generated", "image_sizes", "batch_num_images"):
        return value
    if name == "attentions":
        return value[:, :, valid][..., valid]                                      # (L, H, T, T)
    return value[:, valid] if name == "layer_out" else value[valid]                # (L, T, D) or (T, ..)
