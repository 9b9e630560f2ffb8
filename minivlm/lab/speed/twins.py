"""transformers' decoder and vision tower on the weights of ours: what `bench --against hf` runs beside them."""

from functools import partial

import torch

from minivlm.lab.check import hf


class Twins:
    """The reference's decoder and vision tower ("sdpa" or "eager" attention) on the same weights, for `bench`."""

    @hf.blaming_untested("bench --against hf")
    def __init__(self, decoder, head, tower, attention="sdpa"):
        hf.library("bench --against hf")
        from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps")
        numbers = {name: getattr(decoder.config, name) for name in names}
        config = LlamaConfig(**numbers, attn_implementation=attention)
        weights = {f"model.{name}": p for name, p in decoder.state_dict().items()}
        weights["lm_head.weight"] = head.weight
        self.cache = partial(DynamicCache, config=config)
        self.decoder = self._filled(LlamaForCausalLM, config, weights)
        config = CLIPVisionConfig(**vars(tower.config), attn_implementation=attention)
        weights = {name.replace("layers.", "encoder.layers.", 1): p for name, p in tower.state_dict().items()}
        self.tower = self._filled(CLIPVisionModel, config, weights)

    @staticmethod
    def _filled(kind, config, weights):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(next(iter(weights.values())).dtype)
        model = kind(config).eval()
        torch.set_default_dtype(dtype)
        model.load_state_dict(weights, assign=True)
        return model

    @hf.blaming_untested("bench --against hf")
    def prefill(self, hidden):
        """(T, D) embeddings -> a cache, and the logits of the last token, inside it."""
        return self.decoder(inputs_embeds=hidden[None], past_key_values=self.cache(), use_cache=True, logits_to_keep=1)

    @hf.blaming_untested("bench --against hf")
    def step(self, held):
        """One more token after what `prefill` gave."""
        ids = torch.tensor([[5]], device=self.decoder.device)
        return self.decoder(input_ids=ids, past_key_values=held.past_key_values, use_cache=True).logits[0, -1].argmax()

    @hf.blaming_untested("bench --against hf")
    def vision(self, pixels):
        """(tiles, 1+P, C): the hidden states that LLaVA reads."""
        return self.tower(pixels, output_hidden_states=True).hidden_states[-2]
