"""From words to ids: tokenizers, and the prompt formats and chat templates of checkpoints."""
