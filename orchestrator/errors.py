"""The one exception for what the person at the keyboard can put right."""


class UserError(Exception):
    """Bad input or an unfit machine, told in one line.

    message: what is wrong, naming the thing (a file, a key, a port).
    fix:     what to do about it, as an imperative; empty when the message already says so.

    The command line prints `error: message: fix` on stderr and exits with code 2.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.message}: {self.fix}" if self.fix else self.message
        return " ".join(text.split())

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        # The default would rebuild from args alone and lose the fix on the way between processes.
        return type(self), (self.message, self.fix)
