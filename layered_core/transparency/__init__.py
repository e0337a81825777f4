"""LayerDiffuse: networks that read and write alpha, the published files, and frames that see each other."""
