"""Pretrained models: policies with a LoRA adapter, their prompts and their grammar."""
