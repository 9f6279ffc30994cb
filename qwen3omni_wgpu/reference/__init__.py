"""NumPy twins: one slow, readable function for every op that the GPU runs.

One file per op family, named like the file in ops/. Arrays are float32 in and out unless a docstring says otherwise.
Import from the family's file, for instance `from qwen3omni_wgpu.reference.norm import rms_norm`.

Dimension names: N tokens, S cached keys, D model dim, H heads, KV key/value heads, HD head dim, E experts, K experts
per token, F feed-forward dim, V vocabulary.
"""
