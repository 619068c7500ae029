"""How each benchmark is asked and which of its numbers counts: lmms-eval's prompts, the paper's eleven metrics."""

from dataclasses import dataclass

from eval_suite.readers.contracts import AskedQuestion
from eval_suite.vlm.prompts import IMAGE_MARK

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Asking:
    """What follows the question, how many tokens a reply may have, and the metric that counts in the VLM group."""

    after: str  #: behind a question without options
    tokens: int
    metric: str
    after_options: str = LETTER


#: lmms_eval/tasks/*: `post_prompt` and `max_new_tokens`; TextVQA and SEED set no limit there, short replies need none
ASKING: dict[str, Asking] = {
    "ai2d": Asking("", 16, "exact_match"),
    "chartqa": Asking("\nAnswer the question with a single word.", 16, "relaxed_accuracy"),
    "docvqa": Asking(SHORT, 32, "anls"),
    "infovqa": Asking(SHORT, 32, "anls"),
    "gqa": Asking(SHORT, 16, "exact_match"),
    "mme": Asking(SHORT, 16, "perception"),
    "mmmu": Asking(f"\n{SHORT}", 128, "accuracy", f"\n{LETTER}"),
    "ocrbench": Asking("", 128, "accuracy"),
    "pope": Asking(SHORT, 128, "f1"),
    "seed": Asking("", 128, "accuracy"),
    "textvqa": Asking(SHORT, 128, "vqa_accuracy"),
}
ANY = Asking("", 32, "")  #: a user's own questions are asked as they stand
MME_ENDING = " Please answer yes or no."  #: which lmms-eval replaces by its own


def asking_of(benchmark: str) -> Asking:
    """The protocol of a benchmark; for "" that of a user's own questions."""
    return ASKING.get(benchmark, ANY)


def prompt_of(item: AskedQuestion, benchmark: str) -> str:
    """The question as it is put to the model: its options a letter each, then what the benchmark adds."""
    question = item.question.replace(IMAGE_MARK, "image").strip()
    if benchmark == "mme":
        question = question.replace(MME_ENDING, "")
    if benchmark == "textvqa":  # lmms-eval capitalises the question, which lowers the rest of it
        head, separator, words = question.partition("\nReference OCR token:")
        question = head.capitalize() + separator + words
    lines = [f"{chr(ord('A') + at)}. {option}" for at, option in enumerate(item.options)]
    asking = asking_of(benchmark)
    return "\n".join([question, *lines]) + (asking.after_options if item.options and benchmark else asking.after)
