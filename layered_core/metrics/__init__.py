"""Figures: how near a picture is to another, and to the layout that was asked for."""
