"""The committed fixtures are what their README says: they load, read text, copy, and keep within their size."""

import hashlib
import math
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from fixtures.corpus import HELDOUT_FILE, clean_paragraph, read_heldout  # noqa: E402 (after the skips)
from fixtures.train import SPECS, copy_nats, encode_documents, heldout_nats  # noqa: E402 (after the skips)

FOLDER = Path(__file__).parents[1] / "fixtures"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
TEXT_MODELS = [spec.name for spec in SPECS if spec.task == "text"]
EVALUATED_TOKENS = 4096  # of the held-out text: enough to agree with the whole of it within a few per cent


def load(name: str):
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(FOLDER / name)


def readme_figure(name: str, label: str) -> float:
    """Return the number that the README's table gives for one model."""
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in README.splitlines() if line.startswith("|")]
    header = next(row for row in rows if label in row)
    row = next(row for row in rows if row[0] == f"`{name}`" and len(row) == len(header))
    return float(row[header.index(label)].replace(",", ""))


@pytest.fixture(autouse=True, scope="module")
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_model_reads_heldout_as_well_as_the_readme_says(name):
    model, tokenizer = load(name)
    tokens = encode_documents(tokenizer, read_heldout())[:EVALUATED_TOKENS]
    perplexity = math.exp(heldout_nats(model, tokens))
    assert perplexity == pytest.approx(readme_figure(name, f"PPL, first {EVALUATED_TOKENS} tokens"), rel=0.01)
    assert perplexity == pytest.approx(readme_figure(name, "held-out PPL"), rel=0.25)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_folder_is_the_declared_shape_in_bf16(spec):
    tensors = safetensors_torch.load_file(FOLDER / spec.name / "model.safetensors")
    config = spec.config
    layer = "model.layers.0.self_attn."
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors[layer + "q_proj.weight"].shape == (config.num_attention_heads * head_dim, config.hidden_size)
    assert tensors[layer + "k_proj.weight"].shape == (config.num_key_value_heads * head_dim, config.hidden_size)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert all(torch.equal(tensor.float(), tensor.half().float()) for tensor in tensors.values()), "not exact in fp16"
    assert "lm_head.weight" in tensors


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_weights_are_the_ones_the_readme_names(spec):
    digest = hashlib.sha256((FOLDER / spec.name / "model.safetensors").read_bytes()).hexdigest()
    assert digest in README


def test_qwen2_biases_are_far_from_zero():
    tensors = safetensors_torch.load_file(FOLDER / "qwen2-28x4" / "model.safetensors")
    biases = {name: tensor.float() for name, tensor in tensors.items() if name.endswith("_proj.bias")}
    assert len(biases) == 3 * 6
    assert all(float(bias.abs().mean()) > 0.05 for bias in biases.values())


def test_copy_model_predicts_the_second_copy():
    model, _ = load("copy-12x3")
    first, second = copy_nats(model, model.config.vocab_size, seed=1)
    assert first > 5.0
    assert second < 1.0


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_tokenizer_returns_the_text_it_was_given(name):
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / name)
    text = "Return the value of the option. Größe, 剪枝."
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_heldout_text_is_prose_and_not_in_the_training_side():
    paragraphs = [paragraph for text in read_heldout() for paragraph in text.split("\n\n")]
    assert 100_000 < HELDOUT_FILE.stat().st_size < 200_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(clean_paragraph(paragraph) == paragraph for paragraph in paragraphs)


@pytest.mark.parametrize(
    "block", ["expr ::= term", ">>> x = 1", "| a | b |", "x = f(y) + g(z)", "First:\n    code here"]
)
def test_clean_paragraph_refuses_what_is_not_prose(block):
    assert clean_paragraph(block) is None


def test_committed_fixtures_stay_small():
    weights = sum(path.stat().st_size for path in FOLDER.glob("*/model.safetensors"))
    pickles = sum(path.stat().st_size for path in (FOLDER / "old_pickles").iterdir())
    assert weights < 14_000_000
    assert pickles < 1_000_000


def test_no_fixture_names_a_folder_of_the_machine_that_made_it():
    for path in [*FOLDER.rglob("*.json"), *(FOLDER / "old_pickles").iterdir(), HELDOUT_FILE]:
        assert not re.search(rb"/(?:home|root|tmp|work)/\w", path.read_bytes()), path.name
