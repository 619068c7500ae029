"""Vision-language models on frozen backbones: prompts, views, tokens, training, resuming, answering, bad input."""

import copy
import dataclasses
import shutil
from pathlib import Path

import layout_fixtures as make
import pytest
import torch
import yaml
from tiny_language import tiny_language, tiny_tokenizer
from toy_world import Constant, Oracle, ToyData, probed
from transformers import get_cosine_schedule_with_warmup

from common.errors import UserError, guard
from common.recipes import validate
from eval_suite.__main__ import main
from eval_suite.probes.llava import LlavaProbe
from eval_suite.readers.contracts import TRAIN, AskedQuestion, LabelledData, QuestionImages
from eval_suite.results import read_metrics
from eval_suite.suite import load_suite
from eval_suite.vlm.benchmarks import prompt_of
from eval_suite.vlm.model import Llava
from eval_suite.vlm.prompts import IMAGE, NO_TARGET, SYSTEM, encode
from eval_suite.vlm.recipe import VlmRecipe
from eval_suite.vlm.saved import load_vlm
from eval_suite.vlm.tokens import merge_tokens, reduce_grid
from eval_suite.vlm.training import Where, ramp, rows_of_step, trained
from eval_suite.vlm.views import Views, anyres_views, best_grid, single_view, unpad
from teachers.registry import load_backbone

CPU = Where(torch.device("cpu"))
TEXTS = ["what colour is square ? 0 5 red green blue white", "a picture of"]


def recipe(language: Path, **fields: object) -> VlmRecipe:
    stage = {"data": "toy", "use": "questions", "batch": 16, "steps": 120, "learning_rate": 3e-3, "warmup": 0.1}
    return validate(VlmRecipe, {"language_model": str(language), "tune": "full", "stage2": stage, **fields}, "suite")


def changed(node: VlmRecipe, **fields: object) -> VlmRecipe:
    """With other fields of stage 2, or of the node."""
    own = {name: value for name, value in fields.items() if name in VlmRecipe.model_fields}
    stage = {name: value for name, value in fields.items() if name not in own}
    data = node.model_dump()
    return validate(VlmRecipe, {**data, **own, "stage2": {**data["stage2"], **stage}}, "suite")


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("language"), TEXTS)


# ---- prompts


def said(tokenizer: object, encoded: object) -> tuple[str, str]:
    """Everything, and the answers alone, as text."""
    words = tokenizer.convert_ids_to_tokens([0 if token == IMAGE else token for token in encoded.ids])
    told = [word for word, target in zip(words, encoded.targets, strict=True) if target != NO_TARGET]
    words = ["IMAGE" if token == IMAGE else word for word, token in zip(words, encoded.ids, strict=True)]
    return " ".join(words), " ".join(told)


def test_vicunas_prompt_and_that_only_answers_are_targets() -> None:
    tokenizer = tiny_tokenizer(TEXTS)
    turns = [("<image>\nwhat colour?", "red"), ("square 5?", "blue white")]
    text, told = said(tokenizer, encode(tokenizer, "v1", turns, 1))
    assert told == "red </s> blue white </s>"
    assert text.startswith("<s> A chat between a curious user")
    assert "questions . USER : IMAGE what colour ? ASSISTANT : red </s> USER : square 5 ? ASSISTANT : blue" in text
    asked = encode(tokenizer, "v1", [("what colour?", None)], 1)
    assert asked.ids[-2:] == tuple(tokenizer.convert_tokens_to_ids(["ASSISTANT", ":"])) and asked.images == 1
    assert set(asked.targets) == {NO_TARGET} and SYSTEM.endswith("questions.")


def test_plain_captions_and_the_tokenizers_own_template() -> None:
    tokenizer = tiny_tokenizer(TEXTS)
    text, told = said(tokenizer, encode(tokenizer, "plain", [("<image>\nwhat is it?", "a picture")], 1))
    assert (text, told) == ("<s> IMAGE a picture", "a picture")  # the instruction is thrown away
    text, told = said(tokenizer, encode(tokenizer, "tokenizer", [("what?", "red"), ("colour?", "blue")], 1))
    assert told == "red </s> blue </s>" and text.count("[ user ]") == 2 and text.startswith("[ user ] IMAGE")


def test_byte_level_tokens_that_reach_into_an_answer_are_targets() -> None:
    """A byte-level BPE glues the space to the word: the glued token is the answer's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        ["USER: what? ASSISTANT: yes it is"] * 20,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    encoded = encode(tokenizer, "v1", [("what?", "yes it is")], 0)
    assert tokenizer.decode([t for t in encoded.targets if t != NO_TARGET]) == " yes it is</s>"
    whole = tokenizer.decode(encoded.ids)
    assert whole == f"{SYSTEM} USER: what? ASSISTANT: yes it is</s>"
    asked = encode(tokenizer, "v1", [("what?", None)], 0)
    assert encoded.ids[: len(asked.ids)] == asked.ids  # training continues exactly what generation is asked with


def test_image_marks_are_counted() -> None:
    tokenizer = tiny_tokenizer(TEXTS)
    assert encode(tokenizer, "v1", [("what <image> colour", "red")], 1).images == 1
    assert encode(tokenizer, "v1", [("what", "red")], 3).images == 3
    assert encode(tokenizer, "v1", [("what", "<image> red")], 0).images == 0
    with pytest.raises(UserError, match="shows 1 pictures but has <image> 2 times"):
        encode(tokenizer, "v1", [("<image> <image> what", "red")], 1)


def test_benchmarks_are_asked_as_lmms_eval_asks_them() -> None:
    plain = AskedQuestion(0, "k", "What is THIS?", "x")
    options = dataclasses.replace(plain, options=("cat", "dog"))
    short = "\nAnswer the question using a single word or phrase."
    letter = "\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    assert prompt_of(plain, "gqa") == f"What is THIS?{short}"
    assert prompt_of(plain, "textvqa") == f"What is this?{short}"
    assert prompt_of(plain, "chartqa") == "What is THIS?\nAnswer the question with a single word."
    assert prompt_of(plain, "ocrbench") == "What is THIS?" == prompt_of(plain, "")
    assert prompt_of(options, "ai2d") == f"What is THIS?{letter}"
    assert prompt_of(options, "mmmu") == f"What is THIS?{letter.replace('dog', 'dog' + chr(10))}"
    mme = dataclasses.replace(plain, question="Is it a cat? Please answer yes or no.")
    assert prompt_of(mme, "mme") == f"Is it a cat?{short}"


# ---- views and tokens


def test_single_views_are_padded_with_the_mean_colour() -> None:
    views = single_view(torch.full((3, 10, 20), 200, dtype=torch.uint8), 20, (0.5, 0.25, 0.0))
    assert views.images.shape == (1, 3, 20, 20) and views.grid is None
    assert views.images[0, :, 0, 0].tolist() == [127, 63, 0] and views.images[0, :, 10, 10].tolist() == [200] * 3


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((100, 100), (2, 2)), ((50, 200), (3, 1)), ((200, 60), (1, 3)), ((20, 10), (1, 2)), ((9, 9), (1, 2))],
)
def test_the_grid_that_keeps_most_pixels(shape: tuple[int, int], grid: tuple[int, int]) -> None:
    grids = VlmRecipe.model_fields["grids"].default
    assert best_grid(shape, 32, grids) == grid


def test_tiles_show_the_picture_and_padding_is_cut_off_again() -> None:
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(80), indexing="ij")
    pixels = torch.stack([2 * rows, 2 * columns, rows * 0]).to(torch.uint8)
    views = anyres_views(pixels, 32, ((2, 2),))
    assert views.grid == (2, 2) and views.images.shape == (5, 3, 32, 32)
    whole = views.images[1:].unflatten(0, (2, 2)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).float()
    assert whole[:, :16].abs().max() == 0 and whole[:, 48:].abs().max() == 0  # 40x80 fills 32x64 in the middle
    assert (whole[1, 32, 1:-1] - torch.linspace(0, 158, 64)[1:-1]).abs().max() < 6
    cells = whole[:, ::8, ::8]
    assert unpad(cells, (40, 80)).shape == (3, 4, 8) and unpad(cells, (1, 900)).shape == (3, 2, 8)
    assert unpad(cells, (80, 40)).shape == (3, 8, 4)


def test_fewer_tokens() -> None:
    cells = torch.arange(2 * 3 * 5 * 4).float().view(2, 3, 5, 4)
    pooled = reduce_grid(cells, "pool", 2)
    assert pooled.shape == (2, 3, 2, 2) and reduce_grid(cells, "pool", 9) is not None
    assert torch.equal(reduce_grid(cells, "pool", 9), cells)
    folded = reduce_grid(cells, "unshuffle", 2)
    assert folded.shape == (2, 27, 2, 2) and folded.sum() == cells.sum()  # zeros past the edge


def slow_merge(tokens: list[torch.Tensor], keep: int) -> list[torch.Tensor]:
    """Token merging token by token, for one image."""
    groups = [[token, 1.0, place] for place, token in enumerate(tokens)]
    while len(groups) > keep:
        even, odd = groups[::2], groups[1::2]
        cosine = [[float(torch.cosine_similarity(o[0], e[0], dim=0)) for e in even] for o in odd]
        best = [max(range(len(even)), key=lambda at, row=row: row[at]) for row in cosine]
        count = min(len(groups) - keep, len(groups) // 2)
        gone = sorted(range(len(odd)), key=lambda at: -cosine[at][best[at]])[:count]
        sums = [[group[0] * group[1], group[1], group[2]] for group in even]
        for at in gone:
            sums[best[at]][0] = sums[best[at]][0] + odd[at][0] * odd[at][1]
            sums[best[at]][1] += odd[at][1]
        groups = [[total / size, size, place] for total, size, place in sums]
        groups += [odd[at] for at in range(len(odd)) if at not in gone]
        groups.sort(key=lambda group: group[2])
    return [group[0] for group in groups]


@pytest.mark.parametrize(("count", "keep"), [(16, 12), (17, 9), (25, 4)])
def test_token_merging_agrees_with_a_loop(count: int, keep: int) -> None:
    tokens = torch.randn(2, count, 8, generator=torch.Generator().manual_seed(count))
    merged = merge_tokens(tokens, keep)
    slow = torch.stack([torch.stack(slow_merge(list(rows), keep)) for rows in tokens])
    assert torch.allclose(merged, slow, atol=1e-5)


# ---- training


def test_the_schedule_is_the_librarys_and_epochs_cover_everything() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    library = get_cosine_schedule_with_warmup(optimiser, 3, 30)
    for step in range(30):
        assert ramp(step, 30, 0.1) == pytest.approx(library.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        library.step()
    rows = [row for step in range(10) for row in rows_of_step(10, 4, step, seed=1)]
    assert all(sorted(rows[at : at + 10]) == list(range(10)) for at in range(0, 40, 10))
    assert rows[:10] != rows[10:20] and rows_of_step(3, 8, 0, 0) != [] and len(rows_of_step(3, 8, 1, 0)) == 3


def state(model: Llava) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.learned().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def align(steps: int) -> dict[str, object]:
    return {"data": "toy", "use": "captions", "batch": 4, "steps": steps, "learning_rate": 1e-2}


@pytest.mark.parametrize("tune", ["none", "lora", "full"])
def test_stage_one_trains_the_projector_alone_and_stage_two_what_is_tuned(language: Path, tune: str) -> None:
    both = changed(recipe(language), steps=2, batch=4, tune=tune, stage1=align(2), lora={"rank": 4, "alpha": 8})
    data = {"toy": ToyData(8, 4)}
    model = Llava(Oracle(), both, torch.device("cpu"), 0)
    before = state(model)
    frozen = copy.deepcopy(model.language.state_dict())
    torch.random.manual_seed(3)
    mark = torch.random.get_rng_state()
    after = trained(Oracle(), both, data, 0, CPU)
    assert torch.equal(torch.random.get_rng_state(), mark)  # global random state is left alone
    moved = {name for name, weight in state(after).items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == ({"projector"} if tune == "none" else {"projector", "language"})
    kept = {
        n: w for n, w in after.language.state_dict().items() if tune == "none" or (tune == "lora" and "lora_" not in n)
    }
    assert all(torch.equal(weight, frozen[name]) for name, weight in kept.items()) and (kept or tune == "full")
    first = changed(both, stage1=align(2), steps=1, learning_rate=1e-12, projector_learning_rate=1e-12)
    half = trained(Oracle(), first, data, 0, CPU)
    moved = [n for n, w in state(half).items() if (w - before[n]).abs().max() > 1e-6]
    assert moved and all(name.startswith("projector.") for name in moved)


def test_a_step_in_parts_is_the_same_step(language: Path) -> None:
    data = {"toy": ToyData(12, 4)}
    whole, parts = (
        trained(Oracle(), changed(recipe(language), steps=2, batch=6, accumulate=n), data, 0, CPU) for n in (1, 4)
    )
    for name, weight in state(whole).items():
        assert torch.allclose(weight, state(parts)[name], atol=2e-4), name


def test_padding_and_neighbours_change_no_loss(language: Path) -> None:
    model = Llava(Oracle(), recipe(language), torch.device("cpu"), 0)
    data = ToyData(3, 1).questions(TRAIN)
    texts = [encode(model.tokenizer, "v1", [(item.question * (1 + at), item.answer)], 1) for at, item in
             enumerate(data.questions[:3])]  # fmt: skip
    texts.append(encode(model.tokenizer, "v1", [("what colour", "red")], 0))
    pictures = [[model.view(data.images.read(torch.tensor([item.row]))[0])] for item in data.questions[:3]] + [[]]
    with torch.no_grad():
        together = model.loss(texts, pictures)
        alone = sum(model.loss([text], [some]) for text, some in zip(texts, pictures, strict=True))
    assert torch.allclose(together, alone, rtol=1e-5)
    score, greedy = model.likelihood(texts[0], pictures[0])
    assert score == pytest.approx(-float(model.loss(texts[:1], pictures[:1])), rel=1e-5) and isinstance(greedy, bool)
    prompts = [encode(model.tokenizer, "v1", [(item.question * (1 + at), None)], 1) for at, item in
               enumerate(data.questions[:3])]  # fmt: skip
    side_by_side = model.answer(prompts, pictures[:3], 5)
    assert side_by_side == [model.answer([p], [s], 5)[0] for p, s in zip(prompts, pictures, strict=False)]


def test_an_interrupted_training_goes_on_to_the_same_weights(language: Path, tmp_path: Path, monkeypatch) -> None:
    plan = changed(
        recipe(language), steps=4, batch=4, stage1=align(3), tune="lora", lora={"rank": 4, "alpha": 8, "dropout": 0.3},
        save_every=2,
    )  # fmt: skip
    data = {"toy": ToyData(10, 4)}
    straight = state(trained(Oracle(), plan, data, 0, CPU))
    where = dataclasses.replace(CPU, folder=tmp_path / "vlm")
    from eval_suite.vlm import training

    calls, real = [], training.one_step

    def dying(*arguments: object) -> float:
        calls.append(1)
        if len(calls) in (3, 7):  # in stage 1 after a save, in stage 2 between saves
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "one_step", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(Oracle(), plan, data, 0, where)
        with pytest.raises(UserError, match="it goes on from there"):
            load_vlm(tmp_path / "vlm")
    done = trained(Oracle(), plan, data, 0, where)
    assert same(state(done), straight)
    count = len(calls)
    assert same(state(trained(Oracle(), plan, data, 0, where)), straight) and len(calls) == count  # nothing to do
    with pytest.raises(UserError, match="another recipe, backbone, language model or data"):
        trained(Oracle(), changed(plan, steps=5), data, 0, where)
    other = dataclasses.replace(CPU, folder=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        calls.clear()
        trained(Oracle(), plan, data, 1, other)
    shutil.rmtree(tmp_path / "other" / "checkpoints")  # those of another seed, alike in every shape, copied in
    shutil.copytree(tmp_path / "vlm" / "checkpoints", tmp_path / "other" / "checkpoints")
    with pytest.raises(UserError, match="is of another training"):
        trained(Oracle(), plan, data, 1, other)


def probe_of(node: VlmRecipe) -> LlavaProbe:
    probe = LlavaProbe(probe="llava", name="vlm", data="toy")
    probe.shares(node)
    return probe


def test_an_oracle_is_read_and_a_constant_backbone_is_not(language: Path) -> None:
    """Four colours: a constant backbone can only say the most common answer, which takes no long training."""
    data, node = ToyData(48, 24), changed(recipe(language), prompt="tokenizer", steps=100)
    best = probe_of(node).run(probed(Oracle()), data, 0)[0]
    worst = probe_of(changed(node, steps=10)).run(probed(Constant()), data, 0)[0]
    assert best.metric == "exact_match" and best.protocol is not None and "tune full" in best.protocol
    assert best.n == 48 and best.value > 60 and worst.value < 45


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "train", "steps", "least"), [("tokenizer", 48, 150, 90), ("v1", 64, 120, 55)])
def test_an_oracle_near_the_ceiling(language: Path, prompt: str, train: int, steps: int, least: float) -> None:
    """Measured: 100 with the short prompt, 71 with Vicuna's long one in as many steps as a test may take."""
    data, node = ToyData(train, 24), changed(recipe(language), prompt=prompt, steps=steps)
    best, worst = (probe_of(node).run(probed(backbone), data, 0)[0] for backbone in (Oracle(), Constant()))
    assert best.value > least and worst.value < 45


class Pictures(ToyData):
    """Two pictures a question: what colour has the second one's first square?"""

    def questions(self, split: str) -> QuestionImages:
        plain = super().questions(split)
        asked = [dataclasses.replace(item, more=((item.row + 1) % len(plain.images),)) for item in plain.questions]
        return QuestionImages(plain.images, asked, "exact")


@pytest.mark.parametrize(
    "fields",
    [{"views": "anyres"}, {"views": "anyres", "reduce": "pool", "side": 2}, {"reduce": "unshuffle", "side": 2},
     {"reduce": "tome", "side": 3}, {"projector": "norm_mlp2x_gelu", "dtype": "bfloat16"},
     {"gradient_checkpointing": True}],
    ids=["anyres", "anyres-pool", "unshuffle", "tome", "norm-bf16", "checkpointing"],
)  # fmt: skip
def test_every_way_to_show_a_picture_trains_and_answers(language: Path, fields: dict[str, object]) -> None:
    node = changed(recipe(language), steps=2, batch=3, **fields)
    result = probe_of(node).run(probed(Oracle()), Pictures(4, 3), 0)[0]
    assert 0 <= result.value <= 100 and result.n == 6
    model = trained(Oracle(), node, {"toy": Pictures(4, 3)}, 0, CPU)
    shape = (3, 24, 60) if node.views == "anyres" else (3, 60, 60)
    tokens = model.tokens([model.view(torch.zeros(shape, dtype=torch.uint8))])[0]
    side = node.side or 4
    tiles = {2: 2 * (4 + 1), 4: 4 * (8 + 1)}[side] if node.views == "anyres" else 0  # 24x60 in 2x1 views
    assert len(tokens) == side**2 + tiles
    assert tokens.shape[1] == 48


def test_stitched_tokens_stand_in_raster_order_with_row_ends(language: Path) -> None:
    model = Llava(Oracle(), changed(recipe(language), views="anyres"), torch.device("cpu"), 0)
    model.projector.layers = torch.nn.Identity()
    model.projector.row_end = torch.nn.Parameter(torch.full((1,), -1.0))
    cells = torch.arange(5 * 4).float().view(5, 1, 2, 2)  # a whole view and 2x2 tiles of 2x2 cells
    tokens = model.projector(cells, [Views(torch.zeros(5, 3, 2, 2), (2, 2), (64, 64))])[0].flatten().tolist()
    assert tokens == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1, 12, 13, 16, 17, -1, 14, 15, 18, 19, -1]


# ---- what cannot work is said in a line


def test_language_models_that_cannot_be_used(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

    def refused(folder: Path, message: str, **fields: object) -> None:
        with pytest.raises(UserError, match=message) as error:
            Llava(Oracle(), changed(recipe(folder), **fields), torch.device("cpu"), 0)
        assert len(str(error.value).splitlines()) <= 2

    refused(tmp_path / "nothing", "cannot load the language model")
    bare = tiny_language(tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    refused(bare, "cannot load the tokenizer|slow tokenizer")
    refused(tiny_language(tmp_path / "endless", eos_token=None), "no end-of-sequence token")
    refused(tiny_language(tmp_path / "plain", chat_template=None), "no chat template", prompt="tokenizer")
    padless = tiny_language(tmp_path / "padless")  # no padding token is no error
    assert Llava(Oracle(), recipe(padless), torch.device("cpu"), 0).tokenizer.pad_token == "</s>"
    tokenizer = tiny_tokenizer()
    small = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(**small, intermediate_size=16)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "is not causal")
    T5ForConditionalGeneration(T5Config(vocab_size=200, d_model=16, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    refused(tmp_path / "t5", "encoder-decoder")
    other = tiny_language(tmp_path / "other")
    tiny_tokenizer([f"word{n}" for n in range(40)]).save_pretrained(other)
    refused(other, "do not belong together")
    refused(tiny_language(tmp_path / "fine"), "takes 32x32 px only", size=48)
    refused(tmp_path / "fine", "no inner layers", layer=-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"stage2": None}, "wants stage1, stage2 or both"), ({"reduce": "pool"}, "reduce and side go together"),
     ({"stage2": None, "stage1": {"data": "a"}}, "prompt: plain shows none"),
     ({"reduce": "tome", "side": 2, "views": "anyres"}, "no grid to stitch"), ({"tunes": "full"}, "did you mean")],
)  # fmt: skip
def test_recipes_that_make_no_sense(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(Path("x"), **fields)


def test_conversations_of_llavas_files(tmp_path: Path, language: Path) -> None:
    from test_readers_layouts import opened

    data: LabelledData = opened("questions", make.llava(tmp_path), file="mix.json", format="llava")
    told = data.conversations("train")
    assert [(item.rows, len(item.turns)) for item in told.conversations] == [((0,), 2), ((), 1)]
    assert told.conversations[0].turns[0] == ("<image>\nWhat is it?", "A cat.")
    node = changed(recipe(language), steps=2, batch=2, use="conversations")
    trained(Constant(), node, {"toy": data}, 0, CPU)  # a batch with and without a picture
    (tmp_path / "coco" / "train2017" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1.jpg is missing"):
        data.conversations("train")
    make.dump(tmp_path / "mix.json", [{"id": "1", "conversations": [{"from": "human", "value": "a"}]}])
    with pytest.raises(UserError, match="is not human and gpt in turn"):
        data.conversations("train")
    make.text(tmp_path / "mix.json", "[{]")
    with pytest.raises(UserError, match="is not JSON"):
        data.conversations("train")


# ---- all eleven benchmarks, from the command line


def whole_suite(root: Path) -> Path:
    """A suite over every benchmark's own files, trained for two steps on LLaVA's."""
    from test_readers_layouts import EXPECTED

    words = "what when how many is it red read brand cat dog which part who yes no Monet centre"
    language = tiny_language(root / "language", [words])
    llava = {"reader": "questions", "root": str(make.llava(root / "llava")), "file": "mix.json", "format": "llava"}
    data: dict[str, object] = {"mix": llava}
    for name in EXPECTED:
        folder = make.vlm_benchmark(root / name, name)
        data[name] = {"reader": "vlm_benchmark", "benchmark": name, "root": str(folder)}
    stage = {"data": "mix", "batch": 2, "steps": 2}
    vlm = {"language_model": str(language), "tune": "full", "stage1": {**stage, "prompt": "plain"}, "stage2": stage,
           "reduce": "pool", "side": 4}  # fmt: skip
    order = sorted(EXPECTED, key=lambda name: name != "gqa")  # whose files are damaged below: it should show at once
    probes = {name: {"probe": "llava", "data": name, "reply_tokens": 6} for name in order}
    suite = {"name": "whole", "data": data, "vlm": vlm, "probes": probes}
    return make.text(root / "suite.yaml", yaml.safe_dump(suite))


def test_every_benchmark_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, out = whole_suite(tmp_path), tmp_path / "metrics.json"
    assert guard(main, ["data", "check", str(suite)]) == 0
    assert "2 conversations of 3 turns, 1 of them without an image" in capsys.readouterr().out
    arguments = [
        "run",
        "--backbone",
        "tiny:dino",
        "--suite",
        str(suite),
        "--out",
        str(out),
        "--cache",
        str(tmp_path / "c"),
    ]
    assert guard(main, [*arguments, "--only", "vlm"]) == 0
    metrics = read_metrics(out)
    counted = {
        "ai2d": "exact_match", "chartqa": "relaxed_accuracy", "docvqa": "anls", "gqa": "exact_match", "infovqa": "anls",
        "mme": "perception", "mmmu": "accuracy", "ocrbench": "accuracy", "pope": "f1", "seed": "accuracy",
        "textvqa": "vqa_accuracy",
    }  # fmt: skip
    assert {result.task: result.metric for result in metrics.results} == counted
    assert all(result.group == "vlm" and "single, rule" in str(result.protocol) for result in metrics.results)
    trained_folder = next((tmp_path / "c").glob("vlm-*"))
    with pytest.raises(
        UserError, match=r"vlm\.json names \".*\", a path .* Type it: load_vlm\(folder, language_model="
    ):
        load_vlm(trained_folder)  # a card may come from anywhere
    assert load_vlm(trained_folder, language_model=str(tmp_path / "language")).recipe.side == 4  # ready for lmms-eval

    def refused(message: str, *more: str) -> None:
        capsys.readouterr()
        assert guard(main, [*arguments, *more]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) <= 2 and "Traceback" not in error

    refused("there is no folder", f"data.pope.root={tmp_path / 'nowhere'}")
    refused('unknown group of probes "vlms"', "--only", "vlms")
    refused('unknown field "vlm.tunes"', "vlm.tunes=full")
    refused('wants data "nothing"', "vlm.stage2.data=nothing")
    (tmp_path / "gqa" / "images" / "n1.jpg").unlink()
    refused("n1.jpg is missing")
    make.text(tmp_path / "gqa" / "testdev_balanced_questions.json", "{")
    refused("testdev_balanced_questions.json is not JSON")


def test_a_suite_without_its_model_and_a_model_without_a_probe(tmp_path: Path) -> None:
    text = "name: s\ndata: {a: {reader: class_folders, root: x}}\nprobes: {v: {probe: PROBE, data: a}}\n"
    path = make.text(tmp_path / "s.yaml", text.replace("PROBE", "llava"))
    with pytest.raises(UserError, match="say which model in the suite's vlm node"):
        load_suite(path)
    vlm = "vlm: {language_model: x, tune: none, stage1: {data: a, use: captions, prompt: v1}}\n"
    assert load_suite(make.text(path, text.replace("PROBE", "llava") + vlm)).only(["vlm"]).vlm is not None
    with pytest.raises(UserError, match="the vlm node is used by no probe"):
        load_suite(make.text(path, text.replace("PROBE", "knn") + vlm))


def test_a_sharpened_teacher_shows_more_tokens_or_as_many(language: Path) -> None:
    """`sharp:` does the fusing; pooled to the teacher's grid it costs the language model no more than the teacher."""
    adapter = Path(__file__).parents[2] / "featsharp_adapter" / "shipped" / "tiny-clip-featup-2x"
    counts = {}
    for spec in ("tiny:clip", f"sharp:{adapter}"):
        for fields in ({}, {"reduce": "pool", "side": 7}):
            model = Llava(load_backbone(spec), changed(recipe(language), **fields), torch.device("cpu"), 0)
            views = model.view(torch.zeros(3, 50, 60, dtype=torch.uint8))
            counts[spec.split(":")[0], bool(fields)] = len(model.tokens([views])[0])
    assert counts == {("tiny", False): 49, ("tiny", True): 49, ("sharp", False): 196, ("sharp", True): 49}
