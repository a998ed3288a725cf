"""ASGI middleware: the application sees its own paths, whatever prefix it is mounted at."""

from starlette.types import ASGIApp, Receive, Scope, Send


class WithoutPrefix:
    """Takes the part of the path away that the server has as `root_path`.

    Everything behind it (keys, routes, metrics, engines) then compares paths as they are listed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if prefix := scope.get("root_path", ""):
            path = scope["path"].removeprefix(prefix) or "/"
            scope = {**scope, "root_path": "", "path": path}
        await self._app(scope, receive, send)
