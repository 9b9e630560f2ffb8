"""The model, in reading order: config, attention, clip, llama, cache, llava, image, text, chat."""
