"""ComfyUI in the benchmarks: finding and starting it, and the scripts that run inside it."""
