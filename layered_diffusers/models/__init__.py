"""Models on disk and their parts: loading, words, the VAE, LoRAs and embeddings."""
