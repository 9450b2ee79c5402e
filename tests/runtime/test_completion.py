"""Which computations have finished, and how far the host may run ahead of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from popxl.runtime.completion import Completion


@dataclass
class Token:
    ready: bool = False
    fails: bool = False
    waited: bool = False

    def is_ready(self) -> bool:
        return self.ready

    def block_until_ready(self) -> None:
        self.ready = self.waited = True
        if self.fails:
            raise RuntimeError("the computation failed")


def started(completion: Completion, *sizes: int) -> list[Token]:
    tokens = [Token() for _ in sizes]
    for token, size in zip(tokens, sizes, strict=True):
        completion.admit(size)
        completion.add(token, size)
    return tokens


def test_finished_is_the_last_of_which_all_before_have_finished() -> None:
    completion = Completion()
    tokens = started(completion, 1, 1, 1)
    tokens[1].ready = True
    completion.poll()
    assert (completion.dispatched, completion.finished) == (3, 0)
    tokens[0].ready = True
    completion.poll()
    assert completion.finished == 2


def test_computations_wait_for_room_oldest_first() -> None:
    tokens = started(Completion(slack_bytes=10), 6, 4, 5)
    assert [t.waited for t in tokens] == [True, False, False]


def test_one_computation_may_always_run() -> None:
    tokens = started(Completion(slack_bytes=0), 100, 100)
    assert [t.waited for t in tokens] == [True, False]


def test_without_a_limit_nothing_waits() -> None:
    assert not any(t.waited for t in started(Completion(), *[10**12] * 10))


def test_rows_count_until_the_computation_after_them_has_finished() -> None:
    completion = Completion(slack_bytes=10)
    completion.admit(8)
    completion.add_row(8)
    first, second = started(completion, 1, 2)
    assert first.waited
    assert not second.waited


def test_waiting_lets_go_of_arguments() -> None:
    calls: list[int] = []
    completion = Completion(let_go=lambda: calls.append(1))
    started(completion, 1, 1)
    completion.wait()
    assert completion.finished == 2
    assert calls
    assert not completion.wait_for_oldest()


def test_a_computation_that_failed_has_finished() -> None:
    completion = Completion()
    completion.add(Token(fails=True), 1)
    with pytest.raises(RuntimeError, match="failed"):
        completion.wait()
    assert completion.finished == 1
