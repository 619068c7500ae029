"""What is done to a text before its tokenizer sees it, where two libraries do different things for one checkpoint.

SigLIP2's own code lowers texts and does nothing else (google-research/big_vision, SigLIP2_demo.ipynb: `lower` before
`tok` with the Gemma vocabulary, length 64, no beginning mark, a "sticky" end mark). open_clip takes punctuation out
too, and transformers' AutoTokenizer may leave capitals in, so one checkpoint had two text towers. Of the first SigLIP
both take punctuation out.
"""

from typing import Any

import transformers


def is_siglip2(tokenizer: Any) -> bool:
    """Whether an image-text model's tokenizer is SigLIP2's, which is Gemma's: told by its class, not by a name."""
    return isinstance(tokenizer, transformers.GemmaTokenizer | transformers.Siglip2Tokenizer)


def cleaned(texts: list[str], tokenizer: Any) -> list[str]:
    """The texts as the reference code of the tokenizer's model hands them to it."""
    return [text.lower() for text in texts] if is_siglip2(tokenizer) else texts
