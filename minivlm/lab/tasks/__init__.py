"""Benchmarks with official files: questions, prompts and metrics, also for answers of other code. Command `score`."""
