"""Three small teachers trained on the scenes: tiny:clip, tiny:dino, tiny:sam. Their cards lie beside the weights."""
