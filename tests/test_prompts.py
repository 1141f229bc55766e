"""Placeholders, text twins, tokens and the splice of S*."""

from __future__ import annotations

import pytest
import torch

from profusion_cli.errors import InputError
from profusion_cli.jobs.configuration import load_config
from profusion_cli.prompt_files import PromptLine, read_prompts
from profusion_cli.prompts import EACH, alternatives, foreign_marks, parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.denoiser import tokenize_prompt
from profusion_cli.runtime.device import resolve_placement
from profusion_cli.runtime.text import TextConditioner
from tests.conftest import ok


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("S*", (0,)),
        ("S* in anime style", (0, " in anime style")),
        ("a photo of S*", ("a photo of ", 0)),
        ("(S*), S*'s dog and S*.", ("(", 0, "), ", 0, "'s dog and ", 0, ".")),
        ("S1* on a beach", (0, " on a beach")),
        ("ein Foto von S*, bitte", ("ein Foto von ", 0, ", bitte")),
    ],
)
def test_placeholders_are_found(text, pieces):
    assert parse_prompt(text).pieces == pieces


@pytest.mark.parametrize("text", ["", "a photo", "XS* style", "S*x", "S**", "s* in style", "S * x", "holder"])
def test_a_prompt_without_the_placeholder_is_an_error(text):
    with pytest.raises(InputError, match=r"no placeholder S\*"):
        parse_prompt(text)


def test_another_placeholder():
    assert parse_prompt("a holder in the placeholder of holders", "holder").pieces == (
        "a ",
        0,
        " in the placeholder of holders",
    )
    assert parse_prompt("holder1 and holder2", "holder", 2).pieces == (0, " and ", 1)
    with pytest.raises(InputError, match="no placeholder <me>"):
        parse_prompt("S* in style", "<me>")


def test_several_subjects():
    each = parse_prompt("S* in a suit", subjects=2)
    assert each.pieces == (EACH, " in a suit")
    assert not each.joint
    assert each.named(1) == (1, " in a suit")
    joint = parse_prompt("S2* beside S1* and S2*", subjects=2)
    assert joint.pieces == (1, " beside ", 0, " and ", 1)
    assert joint.joint
    assert joint.only(0, ["a man", "a dog"]) == ("a dog", " beside ", 0, " and ", "a dog")
    with pytest.raises(InputError, match=r"names S2\*, but there is only one subject"):
        parse_prompt("S2* in a suit")
    with pytest.raises(InputError, match=r"names S0\*"):
        parse_prompt("S0* in a suit", subjects=2)
    with pytest.raises(InputError, match="never names subject 2 of 2"):
        parse_prompt("S1* in a suit", subjects=2)
    with pytest.raises(InputError, match="mixes"):
        parse_prompt("S* beside S1*", subjects=2)


def test_text_twin():
    assert parse_prompt("S* and S*'s hat").twin(["a person"]) == "a person and a person's hat"
    assert parse_prompt("S1* with S2*", subjects=2).twin(["a man", "a dog"]) == "a man with a dog"
    assert parse_prompt("S* sleeping", subjects=2).twin(["a man", "a dog"]) == "a man and a dog sleeping"
    assert parse_prompt("S* sleeping", subjects=2).twin(["a man", "a man"]) == "a man sleeping"


def test_choices_are_prompts_of_their_own():
    """All of them combined, in their order, and each once; what has no choice stays as it is."""
    assert alternatives("S* in a {red|blue} hat") == ["S* in a red hat", "S* in a blue hat"]
    assert alternatives("{a|b} S* {c|}") == ["a S* c", "a S* ", "b S* c", "b S* "]
    assert alternatives("S* {x|x}") == ["S* x"]
    for plain in ("S* {alone}", "S* | b", "{} S*", "S* {a"):
        assert alternatives(plain) == [plain]
    with pytest.raises(InputError, match="more than 1000"):
        alternatives("S* " + "{a|b|c}" * 7)


def test_marks_of_other_tools_are_found():
    marked = "S* (hat:1.2), ((red)), [dog], <lora:x:0.8> BREAK (plain) 3:2 (S*)"
    assert foreign_marks(marked) == ["(hat:1.2)", "((red))", "[dog]", "<lora:x:0.8>", "BREAK"]
    assert foreign_marks("S* (a person), at 3:2, on a break") == []


def test_prompts_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffS* in anime style\n\n# a remark\n  S* auf Reisen, schön  \r\n".encode())
    assert [entry.text for entry in read_prompts(str(file))] == ["S* in anime style", "S* auf Reisen, schön"]
    file.write_text("# nothing\n\n")
    with pytest.raises(InputError, match="no prompts"):
        read_prompts(str(file))
    file.write_bytes(b"S* \xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_prompts(str(file))


def test_lines_with_settings(tmp_path):
    """As JSON or YAML; a line that begins with a choice is a prompt, and a choice keeps its settings."""
    file = tmp_path / "prompts.txt"
    lines = ['{"prompt": "S* at sea", "seed": 3, "width": 192}', "{prompt: S* {a|b}, gamma: 0.3}", "{red|blue} S*"]
    file.write_text("\n".join(lines).replace("{prompt: S* {a|b},", '{prompt: "S* {a|b}",'))
    first, second, third = read_prompts(str(file))
    assert (first.text, first.settings) == ("S* at sea", {"seed": 3, "width": 192}) and not third.settings
    assert [(entry.text, entry.settings) for entry in second.each()] == [(f"S* {x}", {"gamma": 0.3}) for x in "ab"]
    common = load_config("tiny-random")
    own = first.config(common)
    assert (own.seed, own.sample.width, own.sample.steps) == (3, 192, common.sample.steps)
    assert third.config(common) is common
    for line, word in (("{prompt: 3}", "no prompt"), ('{prompt: "S*"', None), ("{prompt: [}", "no mapping")):
        file.write_text(line)
        if word is None:
            assert read_prompts(str(file))[0].text == line
            continue
        with pytest.raises(InputError, match=word):
            read_prompts(str(file))
    for settings, word in (({"colour": 1}, "colour"), ({"gamma": 3}, "gamma"), ({"seed": "x"}, "seed")):
        with pytest.raises(InputError, match=f"Line 7.*{word}"):
            PromptLine("S*", settings, "Line 7").config(common)


# --- tokens --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(base_folder) -> TextConditioner:
    from profusion_cli.config import BaseConfig

    return BaseModel(BaseConfig(str(base_folder)), resolve_placement("cpu", "auto", False)).text


def test_tokens_are_those_of_the_prompt_with_a_word_in_place(text):
    """Cutting at the placeholder changes no other token, whatever stands beside it."""
    for prompt in ("a photo of S*, smiling", "S*'s dog", "the (S*)!", "S*"):
        whole = text.tokenizer(prompt.replace("S*", "holder"), padding="max_length", max_length=77).input_ids
        tokens = text.tokenize(parse_prompt(prompt).pieces)
        place = whole.index(7862)  # "holder"
        assert tokens.slots == ((place, 0),)
        assert [t for i, t in enumerate(tokens.ids) if i != place] == [t for i, t in enumerate(whole) if i != place]


def test_s_star_replaces_token_and_position(text):
    tokens = text.tokenize(parse_prompt("a S* b S* c").pieces)
    word = torch.full((2, 1, text.embedding_dim), 7.0)
    embeds, spans = text.splice(tokens, {0: word})
    assert spans == [(2, 1), (4, 1)]
    assert embeds.shape == (2, 77, text.embedding_dim)
    assert (embeds[:, [2, 4]] == 7.0).all()
    plain, _ = text.splice(text.tokenize(("a x b x c",)), {})
    rest = [i for i in range(77) if i not in (2, 4)]
    torch.testing.assert_close(embeds[0, rest], plain[0, rest])


def test_words_after_a_long_s_star_move_back_and_keep_their_positions(text):
    tokens = text.tokenize(parse_prompt("a S* b").pieces, words=3)
    words = torch.full((1, 3, text.embedding_dim), 7.0)
    plain, _ = text.splice(text.tokenize(("a x b",)), {})
    sampled, spans = text.splice(tokens, {0: words})
    assert spans == [(2, 3)]
    assert sampled.shape[1] == 77
    torch.testing.assert_close(sampled[0, 5:], plain[0, 3:75])
    trained, _ = text.splice(text.tokenize(parse_prompt("a S* b").pieces, words=3, pad=False), {0: words}, True)
    assert trained.shape[1] == 1 + 1 + 3 + 1 + 1
    position = text.text_encoder.embeddings.position_embedding.weight
    torch.testing.assert_close(trained[0, 5] - position[5], plain[0, 3] - position[3])


def test_gradients_reach_s_star_through_the_encoder(text):
    word = torch.zeros(1, 1, text.embedding_dim, requires_grad=True)
    embeds, _ = text.splice(text.tokenize(parse_prompt("a S* b").pieces), {0: word})
    text.hidden_states(embeds)[0, 3, 0].backward()
    assert word.grad.abs().sum() > 0


def test_the_mask_is_causal(text):
    one, two = (text.encode(words) for words in ("a cat on the roof", "a cat in bed"))
    torch.testing.assert_close(one[:, :3], two[:, :3])
    assert (one[:, 3] - two[:, 3]).abs().max() > 1e-4


def test_too_long_prompts(text):
    filler = "one two three four five six seven eight nine ten " * 8
    tokens = tokenize_prompt(parse_prompt("S* counts " + filler), text, ["a person"], [1])
    assert tokens.lost == "four five six seven eight nine ten"  # 75 tokens: S*, counts, and 73 of 80 words
    with pytest.raises(InputError, match="falls off the end"):
        tokenize_prompt(parse_prompt(filler + "S*"), text, ["a person"], [1])
    with pytest.raises(InputError, match="falls off the end"):
        text.tokenize(parse_prompt("one " * 73 + "S*").pieces, words=4)
    assert text.tokenize(parse_prompt("one " * 72 + "S*").pieces, words=4).slots == ((73, 0),)


def test_plain_text_is_encoded_once(text, monkeypatch):
    calls = []
    original = TextConditioner.hidden_states
    monkeypatch.setattr(TextConditioner, "hidden_states", lambda self, e: calls.append(1) or original(self, e))
    first = text.encode("something never said before")
    assert text.encode("something never said before") is first
    assert len(calls) == 1


def test_the_cut_is_told(subject, tmp_path):
    prompt = "S* counts " + "one two three four five six seven eight nine ten " * 8
    result = ok("sample", subject, prompt, "--steps", 1, "-o", tmp_path / "x.png")
    assert "cut off" in result.stderr
    assert "nine ten" in result.stderr


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(InputError, match="UTF-8"):
        parse_prompt("S* \udcff")
