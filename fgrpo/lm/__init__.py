"""Pretrained models: policies with a LoRA adapter or without, their prompts and their grammar."""
