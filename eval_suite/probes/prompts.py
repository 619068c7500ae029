"""Published prompt lists by name, taken from the library that publishes them."""

from common.errors import unknown


def prompt_list(name: str) -> tuple[str, ...]:
    """`openai` (80 prompts), `simple` (7) or `base` (1), with {} for the class name.

    RADIO's zero-shot script uses `openai` by default; open_clip holds the first two lists.
    """
    if name == "base":
        return ("an image of a {}.",)
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    lists = {"openai": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}
    if name not in lists:
        raise unknown("prompt list", name, [*lists, "base"])
    return tuple(make("{}") for make in lists[name])
