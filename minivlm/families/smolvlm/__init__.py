"""SmolVLM and SmolVLM2: their configuration, their pictures, the network."""
