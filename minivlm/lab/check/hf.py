"""The reference library on the same checkpoint folder: what `verify --live` compares with.

Besides speed/twins.py the only file that imports transformers, and only when it is asked to run it. One model is in
memory at a time: call live() before weights.load(), so that the reference's weights are freed before minivlm reads its
own.
"""

import gc
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps

from minivlm.families.registry import read_config
from minivlm.io.files import folder_of, read_json
from minivlm.io.image import local_file, open_image
from minivlm.io.text.chatml import CONTEXT
from minivlm.io.text.formats import IMAGE
from minivlm.io.text.template import Missing, own_template, template_of
from minivlm.io.text.tokenizer import Tokenizer, prompt as written
from minivlm.lab.check.recorded import NO_ROUNDING, Expected, distance
from pruning.base import UserError

TESTED = "5.21.0", "5.24.0"            # the lowest and the highest version of transformers that the tests run with
SMOLVLM = "idefics3", "smolvlm"
LARGEST_ATTENTIONS = 2 ** 28           # bytes: the attention matrices of all layers are kept only below this


def library(command):
    """The transformers module, for this command. Raises UserError if it cannot be imported or is older than TESTED."""
    lowest, highest = TESTED
    remedy = f"pip install 'transformers>={lowest},<={highest}'"
    try:
        import transformers
    except Exception as error:             # it is not there, or what it needs is of another version
        reason = _first_line(error)
        raise UserError(f"{command} runs transformers, which cannot be imported ({reason}): {remedy}") from error
    if _release(transformers.__version__) < _release(lowest):
        raise UserError(f"{command} runs transformers {lowest} to {highest}, not {transformers.__version__}: {remedy}")
    return transformers


def untested(version):
    """Why results of this version of transformers say little: a sentence, or None for one of the range tested."""
    if _release(version) <= _release(TESTED[1]):
        return None
    return f"transformers {version} is newer than {TESTED[1]}, the newest version tested"


@contextmanager
def blaming_untested(command):
    """What fails inside, under a version newer than TESTED, is one UserError; under a tested one it is a bug.

    Decorates functions, too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = untested(library(command).__version__)
        if reason is None:
            raise
        raise UserError(f"{command}: {reason}, and fails here ({type(error).__name__}: {_first_line(error)}): "
                        f"pip install 'transformers=={TESTED[1]}'") from error


def _release(version):
    """"5.24.0.dev0" -> (5, 24): bug fixes after a tested release count as tested."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@blaming_untested("verify --live")
def live(folder, image, question, dtype=torch.float32, device="cpu", max_new_tokens=20):
    """Expected: every stage of one question about one picture file, as transformers computes it with eager attention.

    folder: of a llava-hf checkpoint, or its hub id. float32 by default, whatever the file holds: in half precision two
    correct programs differ by a few percent. The stages are computed in float64 as well, to tell what rounding does to
    them. Raises UserError where transformers is missing or cannot read the folder.
    """
    image = local_file(image)
    open_image(image)                      # raises before the long part
    folder = folder_of(folder)
    model, tokenizer, processor = reference(folder, dtype, device)
    text = reference_prompt(tokenizer, folder, question)
    ids = tokenizer(marked(text, model.config), add_special_tokens=not _begun(text, tokenizer)).input_ids
    images, sizes = inputs(processor, picture(image), partial(encoded, tokenizer))
    expanded = torch.tensor([expand(ids, model.config, iter(sizes))], device=device)               # (1, S)
    pixels = images["pixel_values"].to(device, dtype)
    run = model, expanded, torch.ones_like(expanded), images | dict(pixel_values=pixels)
    seen = stages(*run) | images
    generated, lead = greedy(*run, max_new_tokens)
    prompt = dict(text=text, question=question, images=[str(image)], ids_unexpanded=ids, generated=generated,
                  seq_len=expanded.shape[1], n_image_tokens=expanded.shape[1] - len(ids) + 1, min_top2_margin=min(lead),
                  top2_margins=lead, n_generated=max_new_tokens, max_abs_logit=seen["logits"].abs().max().item(),
                  own_error=own_error(run, seen))
    expected = Expected([prompt], {f"p0.{name}": value.cpu() for name, value in seen.items()})
    del model, run, seen
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return expected


def reference(folder, dtype, device):
    """The model (eager attention), tokenizer and PIL image processor that transformers makes of the folder."""
    transformers = library("verify --live")
    config = read_json(Path(folder) / "config.json")
    if config.get("model_type") == "internvl_chat":
        raise UserError(f"{folder}: an original InternVL checkpoint, which transformers cannot read: "
                        "give one whose name ends with -hf")
    if "text_config" not in config:
        raise UserError(f"{folder}: an original LLaVA checkpoint, which transformers cannot read: "
                        "give a llava-hf folder of the same weights, such as llava-hf/llava-1.5-7b-hf")
    try:
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except Exception as error:             # what a damaged folder raises depends on where it is damaged
        if untested(transformers.__version__):
            raise                          # to `blaming_untested`
        raise UserError(f"{folder}: transformers cannot read it: {_first_line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"{folder}: transformers misses {sorted(info['missing_keys'])[0]}: the file is not complete")
    if model.config.model_type == "internvl":
        processor.crop_to_patches = True   # as its processor for text and images asks it to
    if model.config.model_type in SMOLVLM:
        processor.return_row_col_info = True
    return model.to(device).eval(), tokenizer, processor


def reference_prompt(tokenizer, folder, question):
    """The text of one question about one picture: transformers renders the folder's own chat template.

    A message holds a list of pictures and texts, or, for a template that cannot write that, one string with a mark in
    it. Without a template that writes both it is our text, or our refusal; without any, of a family that we do not
    know, Vicuna's words do to compare two models, which is not to say that they are this one's.
    """
    own = own_template(Path(folder))
    marked_already = IMAGE in question
    parts = [dict(type="text", text=question)]
    for content in (parts if marked_already else [dict(type="image"), *parts],
                    question if marked_already else f"{IMAGE}\n{question}"):
        text = _rendered(tokenizer, own, content) if own or tokenizer.chat_template else ""
        if question.strip() in text and IMAGE in text:
            return text
    template = template_of(folder, read_config(folder), Tokenizer(folder))
    if own is None and isinstance(template, Missing):
        template = "llava-hf"
    return written([(question, None)], template=template)


def _rendered(tokenizer, own, content):
    """What a chat template writes of one message, "" where it fails.

    own: a Jinja, or None for the tokenizer's template.
    """
    try:
        text = tokenizer.apply_chat_template([dict(role="user", content=content)], chat_template=own and own.source,
                                             tokenize=False, add_generation_prompt=True)
    except Exception:                      # a template is a program, and may raise anything
        return ""
    return text.replace(CONTEXT, IMAGE)


def _begun(text, tokenizer):
    """Whether the text has its <s> already, so that the tokenizer must not add another."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def picture(path):
    """The picture turned by its EXIF orientation; its colours are left to the processor."""
    return ImageOps.exif_transpose(Image.open(path))


def encoded(tokenizer, text):
    """The ids of a text that goes on."""
    return tokenizer(text, add_special_tokens=False).input_ids


def inputs(processor, pictures, encode=None):
    """What the model reads of pictures (pixel_values, float32, and image_sizes), and of each what `expand` needs.

    encode: text -> ids, for SmolVLM's text between tiles.
    TRAP: for OneVision [[a, b]] are two pictures of one prompt, without tiles, and [a, b] one each of two prompts.
    """
    images = dict(processor(pictures, return_tensors="pt"))
    if "rows" in images:
        images.pop("pixel_attention_mask")                 # tiles have no padding
        (rows,), (columns,) = images.pop("rows"), images.pop("cols")
        return images, [encode(split_text(int(r), int(c))) for r, c in zip(rows, columns)]
    sizes = images.pop("num_patches", images.get("image_sizes", ()))
    has_several = any(n > 1 for n in images.get("batch_num_images", ()))
    return images, [None] * len(sizes) if has_several else sizes


def split_text(rows, columns):
    """SmolVLM: the text of a picture cut into rows x columns tiles (0 x 0: not cut), with one mark for each tile."""
    around = "<fake_token_around_image>"
    lines = []
    for row in range(1, rows + 1):
        lines.append("".join(f"{around}<row_{row}_col_{column}>{IMAGE}" for column in range(1, columns + 1)) + "\n")
    return "".join(lines) + "\n" * (rows > 0) + f"{around}<global-img>{IMAGE}{around}"


def marked(text, config):
    """The text with the marks that the model's tokenizer knows in the place of <image>."""
    return text.replace("<image>", "<img><IMG_CONTEXT></img>") if config.model_type == "internvl" else text


def expand(ids, config, sizes=iter(())):
    """[1, <image>, 5] -> [1, <image> * n, 5], n the visual tokens of that picture.

    LLaVA-NeXT and OneVision: of the next of these sizes (None: no tiles); InternVL: of so many tiles; SmolVLM: with the
    text between them.
    """
    vision, mark = config.vision_config, config.image_token_id
    if config.model_type == "internvl":
        a_tile = round(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio) ** 2
        return [i for id in ids for i in [id] * (a_tile * int(next(sizes)) if id == mark else 1)]
    n = (vision.image_size // vision.patch_size) ** 2
    if config.model_type in SMOLVLM:
        a_tile = n // config.scale_factor ** 2
        split = [i for id in ids for i in (next(sizes) if id == mark else [id])]
        return [i for id in split for i in [id] * (a_tile if id == mark else 1)]
    has_class_token = vision.model_type == "clip_vision_model"
    strategy = getattr(config, "vision_feature_select_strategy", "default")        # ViP-LLaVA's says nothing
    n += has_class_token and strategy == "full"
    count = lambda: n + sum(_map(next(sizes), config)) if hasattr(config, "image_grid_pinpoints") else n
    return [i for id in ids for i in [id] * (count() if id == mark else 1)]


def _map(size, config):
    """LLaVA-NeXT and OneVision: (patches, newlines) of the high-resolution map of a picture of this height and width.

    Written out, since transformers has no public function for it. A wrong number does not pass: its model refuses a
    prompt with more or fewer marks than features.
    """
    if size is None:
        return 0, 1
    height, width = map(int, size)

    def use_of(grid):
        """Of the grid's pixels, those that show the picture; then, the fewer the better, those that do not."""
        scale = min(grid[0] / height, grid[1] / width)
        shown = min(int(height * scale) * int(width * scale), height * width)
        return shown, shown - grid[0] * grid[1]

    # the first of the best grids, in patches
    grid = max(config.image_grid_pinpoints, key=use_of)
    tile = config.vision_config.image_size // config.vision_config.patch_size
    rows, columns = (side // config.vision_config.image_size * tile for side in grid)
    # the patches of the padding, the same number on both sides, are left out
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
    if limit := getattr(config, "vision_aspect_ratio", None):                      # "anyres_max_9", OneVision's
        ratio = (rows * columns / (int(limit.rpartition("_")[2]) * tile ** 2)) ** .5
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows * columns, rows


@torch.inference_mode()
def stages(model, ids, mask, images=None):
    """{stage: tensor} of one forward pass, (B, S) ids whose image marks are expanded; padding on the left has mask 0.

    images: what the image processor gave, pixel_values and, for LLaVA-NeXT, image_sizes. The features that are packed
    into the prompt are read there.
    """
    core = model.model
    is_smolvlm = model.config.model_type in SMOLVLM        # whose modules have other names
    decoder = core.text_model if is_smolvlm else core.language_model
    vision = core.vision_model if is_smolvlm else core.vision_tower
    projector = core.connector if is_smolvlm else core.multi_modal_projector
    layers = decoder.layers
    position = (mask.cumsum(dim=-1) - 1).clamp(min=0)                              # (B, S)
    heads = len(layers) * model.config.text_config.num_attention_heads
    fits = heads * ids.numel() * ids.shape[1] * model.dtype.itemsize < LARGEST_ATTENTIONS
    tower = getattr(vision, "vision_model", vision)
    first = getattr(tower, "pre_layrnorm", tower.embeddings)           # InternVL and SigLIP have no such norm
    modules = {f"layer {l}": layer for l, layer in enumerate(layers)}
    modules |= dict(vision=vision, vision_hidden_0=first, projected=projector, decoder=decoder,
                    final_hidden=decoder.norm)
    with _outputs(**modules) as (seen, given):
        out = model(input_ids=ids, attention_mask=mask, position_ids=position, **images or {}, use_cache=False,
                    output_attentions=fits)
    outs = [seen[f"layer {l}"] for l in range(len(layers))]
    outs = [x[0] if isinstance(x, tuple) else x for x in outs]
    result = dict(input_ids=ids, attention_mask=mask, inputs_embeds=given["decoder"]["inputs_embeds"],
                  layer_out=torch.stack(outs), final_hidden=seen["final_hidden"], logits=out.logits)
    if fits:
        result["attentions"] = torch.stack(out.attentions)                         # (L, B, H, S, S)
    if images:
        result.update(images, vision_hidden_0=seen["vision_hidden_0"], projected=seen["projected"],
                      vision_hidden_m2=_selected(seen["vision"], layers_read(model.config)),
                      image_features_packed=result["inputs_embeds"][ids == model.config.image_token_id])
    return result


def layers_read(config):
    """The hidden states of the tower that the projector reads: ViP-LLaVA's key had another name before 5.24."""
    return getattr(config, "vision_feature_layers", None) or getattr(config, "vision_feature_layer", -1)


def _selected(vision, chosen):
    """(tiles, 1+P, C): the hidden states that the projector reads, several side by side."""
    states = vision.hidden_states or [vision.last_hidden_state]                    # InternVL and SmolVLM keep no other
    return torch.cat([states[l] for l in ([chosen] if isinstance(chosen, int) else chosen)], dim=-1)


@contextmanager
def _outputs(**modules):
    """({name: what the module last gave}, {name: the keywords it was given}) of what runs inside the block."""
    seen, given = {}, {}

    def watch(name):
        def keep(module, args, keywords, out):
            seen[name], given[name] = out, keywords
        return keep
    hooks = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield seen, given
    finally:
        for hook in hooks:
            hook.remove()


def own_error(run, seen):
    """{stage: distance of what `stages` gave from the same in float64}, a layer's name with its number; see `distance`.

    run: the arguments of `stages`. Empty on a device that has no float64.
    """
    model, ids, mask, images = run
    if model.device.type == "mps":
        return {}
    with in_float64(model):
        exact = stages(model, ids, mask, images)
    result = {}
    for stage in seen.keys() - NO_ROUNDING:
        if stage in ("attentions", "layer_out"):
            result |= {f"{stage} {l}": distance(*pair) for l, pair in enumerate(zip(seen[stage], exact[stage]))}
        else:
            result[stage] = distance(seen[stage], exact[stage])
    return result


@contextmanager
def in_float64(model):
    """Inside, the model computes in float64. One module after the other has wide weights, only while it runs.

    The first parameter is wide all the while: SmolVLM's classes take its dtype for that of the model.
    """
    stored = {parameter: parameter.dtype for parameter in model.parameters()}
    first = next(model.parameters())
    first.data = first.data.double()

    @torch.inference_mode(False)
    def widen(module, args, keywords):
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.double()
        return tuple(map(wide, args)), {name: wide(value) for name, value in keywords.items()}

    @torch.inference_mode(False)
    def narrow(module, *_):
        for parameter in module.parameters(recurse=False):
            if parameter is not first:
                parameter.data = parameter.data.to(stored[parameter])

    def wide(value):
        return value.double() if torch.is_tensor(value) and value.is_floating_point() else value

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(widen, with_kwargs=True))
        hooks.append(module.register_forward_hook(narrow, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        first.data = first.data.to(stored[first])


@torch.inference_mode()
def greedy(model, ids, mask, images=None, max_new_tokens=20, eos_token_id=None, **options):
    """Greedy ids, a list a sample, its end token last; and the lead of each step's winner, the smallest of the batch.

    Of the folder's settings for generation only the end tokens count: penalties and sampling are no part of the model.
    """
    from transformers import GenerationConfig
    own = model.generation_config
    ends = own.eos_token_id if eos_token_id is None else eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    plain = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends or None,
                             pad_token_id=own.pad_token_id, output_scores=True, return_dict_in_generate=True, **options)
    model.generation_config = GenerationConfig()       # generate() fills in from it what `plain` leaves open
    try:
        out = model.generate(input_ids=ids, attention_mask=mask, **images or {}, generation_config=plain)
    finally:
        model.generation_config = own
    samples = [_until(row, ends) for row in out.sequences[:, ids.shape[1]:].tolist()]
    top = torch.stack(out.scores, dim=1).float().topk(2).values                    # (B, steps, 2)
    leads = (top[..., 0] - top[..., 1]).tolist()
    smallest = []
    for t in range(len(out.scores)):
        smallest.append(min(lead[t] for lead, sample in zip(leads, samples) if t < len(sample)))
    return samples, smallest


def _until(ids, ends):
    """[5, 2, 0, 0] -> [5, 2]: up to the first end token; what follows in a batch is padding."""
    stop = next((t for t, id in enumerate(ids) if id in ends), len(ids))
    return ids[:stop + 1]
