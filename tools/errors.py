"""What a tool raises when it cannot go on: one line for a person, and the exit code."""

__all__ = [
    "HeldError",
    "NoRoomError",
    "ReplayDiffersError",
    "ToolError",
    "UsageError",
    "VenueFailedError",
]


class ToolError(Exception):
    """The tool failed for a reason that the text says."""

    exit_code = 1


class UsageError(ToolError):
    """What the person asked for cannot be done: a wrong value, a missing file."""

    exit_code = 64


class HeldError(ToolError):
    """Another process has the folder."""

    exit_code = 69


class NoRoomError(ToolError):
    """A disk is too full for what is to be written."""

    exit_code = 74


class ReplayDiffersError(ToolError):
    """The engine of this build does not do with a journal what the journal says it did."""

    exit_code = 65


class VenueFailedError(ToolError):
    """A child process ended as it should not have; its exit code becomes ours."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
