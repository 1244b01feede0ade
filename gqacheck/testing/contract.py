"""``PrunerContract``: the property suite that this project holds its own pruners to, for anybody's pruner."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, ClassVar

from gqacheck.errors import MissingDependency, UsageError
from gqacheck.testing import holding
from gqacheck.testing.amounts import hold_amounts, measured
from gqacheck.testing.complaint import ContractViolation, one_line, violation
from gqacheck.testing.declared import Declared, declared_by
from gqacheck.testing.models import RATIOS, part_sizes
from gqacheck.testing.requests import Part, PruningRequest
from gqacheck.testing.sameness import hold_same, hold_ties, shared_memory
from gqacheck.testing.strategies import SHARES, PruningCase
from gqacheck.testing.trials import Refused, cases_of, hold_all, noted, random_state

__all__ = ["PrunerContract", "broken_properties"]

EXTREME = (0.9, 0.99)
"""Ratios that leave less than one part of the blocks here, so that a pruner must stop at one."""
_AT_FULL_DEPTH = 40
_RESTLESS = 2
"""Another state of every global random generator than what a test run begins with."""


class PrunerContract:
    """What a sound pruner of GQA models does, as tests: subclass it, say how you prune, and let pytest collect it.

        >>> class TestMyPruner(PrunerContract):
        ...     parts = ("mlp",)
        ...     def prune(self, model, request):
        ...         return my_pruner(model, request.ratio, layers=request.layers)

    What a pruner is, declared by class attributes:

    parts: what it can be asked to cut: ``kv_groups``, ``queries`` (of each KV head alike), ``mlp``.
    families, ratios: the models it is for, by ``model_type`` and by (query heads per KV head, KV heads).
    layer_ranges: it can be asked to leave layers alone. False: every request is about all layers.
    uniform: it cuts every layer that it is asked to cut by the same share. False for one that ranks across layers.
    rounding: a layer then loses less than so many parts more or less than ratio times size.
    in_place: it changes the model that it is given. rewrites_weights: what stays is not what it was bit by bit (least
        squares, compensation); then nothing is compared with the masked parent.
    restores_rng: it leaves the state of torch's and Python's global random generators as it was.
    refusals: what it raises when it will not do what it is asked; allowed where a block would have nothing left and
        where a layer range reaches beyond the model.
    tolerated: codes of gqacheck's static rules that it is known to break.
    examples: how many cases a property is tried with, the slower ones a half or a third: first fixed ones in which each
    part meets every family, with biases and without, and every ratio, then drawn ones. The environment variable
    GQACHECK_CASES multiplies it.
    """

    parts: ClassVar[Sequence[Part]] = ("kv_groups", "mlp")
    families: ClassVar[Sequence[str]] = ("llama", "qwen2", "qwen3", "mistral", "gemma2")
    ratios: ClassVar[Sequence[tuple[int, int]]] = RATIOS
    layer_ranges: ClassVar[bool] = True
    uniform: ClassVar[bool] = True
    rounding: ClassVar[float] = 1
    in_place: ClassVar[bool] = False
    rewrites_weights: ClassVar[bool] = False
    restores_rng: ClassVar[bool] = False
    refusals: ClassVar[tuple[type[Exception], ...]] = (ValueError,)
    tolerated: ClassVar[Sequence[str]] = ()
    examples: ClassVar[int] = 24

    def prune(self, model: Any, request: PruningRequest) -> Any:
        """The pruned model: the one method to write. ``model`` is a transformers model in eval mode on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} needs a method prune(self, model, request) -> model")

    # The properties

    def test_pruned_model_equals_the_masked_parent(self) -> None:
        """In float64 and float32 the logits are the parent's with the removed parts masked.

        What was removed is found in the weights, so the pruner need not tell. Skipped for ``rewrites_weights``.
        """
        __tracebackhide__ = True
        self._skip_if(self.rewrites_weights, "it rewrites weights, so the masked parent is another model")

        def equals_the_masked_parent(case: PruningCase) -> None:
            __tracebackhide__ = True
            for dtype in holding.WITHIN:
                holding.hold_masked(self._pruned(case, dtype), case, dtype)

        self._for_all(equals_the_masked_parent)

    def test_query_heads_keep_their_own_kv_heads(self) -> None:
        """Against the parent's weights every query head reads the KV head it was trained with (GQA601 to GQA608)."""
        __tracebackhide__ = True

        def keeps_pairs_together(case: PruningCase) -> None:
            __tracebackhide__ = True
            holding.hold_pairing(self._pruned(case), case)

        self._for_all(keeps_pairs_together)

    def test_shapes_attributes_and_config_agree(self) -> None:
        """No static rule complains of the live model (GQA1xx to GQA4xx), stale attributes and config included."""
        __tracebackhide__ = True

        def is_in_step(case: PruningCase) -> None:
            __tracebackhide__ = True
            holding.hold_in_step(self._pruned(case), case, self._declared.tolerated)

        self._for_all(is_in_step)

    def test_what_was_asked_for_goes_and_nothing_else(self) -> None:
        """Each layer in range loses ratio times its parts, to ``rounding``; all else is whole, ties included."""
        __tracebackhide__ = True

        def removes_what_was_asked(case: PruningCase) -> None:
            __tracebackhide__ = True
            child = self._pruned(case)
            hold_amounts(child, case, self.rounding, uniform=self.uniform)
            hold_ties(child, case)

        self._for_all(removes_what_was_asked)

    def test_ratio_zero_changes_nothing(self) -> None:
        """Not a bit of a weight, not a number of the config; with ``rewrites_weights`` not a size."""
        __tracebackhide__ = True

        def changes_nothing(case: PruningCase) -> None:
            __tracebackhide__ = True
            child = self._pruned(case)
            if self.rewrites_weights:
                hold_amounts(child, case, 0, uniform=True)
            else:
                parent = case.config.build("float32")
                hold_same(parent, child, case, "ratio 0 changed the model (the given one, then the pruned one)")

        self._for_all(changes_nothing, shares=(0.0,))

    def test_extreme_ratio_leaves_something_or_is_refused(self) -> None:
        """Where less than one part would stay, one stays and the model is sound, or one of ``refusals`` is raised."""
        __tracebackhide__ = True

        def leaves_something(case: PruningCase) -> None:
            __tracebackhide__ = True
            try:
                child = self._raw(case, "float32")
            except self._declared.refusals as error:
                self._check_refusal(error, case)
                return
            holding.hold_in_step(child, case, self._declared.tolerated)
            for layer, sizes in enumerate(measured(child, case)):
                if min(sizes.values()) < 1:
                    raise violation(f"layer {layer} is left with {min(sizes.values()):.3g} heads or channels", case)

        self._for_all(leaves_something, shares=EXTREME)

    def test_layers_beyond_the_model_are_left_out_or_refused(self) -> None:
        """A range that ends beyond the last layer cuts up to the last, or one of ``refusals`` is raised."""
        __tracebackhide__ = True
        self._skip_if(not self.layer_ranges, "it takes no layer range")

        def survives_a_range_beyond(case: PruningCase) -> None:
            __tracebackhide__ = True
            start, _ = case.request.layers or (0, 0)
            request = PruningRequest(
                case.request.ratio, case.request.parts, (start, case.config.n_layers + 2), case.request.seed
            )
            beyond = PruningCase(case.config, request)
            try:
                child = self._raw(beyond, "float32")
            except self._declared.refusals as error:
                self._check_refusal(error, beyond)
                return
            hold_amounts(child, beyond, self.rounding, uniform=self.uniform)

        self._for_all(survives_a_range_beyond, one_in=2)

    def test_saved_model_reloads_as_it_was(self) -> None:
        """Through ``torch.save`` and through ``gqacheck.export_model`` the logits come back equal to the bit."""
        __tracebackhide__ = True

        def reloads(case: PruningCase) -> None:
            __tracebackhide__ = True
            with tempfile.TemporaryDirectory() as folder:
                holding.hold_round_trip(self._pruned(case), case, folder)

        self._for_all(reloads, one_in=3)

    def test_same_request_gives_the_same_model(self) -> None:
        """Whatever was drawn from global random generators before; and with ``restores_rng`` they are left alone."""
        __tracebackhide__ = True

        def is_deterministic(case: PruningCase) -> None:
            __tracebackhide__ = True
            with random_state(0):
                one = self._pruned(case)
            with random_state(_RESTLESS) as untouched:
                other = self._pruned(case)
                restored = untouched()
            hold_same(one, other, case, "the same request gave two models")
            if self.restores_rng and not restored:
                raise violation("the state of a global random generator is another one afterwards", case)

        self._for_all(is_deterministic, one_in=2)

    def test_given_model_is_left_alone(self) -> None:
        """Weights, attributes and config are as before and no memory is shared. Skipped for ``in_place``."""
        __tracebackhide__ = True
        self._skip_if(self.in_place, "it prunes in place")

        def leaves_the_given_model(case: PruningCase) -> None:
            __tracebackhide__ = True
            parent, original = case.config.build("float32"), case.config.build("float32")
            child = self._call(parent, case)
            hold_same(original, parent, case, "the given model was changed (in_place = True, if that is meant)")
            shared = "" if child is parent else shared_memory(child, parent)
            if child is parent or shared:
                what = "is the given one" if child is parent else f"shares the memory of {shared} with it"
                raise violation(f"the given model is to stay, and what came back {what}", case)

        self._for_all(leaves_the_given_model, one_in=2)

    def test_pruned_model_trains(self) -> None:
        """A backward pass gives every parameter a finite gradient, and a step changes them."""
        __tracebackhide__ = True

        def trains(case: PruningCase) -> None:
            __tracebackhide__ = True
            holding.hold_training(self._pruned(case), case.config.build("float32"), case)

        self._for_all(trains, one_in=2)

    def test_every_way_of_running_it_agrees(self) -> None:
        """Eager and sdpa attention, a KV cache and padded batches give the same logits (GQA707 to GQA709)."""
        __tracebackhide__ = True

        def agrees(case: PruningCase) -> None:
            __tracebackhide__ = True
            holding.hold_ways(self._pruned(case), case)

        self._for_all(agrees, one_in=3)

    # What they are made of

    @property
    def _declared(self) -> Declared:
        __tracebackhide__ = True
        return declared_by(self)

    def _for_all(
        self, holds: Callable[[PruningCase], None], *, one_in: int = 1, shares: Sequence[float] = SHARES
    ) -> None:
        """Tries ``holds`` with one in so many of the cases, and fails with the plainest of those that fail."""
        __tracebackhide__ = True
        declared = self._declared
        count = max(1, self.examples // one_in) * max(1, _cases_wanted() // _AT_FULL_DEPTH)
        try:
            hold_all(holds, cases_of(holds.__name__, declared, shares, count), declared, shares)
        except ContractViolation as error:
            told = str(error)
        else:
            return
        import pytest

        pytest.fail(told, pytrace=False)

    def _pruned(self, case: PruningCase, dtype: str = "float32") -> Any:
        """What the pruner makes of the case. A refusal is no failure where it is one part more or less."""
        __tracebackhide__ = True
        try:
            return self._raw(case, dtype)
        except self._declared.refusals:
            if not _at_the_edge(case):
                raise
            raise Refused from None

    def _raw(self, case: PruningCase, dtype: str) -> Any:
        __tracebackhide__ = True
        return self._call(case.config.build(dtype), case, dtype)

    def _call(self, model: Any, case: PruningCase, dtype: str = "float32") -> Any:
        __tracebackhide__ = True
        names = {name for name, _ in model.named_parameters()}
        try:
            child = self.prune(model, case.request)
        except Exception as error:
            noted(error, case, dtype)
            raise
        holding.hold_kind(child, names, case, dtype)
        return child

    def _check_refusal(self, error: Exception, case: PruningCase) -> None:
        __tracebackhide__ = True
        if not str(error).strip():
            raise violation(f"{type(error).__name__} was raised and does not say why", case)

    def _skip_if(self, condition: bool, reason: str) -> None:
        __tracebackhide__ = True
        if condition:
            import pytest

            pytest.skip(reason)


def broken_properties(contract: type[PrunerContract]) -> dict[str, str]:
    """What of the contract a pruner breaks: the name of each property that fails, without ``test_``, and the first
    line of why. For a pruner whose faults are known and are to be recorded.

        >>> broken_properties(TestMyPruner)
        {'same_request_gives_the_same_model': 'the same request gave two models: …'}

    Raises:
        UsageError: the class declares what makes no sense, or GQACHECK_CASES does: no fault of the pruner's.
        MissingDependency: something that is needed to try it is not installed.
    """
    import pytest

    declared_by(contract)
    _cases_wanted()

    found = {}
    for name in dir(contract):
        if not name.startswith("test_"):
            continue
        try:
            getattr(contract(), name)()
        except pytest.skip.Exception:
            continue
        except pytest.fail.Exception as error:
            found[name.removeprefix("test_")] = str(error).partition("\n")[0]
        except MissingDependency:
            raise
        except Exception as error:  # the pruner's own
            found[name.removeprefix("test_")] = one_line(error)
    return found


def _cases_wanted() -> int:
    __tracebackhide__ = True
    wanted = os.environ.get("GQACHECK_CASES", "").strip() or "0"
    if not wanted.isdecimal():
        raise UsageError(f"GQACHECK_CASES is {wanted[:40]!r}: it must be a whole number, such as 1000")
    return int(wanted)


def _at_the_edge(case: PruningCase) -> bool:
    """Whether some way of rounding would leave nothing of a block."""
    return any(ceil(case.request.ratio * size) >= size for size in part_sizes(case.config, case.request.parts))
