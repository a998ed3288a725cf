"""Which names of kinds of traffic have a place."""

import asyncio

import pytest

from actors.traffic import (
    BATCH,
    DEFAULT,
    FORGET_S,
    MAX_KINDS,
    OTHER,
    Kinds,
    current_kind,
    kind_in,
    traffic_of,
)


def test_the_first_names_have_a_place_and_the_rest_share_one() -> None:
    kinds = Kinds()
    names = [f"tenant-{n}" for n in range(MAX_KINDS + 3)]
    found = [kinds.admit(name, 0.0) for name in names]
    assert found == names[:MAX_KINDS] + [OTHER] * 3
    assert [kinds.admit(name, 1.0) for name in (DEFAULT, BATCH, OTHER)] == [DEFAULT, BATCH, OTHER]
    assert kinds.admit(names[0], 1.0) == names[0]


def test_a_name_that_has_not_come_for_long_gives_its_place_away() -> None:
    kinds = Kinds()
    for n in range(MAX_KINDS):
        kinds.admit(f"k{n}", float(n))
    kinds.admit("k0", 100.0)
    assert kinds.admit("new", FORGET_S) == OTHER, "k1 came within the time"
    assert kinds.admit("new", FORGET_S + 1) == "new"
    assert (kinds.has("k0"), kinds.has("k1"), kinds.has("new")) == (True, False, True)


def test_given_names_are_all_there_are() -> None:
    kinds = Kinds(["chat"])
    assert [kinds.admit(n, 0.0) for n in ("chat", "code", DEFAULT)] == ["chat", OTHER, DEFAULT]


@pytest.mark.parametrize("name", ["", "a b", "Ünder", "x" * 64, "-a", "a/b", "a\n", 'a"b'])
def test_what_is_no_name_is_other(name: str) -> None:
    assert Kinds().admit(name, 0.0) == OTHER


def test_a_header_is_read_as_it_was_meant() -> None:
    assert kind_in(((b"accept", b"*/*"), (b"X-ExpertMesh-Traffic", b" Code "))) == "code"
    assert kind_in(((b"accept", b"*/*"),)) == DEFAULT


def test_tasks_that_a_request_starts_are_of_its_kind() -> None:
    async def main() -> tuple[str, str]:
        with traffic_of(((b"x-expertmesh-traffic", b"code"),)):
            task = asyncio.create_task(asyncio.sleep(0, current_kind()))
            inner = asyncio.create_task(later())
        return await task, await inner

    async def later() -> str:
        return current_kind()

    assert asyncio.run(main()) == ("code", "code")
    assert current_kind() == DEFAULT
