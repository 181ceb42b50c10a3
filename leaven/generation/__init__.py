"""Decode, fuse, steer and diffuse."""
