"""Record what transformers computes with tiny random checkpoints of each family, at least one for each layout on the
hub.

    python tests/record_hf.py [CASE ...] [--out tests/parity]

A case is a checkpoint folder with two more files. expected.json holds the prompts: text, images in the order of their
<image> marks (for a batch, a list of texts and one image a sample), ids before the marks are expanded, greedy ids (at
most n_generated), the smallest lead of a greedy winner and the noise floor (float32 against float64 logits); and one
generation with several end tokens. expected.safetensors holds for prompt N, as pN.name: input_ids, attention_mask,
pixel_values, vision_hidden_0 (after pre_layrnorm), vision_hidden_m2 (the selected layers, CLS still in), projected,
image_features_packed, inputs_embeds, layer_out (L, B, S, D), attentions (L, B, H, S, S), final_hidden (normed), logits,
generated. Rows whose attention_mask is 0 are undefined.

Nothing is downloaded. A rerun on the same versions gives the same ids, and floats up to the noise floor.
"""

import argparse
import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from minivlm.lab.check import hf
import tiny_internvl
import tiny_smolvlm
from tiny_llava import PAD, PIECES, Case, bpe, build, grids, preprocessor, tokenizer_json

SYSTEM = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the human's questions.")
ONE = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
TWO = "USER: <image>\n<image>\nWhich one is brighter, and why? ASSISTANT:"
READ = "USER: <image>\nRead the text on the sign and answer with a single word or phrase. ASSISTANT:"
APART = f"{SYSTEM} USER: Here is <image>\nand here is <image>\nWhich one is brighter? ASSISTANT:"
TURNS = "USER: How many boats are on the lake? ASSISTANT: There are three boats.</s>USER: Why? ASSISTANT:"
NEXT = f"{SYSTEM} USER: <image>\nWhat is shown in this image? ASSISTANT:"
INST, INST_TWO = ("[INST] <image>\nWhat is shown here? [/INST]",
                  "[INST] <image>\n<image>\nWhich one is brighter? [/INST]")
LAND, PORT, WIDE = "land_500x333.png", "port_333x500.png", "wide_2000x100.png"
GRAY, TINY, SQUARE, TALL = "gray_250x170.png", "tiny_7x5.png", "square_48x48.png", "tall_40x900.png"
STEPS = 20                             # greedy ids, where no end token comes first

CASES = {
    "llava15_mha": Case(
        "hf5-saved",
        seed=3,
        prompts=[(ONE, [LAND]), (APART, [PORT, TINY]), (TWO, [GRAY, LAND]), (TURNS, []), ([ONE, READ], [WIDE, GRAY])],
        text=dict(num_hidden_layers=3),
        vision=dict(num_hidden_layers=4),
    ),
    "llava15_gqa_bf16": Case(
        "hf5-saved",
        [(ONE, [PORT]), (READ, [WIDE])],
        dtype=torch.bfloat16,
        text=dict(num_key_value_heads=2, attention_bias=True),
        vision=dict(image_size=56, patch_size=14, hidden_size=24, num_attention_heads=3),
    ),
    "llava15_hub": Case(
        "hub",
        seed=2,
        prompts=[(ONE, [LAND]), (APART, [TINY, WIDE])],
        dtype=torch.float16,
        text=dict(model_type="mistral", num_key_value_heads=1, rope_theta=1e6, sliding_window=None),
    ),
    "llava15_layers": Case(
        "hf4.52",
        [(ONE, [PORT])],
        text=dict(head_dim=12, num_key_value_heads=2, rope_theta=5e5),
        top=dict(vision_feature_layer=[-3, -1, 1]),
        shards=3,
    ),
    "llava15_full": Case(
        "hf5",
        [(ONE, [GRAY])],
        text=dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True),
        top=dict(vision_feature_select_strategy="full", multimodal_projector_bias=False),
    ),
    "llava_siglip": Case(              # llava-interleave-qwen: a picture is squeezed, and 2 pixels of a side are not read
        "hub",
        [(ONE, [LAND]), (APART, [PORT, TINY]), ([ONE, READ], [WIDE, GRAY])],
        seed=1,
        text=dict(model_type="qwen2", num_key_value_heads=4, tie_word_embeddings=True, rope_theta=1e6),
        vision=dict(model_type="siglip_vision_model", image_size=30, vision_use_head=False),
        top=dict(vision_feature_layer=-1, vision_feature_select_strategy="full"),
    ),
    "onevision": Case(                 # maps of 8 x 12 patches are made smaller, since more than 1.21 * 4 * 16
        "hub",
        [
            (ONE, [TINY]),
            (NEXT, [LAND]),
            *((ONE, [name]) for name in (PORT, GRAY, WIDE, TALL, SQUARE)),
            (TWO, [LAND, TALL]),
            (APART, [PORT, TINY]),
            ([ONE, READ], [WIDE, GRAY]),
        ],
        text=dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6),
        vision=dict(model_type="siglip_vision_model", image_size=30, vision_use_head=False),
        top=dict(architectures=["LlavaOnevisionForConditionalGeneration"], model_type="llava_onevision",
                 image_grid_pinpoints=[[30, 30], *grids(30), [90, 90]], vision_aspect_ratio="anyres_max_4",
                 tie_word_embeddings=False),
        next=True,
    ),
    "vipllava": Case(
        "hub",
        [(ONE, [LAND]), (APART, [PORT, TINY])],
        vision=dict(num_hidden_layers=4),
        top=dict(architectures=["VipLlavaForConditionalGeneration"], model_type="vipllava",
                 vision_feature_layer=[-2, -3, 1], vision_feature_layers=[-2, -3, 1]),     # of 5.24, and before
    ),
    "llava15_rope": Case(
        "hf5",
        [(ONE, [GRAY])],
        text=dict(
            head_dim=16,
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "llava15_linear": Case(
        "hf5", [(ONE, [GRAY])], text=dict(head_dim=16, rope_scaling=dict(rope_type="linear", factor=4.0))
    ),
    "llava15_window": Case(
        "hf5",
        [(ONE, [LAND]), (APART, [PORT, TINY])],
        text=dict(model_type="mistral", num_key_value_heads=2, sliding_window=24),
    ),
    "llava15_original": Case("original", [(ONE, [LAND]), (READ, [PORT])]),
    "next_vicuna": Case(
        "hf5-saved",
        [
            (ONE, [PORT]),
            (NEXT, [LAND]),
            *((ONE, [name]) for name in (TINY, WIDE, TALL, SQUARE)),
            (TWO, [LAND, TALL]),
            (APART, [PORT, TINY]),
            ([ONE, READ], [WIDE, GRAY]),
        ],
        text=dict(num_key_value_heads=2),
        top=dict(image_grid_pinpoints=grids(28)),
        next=True,
    ),
    "next_mistral": Case(
        "hub",
        [(INST, [LAND]), *((INST, [name]) for name in (PORT, TINY, WIDE, TALL, SQUARE)), (INST_TWO, [GRAY, WIDE])],
        dtype=torch.float16,
        shards=2,
        text=dict(model_type="mistral", num_key_value_heads=1, rope_theta=1e6, sliding_window=None),
        top=dict(image_grid_pinpoints=grids(28)),
        next=True,
    ),
    "next_original": Case(
        "original", [(ONE, [LAND]), (ONE, [WIDE]), (ONE, [TINY])], top=dict(image_grid_pinpoints=grids(28)), next=True
    ),
    **tiny_internvl.CASES,
    **tiny_smolvlm.CASES,
}


def record(case, folder, reference, images):
    """expected.json and expected.safetensors for the checkpoint in `folder`, whose form for transformers is
    `reference`."""
    from transformers import AutoModelForImageTextToText
    torch.set_num_threads(1)
    options = dict(dtype=torch.float32, attn_implementation="eager")
    model = AutoModelForImageTextToText.from_pretrained(reference, **options).eval()
    if case.layout in tiny_internvl.LAYOUTS:
        tokenizer, processor = tiny_internvl.tools(case)
    elif case.layout in tiny_smolvlm.LAYOUTS:
        tokenizer, processor = tiny_smolvlm.tools(case)
    else:
        tokenizer, processor = tools(case, model.config)
    only = dict(suppress_tokens=range(PIECES, 512)) if case.layout == "original" else {}   # the rows its file lacks
    prompts, tensors, runs = [], {}, []
    for n, (text, names) in enumerate(case.prompts):
        pictures = [hf.picture(images / name) for name in names]
        together = isinstance(text, str) and model.config.model_type == "llava_onevision"
        pictures = [pictures] if together else pictures
        inputs, sizes = hf.inputs(processor, pictures, lambda text: tokenizer.encode(text).ids) if names else (None, ())
        run = batch(model, tokenizer, text, iter(sizes)) + (inputs,)
        prompt, outputs = measure(model, run, only)
        ids = {} if isinstance(text, list) else dict(ids_unexpanded=tokenizer.encode(hf.marked(text, model.config)).ids)
        prompts.append(dict(text=text, images=names, **ids, **prompt))
        tensors |= {f"p{n}.{name}": value for name, value in trimmed(outputs, n, case).items()}
        runs.append(run)
    several = [2, prompts[0]["generated"][0][6]]
    stopped, _ = hf.greedy(model, *runs[0], STEPS, eos_token_id=several, **only)
    write(folder / "expected.json", dict(case=folder.name, layout=case.layout, prompts=prompts,
                                         eos_list_case=dict(prompt=0, eos_token_id=several, generated=stopped)))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")


def tools(case, config):
    """The tokenizer and image processor that the case is recorded with."""
    from transformers import (LlavaImageProcessorPil, LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil,
                              SiglipImageProcessorPil)
    size = config.vision_config.image_size
    if config.model_type == "llava_onevision":
        processor = LlavaOnevisionImageProcessorPil(**preprocessor(size, config.image_grid_pinpoints, siglip=True))
        return Tokenizer.from_str(json.dumps(tokenizer_json(*bpe()))), processor
    if config.vision_config.model_type == "siglip_vision_model":
        processor = SiglipImageProcessorPil(size=dict(height=size, width=size))
        return Tokenizer.from_str(json.dumps(tokenizer_json(*bpe()))), processor
    own = dict(do_pad=case.layout == "original")
    if case.next:
        own = dict(image_grid_pinpoints=config.image_grid_pinpoints)
    processor = (LlavaNextImageProcessorPil if case.next else LlavaImageProcessorPil)(
        size=dict(shortest_edge=size), crop_size=dict(height=size, width=size), **own)
    return Tokenizer.from_str(json.dumps(tokenizer_json(*bpe()))), processor


def batch(model, tokenizer, text, sizes):
    """ids (B, S) with expanded marks, padded on the left, and their mask."""
    texts = text if isinstance(text, list) else [text]
    rows = [hf.expand(tokenizer.encode(hf.marked(t, model.config)).ids, model.config, sizes) for t in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def measure(model, run, only):
    """What one prompt gives: the numbers for expected.json, and its stages."""
    ids, mask, images = run
    outputs, (generated, lead) = hf.stages(model, *run), hf.greedy(model, *run, STEPS, **only)
    assert min(lead) > 2e-3, f"a greedy winner leads by {min(lead)} only: choose another seed"
    longest = max(map(len, generated))
    outputs["generated"] = torch.tensor([g + [PAD] * (longest - len(g)) for g in generated])
    numbers = dict(generated=generated, n_image_tokens=int((ids == model.config.image_token_id).sum()),
                   seq_len=ids.shape[1], min_top2_margin=min(lead),
                   max_abs_logit=float(outputs["logits"][mask.bool()].abs().max()))
    if mask.all():                                     # in float64 a row with no key to look at is not a number
        double = {name: x.double() if x.is_floating_point() else x for name, x in (images or {}).items()}
        exact = hf.stages(copy.deepcopy(model).double(), ids, mask, double)["logits"]
        numbers["max_abs_diff_fp32_vs_fp64_logits"] = float((outputs["logits"] - exact).abs().max())
    return numbers | dict(n_generated=STEPS), outputs


def trimmed(outputs, n, case):
    """The stages worth their bytes: attentions, and each tile's features, of the first prompt alone; columns that a
    file has."""
    if case.layout == "original":
        outputs["logits"] = outputs["logits"][..., :PIECES]
    large = {"attentions", "logits"} if n and len(outputs["input_ids"]) == 1 else {"attentions"} if n else set()
    large |= {"vision_hidden_0", "vision_hidden_m2", "projected"} if "logits" in large and (case.next or case.layout in tiny_smolvlm.LAYOUTS) else set()
    return {name: value for name, value in outputs.items() if name not in large}


def draw(folder):
    """Pictures of coloured fields, for shapes that no photograph here has."""
    for width, height, name in ((48, 48, SQUARE), (40, 900, TALL)):
        y, x = np.mgrid[:height, :width]
        fields = np.stack([x * 255 // width, (x // 9 + y // 13) * 37 % 256, y * 255 // height], axis=-1)
        Image.fromarray(fields.astype(np.uint8)).save(folder / name)


SIDES = (1, 2, 3, 5, 7, 13, 20, 35, 40, 47, 55, 88, 99, 100, 176, 224, 235, 250, 333, 336, 337, 376, 480, 500, 640,
         671, 672, 673, 799, 899, 900, 987, 1008, 1009, 1024, 1128, 1500, 2000, 3000, 4096, 10000)


def counts():
    """{"sides", "tokens"}: of LLaVA-NeXT's pictures of every height (row) and width of `sides`, the number of visual
    tokens."""
    from transformers import LlavaNextProcessor
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=grids(336))
    counts = [[processor._get_number_of_features(height, width, 336, 336) - 1 for width in SIDES] for height in SIDES]
    return dict(image_grid_pinpoints=grids(336), sides=SIDES, tokens=counts)


def write(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main():
    """Record the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--out", type=Path, default=HERE / "parity")
    parser.add_argument("--images", type=Path, default=HERE / "parity" / "images")
    asked = parser.parse_args()
    if unknown := [name for name in asked.case if name not in CASES]:
        parser.error(f"no case {unknown[0]}: there are {', '.join(CASES)}")
    draw(asked.images)
    if not asked.case:
        (asked.out / "next_counts.json").write_text(json.dumps(counts()) + "\n")
    for name in asked.case or CASES:
        folder = asked.out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as other:
            reference = Path(other) if CASES[name].layout.endswith("original") else folder
            layout = CASES[name].layout
            own = next((tiny for tiny in (tiny_internvl, tiny_smolvlm) if layout in tiny.LAYOUTS), None)
            write_it = own.build if own else build
            write_it(CASES[name], folder, reference)
            record(CASES[name], folder, reference, asked.images)
        print(name, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 1000, "kB")


if __name__ == "__main__":
    main()
