"""What the reference library computed, prompt by prompt: the form that verify reads, and that hf.live gives.

On disk it is expected.json (prompts: text, images, ids, greedy ids) with expected.safetensors beside it (tensors named
pN.stage). tests/record_hf.py writes both and tells every name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pruning.base import UserError

VISION = "pixel_values", "vision_hidden_0", "vision_hidden_m2", "projected", "image_features_packed"       # image after image


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
            texts = prompt["text"] if isinstance(prompt["text"], list) else [prompt["text"]]
            tensors = {name[len(f"p{n}."):]: value for name, value in self.tensors.items() if name.startswith(f"p{n}.")}
            shares = _shares(tensors, prompt) if len(texts) > 1 else {}
            for b, text in enumerate(texts):
                valid, one = tensors["attention_mask"][b].bool(), dict(prompt, text=text, generated=prompt["generated"][b])
                if len(texts) > 1:
                    one["images"] = prompt["images"][b:b + 1]                      # a batch has one image a sample
                own = {name: _own(name, value, b, valid, shares.get(name)) for name, value in tensors.items()}
                yield own | one, f"prompt {n}" + (f", sample {b}" if len(texts) > 1 else "")


def read_expected(path):
    """The Expected in a JSON file and the safetensors file beside it. Raises UserError."""
    try:
        told, tensors = json.loads(Path(path).read_text(encoding="utf-8")), load_file(Path(path).with_suffix(".safetensors"))
        for n, prompt in enumerate(told["prompts"]):
            prompt["text"], prompt["images"], prompt["generated"], tensors[f"p{n}.attention_mask"]         # the least it has
        return Expected(told["prompts"], tensors, told.get("eos_list_case"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or error} is not there: record it, or use --live IMAGE QUESTION") from None
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path} is no recording ({type(error).__name__}: {error}): record it again") from None


def find_picture(name, places):
    """The picture of a recording in the first of the folders that has it. Raises UserError."""
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{name}, a picture of the recording, is not in {' or '.join(map(str, places))}: name its folder")
    return found


def _shares(tensors, prompt):
    """Of a batch with an image a sample, what is laid one after the other: {name: how much of it is each sample's}."""
    if "pixel_values" not in tensors:
        return {}
    pixels, ids = tensors["pixel_values"], tensors["input_ids"]
    tiles = pixels.flatten(2).any(dim=2).sum(dim=1).tolist() if pixels.ndim == 5 else [1] * len(pixels)        # padding is 0
    marks = next(ids == id for id in ids.unique() if (ids == id).sum() == prompt["n_image_tokens"])            # (B, S)
    return dict(zip(VISION, ([1] * len(pixels), tiles, tiles, tiles, marks.sum(dim=1).tolist())))


def _own(name, value, b, valid, shares):
    """One sample's share of a tensor."""
    if name in VISION:
        return value if shares is None else value.split(shares)[b]
    value = value[:, b] if name in ("attentions", "layer_out") else value[b]
    if valid.all() or name in ("generated", "image_sizes"):
        return value
    if name == "attentions":
        return value[:, :, valid][..., valid]                                      # (L, H, T, T)
    return value[:, valid] if name == "layer_out" else value[valid]                # (L, T, D) or (T, ..)
