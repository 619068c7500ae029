"""Frozen backbones behind one contract. Imports nothing of ours."""
