"""Speed side by side: the order of rounds, what is left out, and what one loads. No figure is asserted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_models
import torch

from gqacheck.errors import ReadError
from gqacheck.runtime import speed
from gqacheck.runtime.running import Running
from gqacheck.runtime.speed import Entrant, measure_speed


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass is enough where no figure counts."""
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)


class Garage:
    """Entrants that say when they are loaded and gone."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ran: list[str] = []
        self.prompts: set[tuple[int, ...]] = set()

    def entrant(self, name: str, *, nbytes: int = 100, fails: Exception | None = None, breaks: bool = False) -> Entrant:
        @contextmanager
        def load() -> Iterator[Running]:
            if fails is not None:
                raise fails
            self.events.append(f"+{name}")
            torch.rand(1)  # as building a model does
            model = tiny_models.tiny_model("llama")
            model.eval()

            def before(model: Any, words: Any, kwargs: Any) -> None:
                if breaks:
                    raise RuntimeError("size mismatch\nat layer 3")
                if kwargs["input_ids"].shape[1] > 1:
                    self.prompts.add(tuple(kwargs["input_ids"][0].tolist()))
                if not self.ran or self.ran[-1] != name:
                    self.ran.append(name)

            model.register_forward_pre_hook(before, with_kwargs=True)
            try:
                yield Running(model, None, "cpu", "float32")
            finally:
                self.events.append(f"-{name}")

        return Entrant(name, load, nbytes)


def measure(*entrants: Entrant, **options: Any) -> Any:
    """A short race."""
    return measure_speed(list(entrants), **{"rounds": 3, "prompt": 8, "steps": 4, "room": 10**9, **options})


def test_speed_of_models_that_fit_loads_each_once_and_takes_turns() -> None:
    garage = Garage()
    race = measure(garage.entrant("a"), garage.entrant("b"), garage.entrant("c"))
    assert garage.events == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert [len(race.timings[name].prefill) for name in "abc"] == [3, 3, 3]
    assert [len(race.timings[name].reference_decode) for name in "abc"] == [0, 3, 3]
    assert all(value > 0 for name in "abc" for value in race.timings[name].decode)
    assert garage.ran[:3] == ["c", "a", "b"]  # the warm-up, then each round begins with the next
    assert {garage.ran[0], garage.ran[3]} == {"c", "a"}
    assert "all in memory together" in race.settings
    assert "8 random tokens read, then 4 written" in race.settings


def test_speed_where_memory_is_short_keeps_the_reference_and_one_other() -> None:
    garage = Garage()
    race = measure(garage.entrant("a"), garage.entrant("b"), garage.entrant("c"), room=250)
    assert garage.events == ["+a", "+b", "-b", "+c", "-c", "-a"]
    assert [len(race.timings[name].prefill) for name in "abc"] == [3, 3, 3]
    assert race.timings["b"].reference_prefill == race.timings["a"].prefill
    assert race.timings["c"].reference_prefill != race.timings["a"].prefill
    assert "one other at a time" in race.settings


def test_speed_of_a_model_that_cannot_be_loaded_or_run_leaves_the_others() -> None:
    garage = Garage()
    race = measure(
        garage.entrant("a"), garage.entrant("b", fails=ReadError("b is cut off")), garage.entrant("c", breaks=True)
    )
    assert race.timings["b"].problem == "b is cut off"
    assert race.timings["c"].problem == "its forward pass raises RuntimeError: size mismatch"
    assert len(race.timings["a"].prefill) == 3
    assert not race.timings["c"].prefill
    assert garage.events[-1] == "-a"


def test_speed_without_a_reference_still_shows_tokens_per_second() -> None:
    garage = Garage()
    race = measure(garage.entrant("a", fails=MemoryError()), garage.entrant("b"))
    assert race.timings["a"].problem == "it needs more memory than this machine has"
    assert len(race.timings["b"].prefill) == 3
    assert race.timings["b"].reference_prefill == []


def test_speed_reads_no_more_positions_than_the_shortest_model_has() -> None:
    garage = Garage()
    race = measure(garage.entrant("a"), garage.entrant("b"), prompt=10**4, steps=10**4, rounds=1)
    positions = tiny_models.tiny_model("llama").config.max_position_embeddings
    read, written = (int(part.split()[0]) for part in race.settings.removeprefix("batch 1, ").split(", then ")[:2])
    assert read + written == positions


def test_speed_reads_the_same_ids_with_every_model_and_every_time() -> None:
    seen = set()
    for number in range(2):
        torch.manual_seed(number)
        garage = Garage()
        measure(garage.entrant("a"), garage.entrant("b"), rounds=1)
        seen |= garage.prompts
    assert len(seen) == 1


def test_speed_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure(Garage().entrant("a"), Garage().entrant("b"), rounds=1)
    assert torch.equal(torch.rand(1), expected)
