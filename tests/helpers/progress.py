"""Progress that tests can look at."""

from whisperkit_tools.progress import SilentProgress


class SeenProgress(SilentProgress):
    """Keeps what was advanced, and the notes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, float]] = []
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Keep the note."""
        self.notes.append(message)

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Keep the count."""
        self.seen.append((what, done, total))
