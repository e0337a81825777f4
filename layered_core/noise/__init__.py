"""How far each place may change: change maps, sampling windows, guidance by region."""
