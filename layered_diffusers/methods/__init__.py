"""What acts on a sampling run: regions, control, change maps, LayerDiffuse."""
