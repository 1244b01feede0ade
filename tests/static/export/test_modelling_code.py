"""The modelling file as text: small, self-contained, and named where config.json says it is."""

from __future__ import annotations

import ast

import pytest

from gqacheck.export.code import SUPPORTED, architecture, auto_map, block_norms, model_type, modelling_file
from gqacheck.geometry.families import family_by_model_type, family_by_name

FAMILIES = sorted(SUPPORTED)
_PROMISED = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"}
_MAX_LINES = 150


def test_code_supports_what_is_promised() -> None:
    assert _PROMISED <= SUPPORTED


@pytest.mark.parametrize("name", FAMILIES)
def test_code_family_is_one_of_ours_and_dense(name: str) -> None:
    family = family_by_name(name)
    assert family is not None
    assert family.name == name
    assert family.stock_class
    assert "experts" not in family.roles
    assert family_by_model_type(model_type(name)) is None or family_by_model_type(model_type(name)) == family


@pytest.mark.parametrize("name", FAMILIES)
def test_code_file_is_small_and_self_contained(name: str) -> None:
    file, source = modelling_file(name)
    tree = ast.parse(source)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert imported == {"torch", "transformers"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert called.isdisjoint({"exec", "eval", "compile", "open", "__import__", "globals", "print"})
    assert file.endswith(".py")
    lines = source.splitlines()
    assert len(lines) <= _MAX_LINES
    assert max(map(len, lines)) <= 120
    assert "$" not in source
    assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))


@pytest.mark.parametrize("name", FAMILIES)
def test_code_auto_map_names_classes_of_the_file(name: str) -> None:
    file, source = modelling_file(name)
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    entries = auto_map(name)
    assert entries.keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    for entry in entries.values():
        module, _, class_name = entry.partition(".")
        assert f"{module}.py" == file
        assert class_name in classes
    assert entries["AutoModelForCausalLM"].endswith("." + architecture(name))
    # loss functions are chosen by this part of the class name, and GenerationMixin has to be a direct base
    assert "ForCausalLM" in architecture(name)
    first, *_, last = [ast.unparse(base) for base in classes[architecture(name)].bases]
    assert (first, last) == ("Sized", "GenerationMixin")
    assert f'model_type = "{model_type(name)}"' in source


def test_code_defines_no_attention_class_that_transformers_would_take_for_its_own() -> None:
    # with one, set_attn_implementation refuses the whole file
    for name in FAMILIES:
        for node in ast.parse(modelling_file(name)[1]).body:
            if isinstance(node, ast.ClassDef):
                own = any("nn.Module" in ast.unparse(base) for base in node.bases)
                assert not (own and "Attention" in node.name)


@pytest.mark.parametrize("name", FAMILIES)
def test_code_block_norms_are_norms_of_the_family(name: str) -> None:
    family = family_by_name(name)
    assert family is not None
    known = {spelling for spellings in family.norms.values() for spelling in spellings}
    attention, mlp = block_norms(name)
    assert set(attention).isdisjoint(mlp)
    if family.norms:  # OLMo's have no weights
        assert {*attention, *mlp} <= known


def test_code_names_do_not_collide() -> None:
    for made in (model_type, architecture, lambda name: modelling_file(name)[0]):
        assert len({made(name) for name in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("function", [modelling_file, auto_map, architecture, block_norms])
def test_code_unsupported_family_is_a_key_error(function: object) -> None:
    with pytest.raises(KeyError):
        function("mixtral")  # type: ignore[operator]
