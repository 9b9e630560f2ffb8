"""Tiny random LLaVA and LLaVA-NeXT checkpoints in every layout of the hub: weights, config, tokenizer, image
processor.

The tokenizer is LLaMA's in small: 500 pieces learned on the spot (byte pairs, byte fallback), then <image> and <pad>.
transformers is imported only by what builds a model.
"""

import json
import struct
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

PIECES, IMAGE, PAD, ROWS = 500, 500, 501, 512          # the hub's files too have rows that no token uses
CORPUS = """A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed,
and polite answers to the human's questions. USER: What is shown in this image? ASSISTANT: There are three boats on the
lake, and a sign. USER: Read the text on the sign and answer with a single word or phrase. ASSISTANT: USER: Here is the
first, and here is the second. Which one is brighter, and why? ASSISTANT: How many people are in the photo? What color is
the small square? abcdefghijklmnopqrstuvwxyz"""


@dataclass
class Case:
    """A tiny checkpoint: how it differs from the plain one, in which layout it is stored, what it is asked."""

    layout: str                                        # a key of LAYOUTS
    prompts: list                                      # [(text, [image, ...])]; a batch has lists of texts and images
    text: dict = field(default_factory=dict)
    vision: dict = field(default_factory=dict)
    top: dict = field(default_factory=dict)            # fields beside text_config and vision_config
    dtype: torch.dtype = torch.float32
    shards: int = 1
    seed: int = 0
    next: bool = False                                 # LLaVA-NeXT


# Prefixes of the five layouts, from the module names of transformers 5 ("hf5").
LAYOUTS = {
    "hf5": {},
    "hf5-saved": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.",
                  "model.vision_tower.": "vision_tower.", "model.multi_modal_projector.": "multi_modal_projector.",
                  "model.image_newline": "image_newline"},
    "hf4.52": {"model.vision_tower.": "model.vision_tower.vision_model."},
    "hub": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.",
            "model.vision_tower.": "vision_tower.vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.", "model.image_newline": "image_newline"},
    "original": {"model.language_model.": "model.",
                 "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
                 "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
                 "model.multi_modal_projector.linear_2.": "model.mm_projector.2."},
}


def config(case):
    """The config.json of the case as the hub's files have it: what equals a class default is left out."""
    text = dict(model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                rms_norm_eps=1e-5, max_position_embeddings=4096, vocab_size=ROWS) | case.text
    vision = dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                  num_attention_heads=4, image_size=28, patch_size=7) | case.vision
    name, kind = ("LlavaNext", "llava_next") if case.next else ("Llava", "llava")
    return (
        dict(architectures=[name + "ForConditionalGeneration"], model_type=kind, text_config=text,
             vision_config=vision, image_token_index=IMAGE, pad_token_id=PAD, torch_dtype=str(case.dtype)[6:],
             tie_word_embeddings=text.get("tie_word_embeddings", False))
        | case.top
    )


def original_config(hf):
    """The same facts in the fields of the original code, where the Llama fields lie at the top."""
    text = {k: v for k, v in hf["text_config"].items() if k != "model_type"}
    grids = hf.get("image_grid_pinpoints")
    anyres = dict(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad",
                  image_grid_pinpoints=grids and [g[::-1] for g in grids])
    return text | dict(
        architectures=["LlavaLlamaForCausalLM"], model_type="llava", vocab_size=PIECES, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, torch_dtype=hf["torch_dtype"], mm_vision_tower="clip", mm_projector_type="mlp2x_gelu",
        mm_hidden_size=hf["vision_config"]["hidden_size"], mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        image_aspect_ratio="pad", unfreeze_mm_vision_tower=True) | (anyres if grids else {})


@torch.no_grad()
def randomise(model, seed):
    """Weights that keep activations near one and attention uneven, so that a wrong scale or order shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if "embed" in name and "patch" not in name:
            p.copy_(noise * (.3 if model.config.tie_word_embeddings else .6))
        elif p.ndim == 1:
            p.copy_(noise * .2 + (name.endswith("weight")))                        # norms near 1, biases near 0
        else:
            gain = 2 if "q_proj" in name or "k_proj" in name else 1
            p.copy_(noise * gain * p[0].numel() ** -.5)


def rename(state, layout):
    """The state dict of a transformers 5 model with the names of another layout."""
    def named(key):
        old = next((p for p in LAYOUTS[layout] if key.startswith(p)), "")
        return LAYOUTS[layout].get(old, "") + key[len(old):]
    return {named(key): value for key, value in state.items()}


def weights(model, case):
    """What the file holds: in that layout, the tied head left out, with the buffers that old files carry."""
    state = {
        k: v for k, v in model.state_dict().items() if not (k == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    state = {k: v.to(case.dtype).contiguous() for k, v in rename(state, case.layout).items()}
    if case.layout == "original":
        state |= {k: v[:PIECES].clone() for k, v in state.items() if v.shape[0] == ROWS}
        state |= {f"model.layers.{l}.self_attn.rotary_emb.inv_freq": torch.ones(4) for l in range(2)}
    if case.layout == "hub":
        n = state["vision_tower.vision_model.embeddings.position_embedding.weight"].shape[0]
        state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(n)[None]
    return state


def save(state, folder, shards):
    """model.safetensors, or `shards` files and their index."""
    if shards == 1:
        return save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    keys, where = list(state), {}
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = {key: state[key] for key in keys[n::shards]}
        where |= dict.fromkeys(part, name)
        save_file(part, folder / name, metadata={"format": "pt"})
    size = sum(v.numel() * v.itemsize for v in state.values())
    write(folder / "model.safetensors.index.json", dict(metadata=dict(total_size=size), weight_map=where))


def write(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def bpe():
    """(pieces in id order, merges) of a LLaMA-style tokenizer: <unk> <s> </s>, 256 bytes, then what training finds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    room = PIECES - 3 - 256
    tokenizer.train_from_iterator(
        [CORPUS.replace("\n", " ")] * 2, trainers.BpeTrainer(vocab_size=room, show_progress=False)
    )
    learned = json.loads(tokenizer.to_str())["model"]
    learned_pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned_pieces]
    assert len(pieces) == PIECES, len(pieces)
    return pieces, [tuple(m) for m in learned["merges"]]


def tokenizer_json(pieces, merges, pairs=False, marks=("<image>", "<pad>")):
    """The file's content: no pre-tokenizer, spaces become U+2581, one is put in front; merges as "a b" or as pairs."""
    def sequence(name, *parts):
        return {"type": "Sequence", name: list(parts)}

    special = [
        dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for id, content in [*enumerate(pieces[:3]), *enumerate(marks, PIECES)]
    ]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=special, pre_tokenizer=None,
        normalizer=sequence("normalizers", {"type": "Prepend", "prepend": "▁"},
                            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        post_processor={
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        decoder=sequence("decoders", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                         {"type": "ByteFallback"}, {"type": "Fuse"},
                         {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        model=dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None,
                   end_of_word_suffix=None, fuse_unk=True, byte_fallback=True, ignore_merges=False,
                   vocab={p: i for i, p in enumerate(pieces)},
                   merges=[list(m) if pairs else " ".join(m) for m in merges]),
    )


def sentencepiece_model(pieces, merges, space=True):
    """The bytes of tokenizer.model: a protocol buffer; field 1 is a piece {1: text, 2: score, 3: type}, 2 and 3
    settings.

    `space`: whether one is put in front of a text.
    """
    rank = {a + b: -float(n) for n, (a, b) in enumerate(merges)}

    def one(id, piece):
        kind = 2 if id == 0 else 3 if id < 3 else 6 if id < 259 else 1
        text, score = piece.encode(), rank.get(piece, -float(len(merges) + id) if id >= 259 else 0.)
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(body)]) + body
    trainer = b"\x12\x02\x18\x02"                     # byte-pair encoding
    normalizer = b"\x1a\x04\x18" + bytes([space]) + b"\x20\x00"                  # no space is removed
    return b"".join(one(id, piece) for id, piece in enumerate(pieces)) + trainer + normalizer


def grids(size):
    """image_grid_pinpoints of LLaVA-NeXT, for tiles of this size."""
    return [[size * height, size * width] for height, width in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def preprocessor(size, pinpoints=None, siglip=False):
    """preprocessor_config.json of CLIP, of LLaVA-NeXT, of SigLIP or of OneVision, at this size."""
    onevision = dict(image_processor_type="LlavaOnevisionImageProcessor", image_grid_pinpoints=pinpoints, do_pad=True)
    if siglip:
        return dict(image_processor_type="SiglipImageProcessor", size=dict(height=size, width=size), resample=3,
                    do_rescale=True, do_resize=True, do_normalize=True, rescale_factor=1 / 255,
                    image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]) | (onevision if pinpoints else {})
    anyres = dict(image_processor_type="LlavaNextImageProcessor", image_grid_pinpoints=pinpoints, do_pad=True)
    return dict(image_processor_type="CLIPImageProcessor", size=dict(shortest_edge=size), resample=3,
                crop_size=dict(height=size, width=size), do_center_crop=True, do_convert_rgb=True, do_normalize=True,
                do_rescale=True, do_resize=True, image_mean=[0.48145466, 0.4578275, 0.40821073],
                image_std=[0.26862954, 0.26130258, 0.27577711]) | (anyres if pinpoints else {})


def build(case, folder, reference):
    """Write the checkpoint to `folder`, and to `reference` the form of it that transformers reads (where it is
    another)."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    fields, (pieces, merges) = config(case), bpe()
    write(reference / "config.json", fields)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(reference), dtype=torch.float32)
    randomise(model, case.seed)
    if case.layout == "hf5-saved":
        model.to(case.dtype).save_pretrained(folder)                               # the library's own file and config
    else:
        save(weights(model, case), folder, case.shards)
    if case.layout == "original":
        save(weights(model, replace(case, layout="hf5")), reference, 1)
        write(folder / "config.json", original_config(fields))
        (folder / "clip").mkdir(exist_ok=True)
        write(folder / "clip" / "config.json", fields["vision_config"])
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces, merges))
    else:
        size, pinpoints = fields["vision_config"]["image_size"], fields.get("image_grid_pinpoints")
        siglip = fields["vision_config"]["model_type"] == "siglip_vision_model"
        write(folder / "preprocessor_config.json", preprocessor(size, pinpoints, siglip))
        tokenizer = tokenizer_json(pieces, merges, pairs=case.shards > 1)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        write(
            folder / "tokenizer_config.json",
            dict(tokenizer_class="LlamaTokenizer", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                 pad_token="<pad>", add_bos_token=True, add_eos_token=False, legacy=True),
        )
    write(folder / "generation_config.json", dict(bos_token_id=1, eos_token_id=2, pad_token_id=PAD))
