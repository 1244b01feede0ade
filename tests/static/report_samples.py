"""Reports made by hand: what the renderers, the claims and the runner are tested on without any file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from gqacheck.checkpoint import Checkpoint, Container, TensorInfo
from gqacheck.geometry.facts import Attention, Geometry, Layer, Measured, Mlp, Projection, Subject
from gqacheck.geometry.families import Family
from gqacheck.geometry.origins import Channels, Heads, LayerOrigin, Lineage, MlpOrigin, Origin, State
from gqacheck.geometry.outcomes import Counterfactual, Perplexity, RuntimeFacts, SegmentLoss
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Report, Verdict
from gqacheck.rules.rule import Finding, Quantity, Rule, Severity, Skipped, Violation

HEAD_DIM = 128
HIDDEN = 4096
LLAMA = Family("llama", ("llama",), ("Llama",), {}, {})
UNKNOWN = Family("generic", (), (), {}, {}, generic=True)
HOSTILE = "a\x1b[31mred\x1b[0m\nb\u202ec\x07[bold]d[/bold]:smile:"


def projection(role: str, rows: int, columns: int, index: int = 0) -> Projection:
    """One unfused projection of layer ``index``."""
    return Projection(role, f"{role}_proj", f"model.layers.{index}.{role}_proj.weight", rows, columns, "float16")


def layer(index: int, n_q: int = 32, n_kv: int = 8, width: int = 14336, *, q_rows: int | None = None) -> Layer:
    """One layer of full attention and a gated MLP."""
    rows, kv_rows = n_q * HEAD_DIM if q_rows is None else q_rows, n_kv * HEAD_DIM
    attention = Attention(
        "full",
        q=projection("q", rows, HIDDEN, index),
        k=projection("k", kv_rows, HIDDEN, index),
        v=projection("v", kv_rows, HIDDEN, index),
        o=projection("o", HIDDEN, rows, index),
        head_dim=Measured(HEAD_DIM, "config.json head_dim"),
        q_unit=HEAD_DIM,
    )
    gate, up = projection("gate", width, HIDDEN, index), projection("up", width, HIDDEN, index)
    return Layer(index, f"model.layers.{index}", attention, Mlp("gated", gate=gate, up=up))


def geometry(layers: Sequence[Layer] | None = None, family: Family = LLAMA) -> Geometry:
    """32 layers of 32:8 heads unless told otherwise."""
    layers = [layer(index) for index in range(32)] if layers is None else layers
    return Geometry(
        family,
        "config model_type",
        "",
        "model.layers",
        tuple(layers),
        hidden_size=Measured(HIDDEN, "embedding"),
        embedding=projection("embed", 128256, HIDDEN),
    )


def cut_layers(indices: Sequence[int] = range(4, 29)) -> list[Layer]:
    """32 layers, of which ``indices`` are cut to 24:6 and a narrower MLP."""
    return [layer(i, 24, 6, 10752) if i in indices else layer(i) for i in range(32)]


def checkpoint(parameters: int = 6_633_914_368, **changes: object) -> Checkpoint:
    """A whole-module torch zip of ``parameters`` parameters."""
    weight = TensorInfo("w", (parameters,), "float16", (1,), kind="parameter")
    made = Checkpoint(
        "ckpt.bin",
        ".",
        "torch-zip-module",
        Container.MODULE,
        {"w": weight},
        file_bytes=16_060_000_000,
        bytes_read=152_414,
        seconds=0.09,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def subject(layers: Sequence[Layer] | None = None, family: Family = LLAMA, **changes: object) -> Subject:
    """The subject that a rule would be handed."""
    return replace(Subject(checkpoint(), geometry(layers, family)), **changes)  # type: ignore[arg-type]


def finding(code: str = "GQA104", severity: Severity = Severity.ERROR, **changes: object) -> Finding:
    """A finding about 31:7 heads in layer 4."""
    made = Finding(
        code,
        "q-kv-indivisible",
        severity,
        "31 query heads (q_proj: 3968 rows) do not divide by 7 KV heads (k_proj: 896 rows)",
        layers=(4,),
        tensors=("model.layers.4.self_attn.q_proj.weight",),
        expected=Quantity(28, "query heads"),
        actual=Quantity(31, "query heads"),
        source="tensor shapes",
        consequence="size of tensor a (31) must match the size of tensor b (28)",
        fix="keep 28 query heads",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def perplexity(value: float = 12.34, **changes: object) -> Perplexity:
    """A perplexity on three segments."""
    segments = (
        SegmentLoss("english", 2.1, 4000, 6.5, 11.76, (2.0, 2.2)),
        SegmentLoss("chinese", 6.2, 2000, 7.0, 11.76, (6.2,)),
        SegmentLoss("code", 2.5, 2188, 5.9, 11.76, (2.5,)),
    )
    made = Perplexity(
        "smoke", "windows-512: non-overlapping", "abcd", value, 0.41, 8188, 16, True, 128256, segments, 3.0
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def runtime(*perplexities: Perplexity, **changes: object) -> RuntimeFacts:
    """What a healthy run left behind."""
    made = RuntimeFacts(perplexities or (perplexity(),), logits_seen=1000, seconds=3.0)
    return replace(made, **changes)  # type: ignore[arg-type]


CLAIMS = (
    ClaimResult("shapes", ClaimState.PASS, "", 46),
    ClaimResult("pairing", ClaimState.NOT_CHECKED, "counts cannot tell"),
    ClaimResult("runtime", ClaimState.NOT_CHECKED, "not asked for (--ppl runs the model)"),
)


def healthy(**changes: object) -> CheckpointReport:
    """Nothing to complain of, one note."""
    note = finding(
        "GQA011",
        Severity.NOTE,
        slug="pickled-module",
        message="tied to transformers 4.40.2",
        layers=(),
        tensors=(),
        consequence="",
        fix="",
        expected=None,
        actual=None,
    )
    made = CheckpointReport(
        "ckpt.bin",
        Verdict.PASS,
        0,
        checkpoint(),
        geometry(),
        claims=CLAIMS,
        findings=(note,),
        skipped=(Skipped("GQA701", "ppl", "perplexity was not asked for (--ppl)"),),
        seconds=0.09,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def broken(**changes: object) -> CheckpointReport:
    """31:7 in layer 4."""
    layers = [layer(4, 31, 7) if made.index == 4 else made for made in cut_layers()]
    claims = (ClaimResult("shapes", ClaimState.FAIL, "1 error: GQA104", 46), *CLAIMS[1:])
    return replace(
        healthy(verdict=Verdict.FAIL, exit_code=1, geometry=geometry(layers), findings=(finding(),), claims=claims),
        **changes,
    )


def unreadable(**changes: object) -> CheckpointReport:
    """A file that is not there."""
    made = CheckpointReport("gone.bin", Verdict.ERROR, 3, error="gone.bin: no such file or folder")
    return replace(made, **changes)  # type: ignore[arg-type]


def report(*checkpoints: CheckpointReport) -> Report:
    """A report over ``checkpoints``."""
    return Report(tuple(checkpoints), max(c.exit_code for c in checkpoints), "0.1.0")


def rule(code: str, *violations: Violation, slug: str = "", claim: str = "shapes", **changes: object) -> Rule:
    """A rule that yields ``violations``, error by default."""

    def check(subject: Subject) -> Iterator[Violation]:
        """Says what it was told to say.

        What it checks
            Nothing.

        Why it matters
            It does not.
        """
        yield from violations

    made = Rule(code, slug or f"rule-{code[3:]}", Severity.ERROR, claim, check)
    return replace(made, **changes)  # type: ignore[arg-type]


KEPT_KV = (0, 2, 3, 4, 6, 7)
"""The KV heads that a 32:8 layer cut to 24:6 keeps."""


def heads(role: str, parents: Iterable[int | None], n_parent: int, state: State = "exact", index: int = 0) -> Heads:
    """Blocks that are these heads of the parent, bit by bit; None is unmatched."""
    origins = tuple(Origin("unmatched") if head is None else Origin("exact", (head,)) for head in parents)
    return Heads(role, state, n_parent, origins, tensor=f"model.layers.{index}.self_attn.{role}_proj.weight")


def channels(role: str, parents: Iterable[int], n_parent: int = 14336) -> Channels:
    """Channels that are these of the parent."""
    return Channels(role, "exact", n_parent, array("i", parents), tensor=f"model.layers.0.mlp.{role}_proj.weight")


def gated(parents: Sequence[int], n_parent: int = 14336, **moved: Sequence[int]) -> MlpOrigin:
    """A gated MLP that kept these channels; ``up`` or ``down`` may be told apart."""
    made = {role: channels(role, moved.get(role, parents), n_parent) for role in ("gate", "up", "down")}
    return MlpOrigin(**made)


def layer_origin(
    index: int,
    q: Sequence[int | None],
    k: Sequence[int | None],
    *,
    parent_q: int = 32,
    parent_kv: int = 8,
    **changes: object,
) -> LayerOrigin:
    """One layer whose q heads and KV heads are these of the parent's; v goes with k and o with q unless told."""
    made = LayerOrigin(
        index,
        index,
        n_q=len(q),
        n_kv=len(k),
        parent_n_q=parent_q,
        parent_n_kv=parent_kv,
        q=heads("q", q, parent_q, index=index),
        k=heads("k", k, parent_kv, index=index),
        v=heads("v", k, parent_kv, index=index),
        o=heads("o", q, parent_q, index=index),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def own_heads(kv: Iterable[int], group: int = 4) -> list[int]:
    """The query heads that were trained with these KV heads, in their order."""
    return [head * group + n for head in kv for n in range(group)]


def whole(index: int) -> LayerOrigin:
    """A layer of 32:8 heads that was left alone."""
    return layer_origin(index, range(32), range(8))


def lineage(layers: Iterable[LayerOrigin] | None = None, **changes: object) -> Lineage:
    """A child of a parent of 32 layers; by default whole KV groups were cut in layers 4-28."""
    if layers is None:
        layers = (kept_groups(i) if 4 <= i < 29 else whole(i) for i in range(32))
    made = Lineage("child", layers=tuple(layers), n_parent_layers=32, bytes_read=812_000_000, seconds=12.4)
    return replace(made, **changes)  # type: ignore[arg-type]


def kept_groups(index: int, **changes: object) -> LayerOrigin:
    """Whole KV groups kept: nothing wrong."""
    return replace(layer_origin(index, own_heads(KEPT_KV), KEPT_KV), **changes)  # type: ignore[arg-type]


def truncated(index: int, **changes: object) -> LayerOrigin:
    """The same KV heads kept, and the first 24 query heads: 20 of them beside a KV head that is not theirs."""
    made = layer_origin(index, range(24), KEPT_KV, cause="q_proj was cut to its first 24 heads")
    return replace(made, **changes)  # type: ignore[arg-type]


def truncated_lineage() -> Lineage:
    """What the truncation leaves: layers 4-28 misread."""
    return lineage(truncated(i) if 4 <= i < 29 else whole(i) for i in range(32))


def regrouped(layers: Sequence[int] = tuple(range(4, 29)), **changes: object) -> Finding:
    """GQA601 on these layers."""
    made = finding(
        "GQA601",
        slug="head-regrouped",
        message="query head 4 came from parent head 4 (KV group 1) but now reads parent KV head 2",
        layers=tuple(layers),
        expected=None,
        actual=None,
        cause="q_proj was cut to its first 24 heads",
        consequence="nothing raises; text is garbage",
        fix="gqacheck repair ckpt.bin --base parent -o fixed/",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def misaligned(**changes: object) -> CheckpointReport:
    """The truncated child with its parent: shapes right, pairing wrong."""
    claims = (CLAIMS[0], ClaimResult("pairing", ClaimState.FAIL, "1 error: GQA601", 8), CLAIMS[2])
    made = healthy(
        verdict=Verdict.FAIL,
        exit_code=1,
        geometry=geometry(cut_layers()),
        base=CheckpointReport("parent", Verdict.PASS, 0, checkpoint(8_030_000_000), geometry()),
        findings=(regrouped(),),
        claims=claims,
        lineage=truncated_lineage(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def sound_child(**changes: object) -> CheckpointReport:
    """The child that kept whole KV groups, with its parent: nothing wrong."""
    claims = (CLAIMS[0], ClaimResult("pairing", ClaimState.PASS, "32 of 32 layers compared", 8), CLAIMS[2])
    made = healthy(
        geometry=geometry(cut_layers()),
        base=CheckpointReport("parent", Verdict.PASS, 0, checkpoint(8_030_000_000), geometry()),
        claims=claims,
        lineage=lineage(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def counterfactual(**changes: object) -> Counterfactual:
    """The 718,107 child, explained."""
    made = Counterfactual("smoke", "windows-512: non-overlapping", 14.13, 26.0, 718107.3, 8188, 16, "pairing")
    return replace(made, **changes)  # type: ignore[arg-type]
