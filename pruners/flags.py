"""The options of ``gqaprune`` as data, LLM-Pruner's among them by their own names, and the help that teaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gqacheck.errors import UsageError
from gqacheck.flags import COLOURS, Flag, one_of, suggestion, whole_number
from pruners.strategies import DEPTH, HEADS, METHODS, PRUNER_TYPES, STRATEGIES, TAYLOR

USAGE = "gqaprune BASE OUT --strategy mlp-only|conservative|aggressive|per-layer [options]"
_MOST_LAYERS, _MOST_STEPS = 10_000, 1_000
_WIDTH = 24


def _share(name: str, text: str) -> float | tuple[float, ...]:
    """One share, or several with commas between them."""
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise UsageError(f"{name} takes a share such as 0.25, or one for each layer, not {text[:60]!r}") from None
        if not 0 <= value < 1:
            raise UsageError(f"{name} takes shares from 0 to below 1, not {part[:20]}: 0.25 cuts a quarter")
        values.append(value)
    return values[0] if len(values) == 1 else tuple(values)


def _one_share(name: str, text: str) -> float | tuple[float, ...]:
    if "," in text:
        raise UsageError(f"{name} takes one share, not {text[:60]!r}; --ratio takes one for each layer")
    return _share(name, text)


def _layers(name: str, text: str) -> int | tuple[int, ...]:
    """``4`` is how many; ``4,5`` and ``4-7`` are which."""
    if "," not in text and "-" not in text:
        return whole_number(0)(name, text)
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and int(end) < _MOST_LAYERS for end in ends):
            if not part.strip():
                continue  # a comma at the end makes a list of one
            raise UsageError(f"{name} takes how many (4), or which (20,21 or 20-23), not {text[:60]!r}")
        if int(ends[0]) > int(ends[1]):
            raise UsageError(f"{name}: {part.strip()[:40]} runs backwards")
        found |= set(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(found))


def _steps(name: str, text: str) -> int:
    steps = whole_number(1)(name, text)
    if steps > _MOST_STEPS:
        raise UsageError(f"{name} {text[:20]}: every step scores the whole model, so {_MOST_STEPS:,} is the most")
    return steps


GROUPS: tuple[tuple[str, tuple[Flag, ...]], ...] = (
    (
        "what to cut",
        (
            Flag("--strategy", "NAME", ", ".join(STRATEGIES), one_of(*STRATEGIES)),
            Flag("--ratio", "R[,R...]", "the share of heads and channels; a list has one for each layer", _share),
            Flag("--parameters", "R", "the share of all parameters to remove; the ratio is found by it", _one_share),
            Flag("--heads", "HOW", "groups: whole KV groups (default); queries: as many of each group; both",
                 one_of(*HEADS)),
            Flag("--scope", "HOW", "uniform (default), global or isomorphic: where scores are compared",
                 one_of("uniform", "global", "isomorphic")),
            Flag("--drop-layers", "N|LIST", "also drop the N layers that change least, or these (20,21 or 20-23)",
                 _layers),
            Flag("--channels-multiple", "N", "keep a multiple of N channels (tensor cores: 64)", whole_number(1)),
            Flag("--plan", "FILE", "carry out a plan that was saved; nothing is scored"),
        ),
    ),
    (
        "what is worth keeping",
        (
            Flag(
                "--method",
                "NAME",
                "taylor (default), wanda, fluctuation, least-squares, l2, l1, random",
                one_of(*METHODS),
            ),
            Flag("--calibration", "TEXT", "smoke (built in, default), a text file, or a datasets id"),
            Flag("--seq-len", "N", "tokens of one calibration example; default 128", whole_number(2)),
            Flag("--reconstruct", "", "afterwards fit o_proj and down_proj to the parent's outputs (least squares)"),
        ),
    ),
    (
        "what is written and checked",
        (
            Flag("--dry-run", "", "print the plan, layer by layer, and write nothing"),
            Flag("--save-plan", "FILE", "write the plan there too (with --dry-run: nothing else)"),
            Flag("--like", "llm-pruner", "also OUT/llm-pruner/pytorch_model.bin, for tools that insist on torch.load",
                 one_of("llm-pruner")),
            Flag("--dtype", "DTYPE", "float32, bfloat16, float16 for all weights; default: as BASE is stored",
                 one_of("float32", "bfloat16", "float16", "float64", "auto")),
            Flag("--ppl", "[CORPUS]", "perplexity of BASE and OUT on smoke or a text file; repeatable", repeat=True),
            Flag("--force", "", "keep OUT although the check finds errors (exit code 1 all the same)"),
            Flag("--color", "WHEN", "auto, always or never", one_of(*COLOURS)),
        ),
    ),
    (
        "LLM-Pruner's names, meaning the same",
        (
            Flag("--base_model", "BASE", "the same as the word BASE"),
            Flag("--save_ckpt_log_name", "NAME", "OUT is prune_log/NAME"),
            Flag("--pruning_ratio", "R", "the same as --ratio", _one_share),
            Flag("--pruner_type", "NAME", "l2 (default with --block_wise), l1, random, taylor", one_of(*PRUNER_TYPES)),
            Flag("--taylor", "KIND", "param_first (default), param_second, param_mix, vectorize", one_of(*TAYLOR)),
            Flag("--block_wise", "", "cut heads and channels; without --strategy LLM-Pruner's defaults: .5 of 3-31"),
            Flag("--layer_wise", "", "keep the first --layer N layers"),
            Flag("--layer", "N", "default 12", whole_number(1)),
            Flag("--channel_wise", "", "refused: it cuts the hidden size"),
            Flag("--block_attention_layer_start", "N", "first layer whose attention is cut", whole_number(0)),
            Flag("--block_attention_layer_end", "N", "the layer behind the last; start = end: none", whole_number(0)),
            Flag("--block_mlp_layer_start", "N", "first layer whose MLP is cut", whole_number(0)),
            Flag("--block_mlp_layer_end", "N", "the layer behind the last; beyond the model: clamped, and said",
                 whole_number(0)),
            Flag("--iterative_steps", "N", "cut in N steps and score anew before each; default 1", _steps),
            Flag("--grouping_strategy", "sum", "only sum: a group is worth what its heads are",
                 one_of("sum", "mean", "max", "prod", "first", "gm")),
            Flag("--global_pruning", "", "--scope global, by the scores as they are and not per parameter"),
            Flag("--num_examples", "N", "calibration examples; default 10", whole_number(1)),
            Flag("--max_seq_len", "N", "window of the perplexity tests", whole_number(16)),
            Flag("--device", "DEVICE", "for scoring and cutting: cpu (default), cuda, cuda:1"),
            Flag("--eval_device", "DEVICE", "for the perplexity tests; default: as --device"),
            Flag("--test_before_train", "", "perplexity of BASE"),
            Flag("--test_after_train", "", "perplexity of OUT"),
            Flag("--save_model", "", "accepted: OUT is always written, except with --dry-run"),
            Flag("--seed", "N", "default 42", whole_number(0)),
        ),
    ),
)  # fmt: skip
FLAGS: Mapping[str, Flag] = {flag.name: flag for _, flags in GROUPS for flag in flags}
_SPELLINGS = {name.replace("_", "-"): flag for name, flag in FLAGS.items()}

_EXAMPLES = """\
examples
  gqaprune parent/ pruned/ --strategy conservative                   a folder that transformers loads, checked
  gqaprune parent/ pruned/ --strategy mlp-only --reconstruct --ppl   the safest cut, refitted, and what it costs
  gqaprune parent/ --strategy aggressive --dry-run                   what would go, layer by layer
  gqaprune parent/ pruned/ --strategy per-layer --ratio 0,.1,.3,.1   a share for each layer
  gqaprune parent/ pruned/ --plan pruning_plan.json                  the same cut again
  gqaprune --base_model parent/ --save_ckpt_log_name q25 --pruning_ratio 0.25 --block_wise \\
      --block_mlp_layer_start 4 --block_mlp_layer_end 28 --block_attention_layer_start 28 \\
      --block_attention_layer_end 28 --pruner_type taylor --test_after_train --save_model
                                                                 LLM-Pruner's command line as it is
"""
_END = """\
Every KV head that stays keeps its own query heads: a plan can say nothing else. OUT is written beside its place,
loaded by plain transformers, checked as `gqacheck OUT --base BASE` does it, and gets its name only when that finds no
error. It holds safetensors, the true config, the tokenizer and pruning_plan.json; where layers differ in size also one
modelling file (trust_remote_code=True). BASE is anything that gqacheck reads, and is never touched.

exit codes
  0  written, and clean
  1  cut, but the check found errors: nothing was written, except with --force
  2  the command line makes no sense
  3  could not: BASE is unreadable or broken already, a text too short, no space left
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """One command line, taken apart: ``words`` no option took; ``given`` holds only the options that were said."""

    words: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    help: bool = False


def parse(argv: Sequence[str]) -> Arguments:
    """What ``argv`` (without the program's name) asks for. Dashes and underscores in names are the same.

    Raises:
        UsageError: there is no such option, or its value makes no sense.
    """
    words: list[str] = []
    given: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if word in ("-h", "--help"):
            return Arguments(help=True)
        if word == "-" or not word.startswith("-"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = _SPELLINGS.get(name.replace("_", "-"))
        if flag is None:
            hint = suggestion(name, list(FLAGS), 0.7) or "; see gqaprune --help"
            raise UsageError(f"there is no option {name[:60]!r}{hint}")
        if not flag.metavar:
            if equals:
                raise UsageError(f"{flag.name} takes no value")
            given[flag.key] = True
            continue
        if not equals:
            if flag.name == "--ppl" and (not rest or not _is_corpus(rest[0], words)):
                value = "smoke"
            elif rest:
                value = rest.pop(0)
        _store(given, flag, value)
    return Arguments(tuple(words), given)


def _store(given: dict[str, Any], flag: Flag, text: str) -> None:
    if not text:
        raise UsageError(f"{flag.name} needs a value: {flag.name} {flag.metavar}")
    value = flag.convert(flag.name, text)
    key = flag.key
    if flag.repeat:
        given[key] = (*given.get(key, ()), value)
    elif key in given and given[key] != value:
        raise UsageError(f"{flag.name} was given twice, with different values")
    else:
        given[key] = value


def _is_corpus(word: str, before: Sequence[str]) -> bool:
    """Whether the word after ``--ppl`` is its text: ``smoke``, a file, or any word once BASE and OUT are named."""
    import os

    name = word.partition("@")[0]
    if word.startswith("-"):
        return False
    return name == "smoke" or os.path.isfile(word) or os.path.isfile(name) or len(before) >= 2


def help_text() -> str:
    """The help: examples, the strategies in numbers, the options."""
    parts = [
        f"usage: {USAGE}\n",
        "Cuts a grouped-query-attention model so that it cannot come apart: whole KV groups, or equally many query\n"
        "heads of each, MLP channels, layers.\n",
        _EXAMPLES,
        _strategies(),
        *(f"{title}\n{_rows(flags)}" for title, flags in GROUPS),
        f"  {'-h, --help':{_WIDTH}} this text\n",
        _END,
    ]
    return "\n".join(parts).replace("\n\n  -h", "\n  -h")


def _strategies() -> str:
    lines = [
        f"strategies, in layers of {DEPTH} (on another depth each end is scaled by n/{DEPTH} and rounded, halves up)"
    ]
    for strategy in STRATEGIES.values():
        if strategy.expected:
            lines.append(f"  {strategy.name:13} {strategy.ratio:.2f} of {_where(strategy.mlp, strategy.attention)}")
            lines.append(f"  {'':13} {strategy.summary}; expect {strategy.expected}")
        else:
            lines.append(f"  {strategy.name:13} {strategy.summary}")
            lines.append(f"  {'':13} --ratio R is the mean (default {strategy.ratio}); --ratio A,B,C,... says each")
    lines.append("  what to expect is their authors' word, for Qwen2.5-7B (7:1) before fine-tuning: measure with --ppl")
    return "\n".join(lines) + "\n"


def _where(mlp: tuple[int, int], attention: tuple[int, int]) -> str:
    heads = "no attention" if attention[0] == attention[1] else f"attention {attention[0]}-{attention[1]}"
    return f"MLP {mlp[0]}-{mlp[1]}, {heads}"


def _rows(flags: Sequence[Flag]) -> str:
    rows = []
    for flag in flags:
        head = f"{flag.name} {flag.metavar}".rstrip()
        rows.append(f"  {head:{_WIDTH}} {flag.help}\n")
        if len(head) > _WIDTH:
            rows[-1] = f"  {head}\n  {'':{_WIDTH}} {flag.help}\n"
    return "".join(rows)
