"""Words learnt from layers with Stable Diffusion: encoding the texts, training, writing the files."""
