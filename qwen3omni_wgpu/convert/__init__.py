"""Hugging Face checkpoints as GGUF: which tensor becomes which, and the metadata of the three files."""
