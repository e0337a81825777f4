"""ComfyUI in the benchmarks: how it is found and started, and the scripts that run inside it."""
