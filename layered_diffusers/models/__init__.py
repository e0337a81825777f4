"""Models on disk and their parts: loading, text encoders, the VAE, LoRAs and embeddings."""
