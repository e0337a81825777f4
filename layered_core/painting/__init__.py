"""Changing a part of a picture and keeping the rest: crops, pastes, mattes, stages."""
