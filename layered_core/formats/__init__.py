"""Layered files: PSD, OpenRaster and JSON documents, and the limits on what they may ask for."""
