"""`python -m qwen3omni_wgpu` is the command line."""

from qwen3omni_wgpu.cli import main

if __name__ == "__main__":
    main()
