"""What RADV makes of the project's kernels for RDNA 3: compiled on its null device, held against a baseline."""
