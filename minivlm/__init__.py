"""The model. In reading order: attention, llama, clip, llava; then cache, generate, trace. Skip kernels, parts, families and io at first."""
