"""A device that is not there: torch's PrivateUse1 backend, in Python, over CPU memory.

It stands in for vendors' devices (npu, mlu, musa, ...), which torch reaches the same way. Tensors
on it say `device(type='standin')`, their bytes cannot be had but by copying them to the CPU, and
torch refuses operators over tensors here and there: code that forgets a copy fails as on any
device. Every operator is computed by torch on the hidden CPU tensors. It copies at once; streams,
where copies are as late as they may be, are in `standin_streams`. It says nothing of speed.

Registering it concerns the whole process and cannot be undone: import it in a process of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
MEMORY_BYTES = 1 << 30
copied_bytes = 0
"""From and to the host, so far."""
VIEWS = ("view", "slice", "select", "alias", "as_strided", "empty", "unbind", "split", "expand")
"""Operators that read and write no numbers."""


class Hooks:
    """What `standin_streams` does about operators and copies.

    before_operator: called before any operator but views. defer: (source, target) of a copy that
    need not be done at once; whether it takes charge of that.
    """

    before_operator: Callable[[], None] = staticmethod(lambda: None)
    defer: Callable[[torch.Tensor, torch.Tensor], bool] = staticmethod(lambda *_: False)


class Module:
    """`torch.standin`: what shards ask of a device."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def get_device_name(_device: object = None) -> str:
        return "Stand-in"

    @staticmethod
    def mem_get_info(_device: object = None) -> tuple[int, int]:
        return MEMORY_BYTES, MEMORY_BYTES

    @staticmethod
    def memory_reserved(_device: object = None) -> int:
        return 0

    @staticmethod
    def memory_allocated(_device: object = None) -> int:
        return 0


class Held(torch.Tensor):
    """A tensor on the stand-in; `hidden` has its numbers."""

    hidden: torch.Tensor
    # Results that are not on the stand-in are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl


def put(hidden: torch.Tensor) -> torch.Tensor:
    """Tensors made here say that they are contiguous, so what is hidden has to be: other views
    become copies, and what is written to those is lost."""
    hidden = hidden.contiguous()
    held = torch._C._acc.create_empty_tensor(hidden.shape, hidden.dtype)
    held.__class__ = Held
    held.hidden = hidden
    return held


def take(value: Any) -> Any:
    """What is hidden in a tensor of the stand-in; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.device.type == NAME:
        assert isinstance(value, Held), "made in C++: give its operator an implementation here"
        return value.hidden
    return value


def run(operator: Any, *arguments: Any, **named: Any) -> Any:
    """Any operator, on the hidden tensors."""
    if operator._schema.name.removeprefix("aten::").lstrip("_").split(".")[0] not in VIEWS:
        Hooks.before_operator()
    flat, tree = pytree.tree_flatten((arguments, named))
    flat = [torch.device("cpu") if is_device(value) else take(value) for value in flat]
    given, keywords = pytree.tree_unflatten(flat, tree)
    result = operator(*given, **keywords)
    # Operators that write to an argument return that argument.
    written = {id(take(value)): value for value in pytree.tree_leaves((arguments, named))}
    return pytree.tree_map_only(
        torch.Tensor,
        lambda hidden: written[id(hidden)] if id(hidden) in written else put(hidden),
        result,
    )


def is_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def copy_from(
    source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    """Between the device and the CPU, either way, or within the device."""
    global copied_bytes  # noqa: PLW0603 - one stand-in per process
    between = source.device.type != target.device.type
    if between:
        copied_bytes += source.numel() * source.element_size()
    if (non_blocking or not between) and Hooks.defer(source, target):
        return target
    Hooks.before_operator()
    take(target).copy_(take(source))
    return target


def empty(size: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
    return put(torch.empty(size, dtype=dtype))


def empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
    return put(torch.empty_strided(size, stride, dtype=dtype))


def view_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same bytes as other numbers; torch would make that from the tensor's own storage."""
    return put(take(tensor).view(dtype))


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """What indexing gives that leaves nothing out."""
    return put(take(tensor))


def as_strided(tensor: torch.Tensor, size: Any, stride: Any, offset: Any = None) -> torch.Tensor:
    """Offsets count from where the tensor begins here, which in memory may be anywhere."""
    hidden = take(tensor)
    return put(hidden.as_strided(size, stride, hidden.storage_offset() + (offset or 0)))


def register() -> torch.device:
    _setup_privateuseone_for_python_backend(NAME, Module())
    every = torch.library.Library("_", "IMPL")
    every.fallback(run, "PrivateUse1")
    library = torch.library.Library("aten", "IMPL")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    # Before the layer that would make a view of the empty tensor.
    library.impl("view.dtype", view_dtype, "AutogradPrivateUse1")
    library.impl("alias", alias, "PrivateUse1")
    library.impl("as_strided", as_strided, "PrivateUse1")
    KEPT.extend((every, library))
    return torch.device(NAME)


KEPT: list[torch.library.Library] = []
"""What is registered lasts as long as its library."""
