"""Tokens per second of several models, measured side by side: all that one machine does to them it does to every one.

In every round each model is timed once, in an order that turns, so that a machine that slows down or is busy for a
while hits all alike; what is compared is the ratio to the reference inside a round. Random ids are read, the same for
all, and the most likely token is appended: no text, no tokenizer, no EOS. Prefill is the forward pass over the prompt
with an empty cache, decode is one token after the other on the cache that it left, batch size 1.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch

from gqacheck.errors import GqacheckError, reason_of
from gqacheck.runtime.configure import CannotRun, one_line
from gqacheck.runtime.quiet import quiet_and_offline
from gqacheck.runtime.running import Progress, Running, device_of

ROUNDS = 5
PROMPT = 256
STEPS = 32
LEAST_SECONDS = 0.05
"""What one timing lasts at least: a tiny model is run several times over for it."""
ROOM = 1.2
"""Memory of a model by its weights."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One model. ``open`` loads it; nbytes: memory of its weights in the dtype that is run, to see what fits."""

    name: str
    open: Callable[[], AbstractContextManager[Running]]
    nbytes: int


@dataclass(slots=True)
class Timings:
    """Tokens per second of one model in each round, and the reference's in the same rounds; or why it was not run."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    reference_prefill: list[float] = field(default_factory=list)
    reference_decode: list[float] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Race:
    """What ``measure_speed`` returns. settings: the sentence that makes it repeatable."""

    timings: Mapping[str, Timings]
    settings: str


def measure_speed(
    entrants: Sequence[Entrant],
    *,
    device: str = "cpu",
    room: int | None = None,
    rounds: int = ROUNDS,
    prompt: int = PROMPT,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Race:
    """Tokens per second of every entrant, in rounds beside the first one, which is the reference.

    Each is loaded once and all are in memory together. Where ``room`` (bytes that are free, by default what the
    machine says) is too small for that, the reference stays and the others come one after the other. What cannot be
    loaded or run is a problem of its own timings; without the reference there is nothing to hold the others against.
    """
    names = [entrant.name for entrant in entrants]
    timings = {name: Timings() for name in names}
    room = free_memory(device) if room is None else room
    together = room is None or sum(entrant.nbytes for entrant in entrants) * ROOM <= room
    groups = [list(entrants)] if together else [[entrants[0], other] for other in entrants[1:]]
    race = _Rounds(rounds, prompt, steps, seed, device, progress, len(groups))
    with quiet_and_offline(), torch.random.fork_rng(devices=[]), ExitStack() as stack:
        first = _load(entrants[0], stack, timings)
        for group in groups:
            with ExitStack() as others:
                models = {entrants[0].name: first}
                models |= {each.name: _load(each, others, timings) for each in group if each.name not in models}
                race.run({name: model for name, model in models.items() if model is not None}, names[0], timings)
                models.clear()
            gc.collect()
        del first
    way = "all in memory together" if together else "the reference in memory with one other at a time"
    where = "" if device == "cpu" else f" on {device}"
    threads = ""
    if device == "cpu":
        n = torch.get_num_threads()
        threads = f", {n} thread{'s' if n > 1 else ''}"
    return Race(
        timings,
        f"batch 1, {race.read} random tokens read, then {race.written} written{where}{threads}; median of {rounds} "
        f"rounds in turns with {names[0]}, {way}; ratios round by round (least-most)",
    )


def _load(entrant: Entrant, stack: ExitStack, timings: Mapping[str, Timings]) -> Any:
    try:
        return stack.enter_context(entrant.open()).model
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        timings[entrant.name].problem = reason_of(error)
    except torch.OutOfMemoryError:
        timings[entrant.name].problem = "there is not enough memory for it: try --dtype bfloat16"
    return None


@dataclass(slots=True)
class _Rounds:
    rounds: int
    prompt: int
    steps: int
    seed: int
    device: str
    progress: Progress | None
    groups: int
    read: int = 0
    written: int = 0
    done: int = 0

    def run(self, models: dict[str, Any], reference: str, timings: Mapping[str, Timings]) -> None:
        """Times the models of one group; one that fails is out, and the others go on."""
        if not models:
            return
        ids = self._ids(list(models.values()))
        alone = {name: Timings() for name in models}
        for number in range(-1, self.rounds):  # round -1 warms up
            order = list(models)
            turn = number % len(order)
            for name in order[turn:] + order[:turn]:
                try:
                    prefill, decode = self._time(models[name], ids)
                except Exception as error:  # a forward pass raises whatever the stack raises
                    timings[name].problem = _failure(error)
                    del models[name]
                    continue
                if number >= 0:
                    alone[name].prefill.append(prefill)
                    alone[name].decode.append(decode)
            self.done += 1
            if self.progress is not None:
                self.progress("speed", self.done, self.groups * (self.rounds + 1))
        self._keep(models, reference, alone, timings)

    def _keep(
        self, models: Mapping[str, Any], reference: str, alone: Mapping[str, Timings], timings: Mapping[str, Timings]
    ) -> None:
        ours = alone[reference] if reference in models else Timings()
        for name in models:
            found = timings[name]
            if name == reference and found.prefill:
                continue  # in pairs the reference runs more than once; its first rounds are shown
            found.prefill, found.decode = alone[name].prefill, alone[name].decode
            if name != reference:
                found.reference_prefill, found.reference_decode = ours.prefill, ours.decode

    def _ids(self, models: Sequence[Any]) -> torch.Tensor:
        """The same random ids for all: of the smallest vocabulary, as long as the shortest model reads."""
        vocab = min(int(model.get_input_embeddings().weight.shape[0]) for model in models)
        stated = [getattr(model.config, "max_position_embeddings", None) for model in models]
        positions = min((n for n in stated if isinstance(n, int) and n > 1), default=self.prompt + self.steps)
        self.written = max(1, min(self.steps, positions // 4))
        self.read = max(1, min(self.prompt, positions - self.written))
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, vocab, (1, self.read), generator=generator)

    @torch.inference_mode()
    def _time(self, model: Any, ids: torch.Tensor) -> tuple[float, float]:
        """Tokens per second of the prefill and of the decoding."""
        ids = ids.to(device_of(model))
        last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
        reading = writing = 0.0
        repeats = 0
        while not repeats or min(reading, writing) < LEAST_SECONDS:
            started = self._now()
            out = model(input_ids=ids, use_cache=True, return_dict=True, **last)
            token = out.logits[:, -1:].argmax(-1)
            middle = self._now()
            cache = getattr(out, "past_key_values", None)
            if cache is None:
                raise CannotRun("it hands back no cache, so decoding is not what a user of it would see")
            for _ in range(self.written):
                out = model(input_ids=token, past_key_values=cache, use_cache=True, return_dict=True)
                cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            ended = self._now()
            reading, writing, repeats = reading + middle - started, writing + ended - middle, repeats + 1
        return repeats * self.read / reading, repeats * self.written / writing

    def _now(self) -> float:
        kind = torch.device(self.device).type
        if kind == "cuda":
            torch.cuda.synchronize(self.device)
        elif kind == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


def _failure(error: Exception) -> str:
    if isinstance(error, (GqacheckError, MemoryError)):
        return reason_of(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory for it: try --dtype bfloat16"
    return f"its forward pass raises {type(error).__name__}: {one_line(error)}"


def free_memory(device: str) -> int | None:
    """Bytes that models may take on ``device``; None where nobody says."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            said = dict(line.split(":", 1) for line in stream if ":" in line)
        return int(said["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
