"""A tiny random SmolVLM checkpoint: the hub's names, files and partial config.json, the released rules for pictures.

Its tiles have 8 x 8 patches, 2 x 2 visual tokens. As SmolLM2's tokenizer does, it reads two line breaks as one token.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tiny_llava import CORPUS, Case, randomise, save, write

PIECES, ROWS, SIDE = 480, 576, 16
MARKS = ("<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>",
         *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)))
ID = {mark: id for id, mark in enumerate(MARKS, PIECES)}
LAYOUTS = ("smolvlm",)
HALF = [0.5, 0.5, 0.5]
IMAGES = dict(size=dict(longest_edge=4 * SIDE), max_image_size=dict(longest_edge=SIDE), resample=1, image_mean=HALF,
              image_std=HALF)
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")


def asked(*turns):
    """The text of a conversation that ends with a question."""
    text = "<|im_start|>"
    for speaker, said in zip(["User", "Assistant"] * len(turns), turns):
        space = "" if said.startswith("<image>") else " "
        text += f"{speaker}:{space}{said}<end_of_utterance>\n"
    return text + "Assistant:"


def config(case):
    """config.json as the hub's says it: what equals a default of the classes is left out."""
    text = dict(model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, max_position_embeddings=4096, vocab_size=ROWS,
                rope_theta=100000) | case.text
    vision = dict(model_type="idefics3", hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                  num_attention_heads=4, image_size=SIDE, patch_size=2) | case.vision
    return dict(architectures=["Idefics3ForConditionalGeneration"], model_type="idefics3", text_config=text,
                vision_config=vision, image_token_id=ID["<image>"], pad_token_id=128002, scale_factor=4,
                tie_word_embeddings=False, torch_dtype=str(case.dtype)[6:])


def spelled():
    """Byte pairs over bytes spelled as letters, the marks after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([CORPUS, CORPUS, *["\n\n"] * 20], trainer)
    unused = [f"<unused {n}>" for n in range(tokenizer.get_vocab_size(), PIECES)]
    tokenizer.add_special_tokens([*unused, *MARKS])
    return tokenizer


def tools(case):
    """The tokenizer and image processor that the case is recorded with."""
    from transformers import Idefics3ImageProcessorPil
    return spelled(), Idefics3ImageProcessorPil(**IMAGES, return_row_col_info=True)


def build(case, folder, reference):
    """Write the checkpoint to `folder`."""
    from transformers import AutoConfig, Idefics3ForConditionalGeneration
    write(folder / "config.json", config(case))
    model = Idefics3ForConditionalGeneration(AutoConfig.from_pretrained(folder))
    randomise(model, case.seed)
    save({name: value.to(case.dtype).contiguous() for name, value in model.state_dict().items()}, folder, 1)
    write(folder / "generation_config.json", dict(bos_token_id=0, eos_token_id=ID["<end_of_utterance>"],
                                                  pad_token_id=0))
    write(folder / "preprocessor_config.json", dict(
        image_processor_type="Idefics3ImageProcessor", do_convert_rgb=True, do_image_splitting=True, do_normalize=True,
        do_pad=True, do_rescale=True, do_resize=True, rescale_factor=1 / 255, **IMAGES))
    write(folder / "chat_template.json", dict(chat_template=TEMPLATE))
    write(folder / "tokenizer_config.json", dict(tokenizer_class="GPT2Tokenizer", bos_token="<|im_start|>",
                                                 eos_token="<end_of_utterance>"))
    spelled().save(str(folder / "tokenizer.json"), pretty=False)


CASES = {
    "smolvlm": Case(
        "smolvlm",
        seed=1,
        dtype=torch.bfloat16,
        prompts=[
            (asked("<image>What is shown in this image?"), ["wide_2000x100.png"]),
            (asked("<image>Which?", "The sign.", "Why?"), ["land_500x333.png"]),
            (asked("Here is <image>and here is <image>Which one is brighter?"), ["tall_40x900.png", "tiny_7x5.png"]),
            (asked("How many boats are on the lake?"), []),
        ],
    ),
}
