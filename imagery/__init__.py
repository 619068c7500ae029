"""Where images come from: safe decoding, resumable streams, and a procedural 3D world. Imports `common` alone."""
