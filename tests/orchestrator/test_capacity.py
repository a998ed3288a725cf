"""Shards of one host share its memory; limits and devices' own memory are nobody else's."""

from orchestrator.capacity import ShardMemory, memory_of_shards


def host(node: str, free_bytes: int, limit_bytes: int | None = None) -> ShardMemory:
    return ShardMemory(node, True, free_bytes, limit_bytes)


def test_shards_of_one_host_divide_what_is_free() -> None:
    # Measured one after another: the least is what there is.
    assert memory_of_shards([host("a", 1000), host("a", 900), host("b", 700)]) == [450, 450, 700]


def test_what_others_were_promised_is_not_free() -> None:
    shards = [host("a", 1000, 400), host("a", 1000), host("a", 1000), host("b", 1000)]
    assert memory_of_shards(shards) == [400, 300, 300, 1000]
    assert memory_of_shards([host("a", 100, 400), host("a", 100)]) == [400, 0]


def test_a_device_has_its_memory_to_itself() -> None:
    gpu = ShardMemory("a", False, 80, None)
    assert memory_of_shards([gpu, gpu, host("a", 1000)]) == [80, 80, 1000]
    assert memory_of_shards([ShardMemory("a", False, 80, 50)]) == [50]
