"""Lists page by page, as OpenAI's clients ask for them: `after` an id, at most `limit`."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Select

T = TypeVar("T")


class UnknownCursorError(Exception):
    """There is nothing with the id that `after` gives."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: list[T]
    has_more: bool


@dataclass(frozen=True, slots=True)
class PageQuery:
    """after: id of the last item the client has seen."""

    after: str | None = None
    limit: int = 20
    newest_first: bool = True

    def apply(self, wanted: Select[Any], seq: Column[Any], after: int | None) -> Select[Any]:
        """One row more than the page has, which tells whether there is another page."""
        if after is not None:
            wanted = wanted.where(seq < after if self.newest_first else seq > after)
        return wanted.order_by(seq.desc() if self.newest_first else seq).limit(self.limit + 1)

    def page(self, items: list[T]) -> Page[T]:
        return Page(items[: self.limit], len(items) > self.limit)
