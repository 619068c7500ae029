"""What every room needs once: whole files, digests, logs, stores, keyed random numbers, recipes, the one UserError.

Imports nothing of ours.
"""
