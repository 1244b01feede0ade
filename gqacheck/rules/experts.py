"""GQA305: the router, the experts that are stored and the config must agree on how many experts there are."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.checkpoint import Container
from gqacheck.geometry.config import config_layer_claim, config_number
from gqacheck.geometry.facts import Claim, Layer, Mlp, Projection, Subject
from gqacheck.rules.blocks import inside, names
from gqacheck.rules.heads import counted
from gqacheck.rules.predict import must_match, refused
from gqacheck.rules.rule import Quantity, Severity, Violation, by_container
from gqacheck.rules.spelling import config_name, spelled

_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")


def router_experts(subject: Subject) -> Iterator[Violation]:
    """The router, the experts that are stored and the config do not agree on how many experts there are.

    What it checks
        In every mixture-of-experts layer: rows of the router, length of its bias, number of experts stored
        (numbered modules, or the first size of a stacked tensor), the config's count, the num_experts that a pickled
        module of stacked experts carries, and that no more experts per token are asked for than there are.

    Why it matters
        The router's row number is the expert's number. Removing an expert without its row, or a row without its
        expert, sends tokens to the wrong expert without a word.

    What you would see
        Often nothing: transformers 5.23 runs with 4 or 7 router rows on 5 experts without an error. Too few experts
        for top_k: `selected index k out of range`. Folder: `MISMATCH … Reinit due to size mismatch` for the router,
        MISSING or UNEXPECTED for numbered experts.

    Fix
        Remove the same experts from the router's rows, its bias and the experts' list, then set the config's count;
        lower num_experts_per_tok when fewer experts than that are left.

    Known misses
        Router rows in another order than the experts. In a whole-module pickle a config count that differs from
        agreeing router and experts is a warning: the pickle runs from its modules.

    Source
        Mixtral, Qwen2-MoE and gpt-oss blocks of transformers 5.23; behaviour measured there.
    """
    for layer in subject.geometry.layers:
        if layer.mlp.kind == "moe":
            yield from _router_violations(subject, layer, layer.mlp)


def _router_violations(subject: Subject, layer: Layer, mlp: Mlp) -> Iterator[Violation]:
    router, stored = mlp.router, mlp.n_experts_stored or 0
    tensors = names(router)
    config, where = subject.geometry.config, config_name(subject)
    stated = config_layer_claim(config, "num_experts", layer.index, where)
    if router is not None and stored and router.rows != stored:
        yield Violation(
            message=f"the router has {router.rows} rows, but {counted(stored, 'expert')} are stored",
            layer=layer.index,
            tensors=tensors,
            expected=Quantity(stored, "router rows"),
            actual=Quantity(router.rows, "router rows"),
            source="tensor shapes",
            consequence=_router_consequence(subject, layer, router, stored, stated),
            fix=f"keep the router rows of the {stored} experts that are left, in their order",
        )
    if router is not None and router.bias is not None and router.bias != router.rows:
        yield Violation(
            message=f"the router's bias holds {router.bias} values, its weight has {router.rows} rows",
            layer=layer.index,
            tensors=(router.bias_tensor or router.tensor, router.tensor),
            expected=Quantity(router.rows, "bias values"),
            actual=Quantity(router.bias, "bias values"),
            source="tensor shapes",
            consequence=must_match(router.rows, router.bias)
            if subject.container is Container.MODULE
            else refused(subject, inside(layer, router.bias_tensor or "router bias"), (router.bias,), (router.rows,)),
            fix="cut the router's bias with the router's rows",
        )
    if stated is not None and stored and stated.value not in (stored, router.rows if router else stored):
        key = spelled(subject, "num_experts")
        yield Violation(
            message=f"{counted(stored, 'expert')} are stored, but {where} {key} is {stated.value}",
            layer=layer.index,
            tensors=tensors,
            expected=Quantity(stated.value, "experts"),
            actual=Quantity(stored, "experts"),
            source=f"tensor shapes, {stated.source}",
            consequence=_config_consequence(subject, layer, router, stored, stated),
            fix=f"set {key} to {stored} in {where}",
            severity=by_container(subject, folder=Severity.ERROR, module=Severity.WARNING),
        )
    yield from _stale_attribute(layer, mlp, stored)
    yield from _top_k(subject, layer, mlp, min(stored, router.rows) if router and stored else stored)


def _router_consequence(subject: Subject, layer: Layer, router: Projection, stored: int, stated: Claim | None) -> str:
    if subject.container is not Container.MODULE and stated is not None and stated.value != router.rows:
        built = (stated.value, router.columns)
        return refused(subject, inside(layer, router.tensor), (router.rows, router.columns), built)
    if subject.container is Container.FOLDER and stated is not None and stated.value != stored:
        return f"from_pretrained reports MISMATCH for the experts, {stored} stored and {stated.value} built, and raises"
    if router.rows > stored:
        extra = router.rows - stored
        return f"transformers 5.23 runs without an error and sends tokens to {extra} experts that are not there"
    return f"it runs without an error; the last {counted(stored - router.rows, 'expert')} can never be chosen"


def _config_consequence(subject: Subject, layer: Layer, router: Projection | None, stored: int, stated: Claim) -> str:
    if subject.container is Container.MODULE:
        return "the pickle runs from its modules; saved as a folder it no longer loads"
    if router is None:
        return f"from_pretrained builds {stated.value} experts for the {stored} that are stored"
    name = inside(layer, router.tensor)
    return refused(subject, name, (router.rows, router.columns), (stated.value, router.columns))


def _stale_attribute(layer: Layer, mlp: Mlp, stored: int) -> Iterator[Violation]:
    """Stacked experts whose module says another number; transformers 5 groups tokens by that number."""
    for expert in mlp.experts:
        says = expert.module.attributes.get("num_experts") if expert.module and expert.index == "stacked" else None
        if type(says) is not int or not stored or says == stored:
            continue
        yield Violation(
            message=f"{counted(stored, 'expert')} are stored, but the experts' module attribute num_experts is {says}",
            layer=layer.index,
            tensors=names(expert.fused, expert.down),
            expected=Quantity(stored, "experts"),
            actual=Quantity(says, "experts"),
            source="tensor shapes, module attribute num_experts",
            consequence="matrix batch sizes have to match, under the default grouped_mm; eager runs",
            fix=f"set num_experts to {stored} on the experts' module and on the router",
        )


def _top_k(subject: Subject, layer: Layer, mlp: Mlp, experts: int) -> Iterator[Violation]:
    claim = _top_k_claim(subject, mlp)
    if claim is None or not experts or claim.value <= experts:
        return
    yield Violation(
        message=f"{claim.source} asks for {claim.value} experts per token, but there are {experts}",
        layer=layer.index,
        tensors=names(mlp.router),
        expected=Quantity(experts, "experts per token, at most"),
        actual=Quantity(claim.value, "experts per token"),
        source=f"tensor shapes, {claim.source}",
        consequence="selected index k out of range",
        fix=f"lower it to {experts} or keep more experts",
    )


def _top_k_claim(subject: Subject, mlp: Mlp) -> Claim | None:
    """The number of experts per token: a pickle's modules first, for it runs from them, then the config."""
    modules = (mlp.router.module if mlp.router else None, mlp.module)
    for module in modules:
        for key in ("top_k", "num_experts_per_tok") if module else ():
            value = module.attributes.get(key) if module else None
            if type(value) is int:
                return Claim(value, f"module attribute {key}")
    for key in _TOP_K:
        value = config_number(subject.geometry.config, key)
        if value is not None:
            return Claim(value, f"{config_name(subject)} {key}")
    return None
