"""The methods that act on a sampling run: regions, control, change maps, LayerDiffuse."""
