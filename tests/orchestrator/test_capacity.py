"""Shards of one host share its memory; limits and devices' own memory are nobody else's."""

from orchestrator.capacity import ShardMemory, memory_of_shards


def host(node: str, free_bytes: int, limit_bytes: int | None = None) -> ShardMemory:
    return ShardMemory(node, True, free_bytes, limit_bytes)


def test_shards_of_one_host_divide_what_is_free() -> None:
    # One that was replaced measured what the other had left free.
    assert memory_of_shards([host("a", 1000), host("a", 600), host("b", 700)]) == [500, 500, 700]


def test_what_others_were_promised_is_not_free() -> None:
    shards = [host("a", 1000, 400), host("a", 1000), host("a", 1000), host("b", 1000)]
    assert memory_of_shards(shards) == [400, 300, 300, 1000]
    assert memory_of_shards([host("a", 100, 400), host("a", 100)]) == [400, 0]


def test_a_device_has_its_memory_to_itself() -> None:
    gpu = ShardMemory("a", False, 80, None)
    assert memory_of_shards([gpu, gpu, host("a", 1000)]) == [80, 80, 1000]
    assert memory_of_shards([ShardMemory("a", False, 80, 50)]) == [50]
