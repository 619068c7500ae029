"""Frozen backbones behind one contract. Imports `common` alone."""
