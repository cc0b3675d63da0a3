"""What becomes of files while nobody looks, and whether the snapshots are what they say."""

from random import Random

from exchange.core.engine import Engine
from journal import JournalError, SnapshotFolder
from journal.memory import MemoryStorage
from tests.simulation.disks import Disks, Violation
from tests.simulation.truth import Truth

__all__ = ["Rot"]


class Rot:
    """Spoils files of a venue that does not run, and knows which."""

    def __init__(self, disks: Disks, truth: Truth, dice: Random) -> None:
        self.journal: tuple[str, int] | None = None
        """File and bit of the journal that is spoiled now."""
        self.journal_count = 0
        self.spoiled_count = 0
        """How often something of the event log or the snapshots was spoiled."""
        self.compared: set[tuple[int, bytes]] = set()
        """Snapshots that were compared, by sequence and hash."""
        self._spoiled: set[str] = set()
        """Names of snapshots that were spoiled."""
        self._disks = disks
        self._truth = truth
        self._dice = dice

    def has_files(self, folder: str, suffix: str = "") -> bool:
        """Whether there is something to spoil."""
        return any(name.endswith(suffix) for name in self._disks.folder(folder).names())

    def flip_in_journal(self) -> None:
        """One bit of what the journal has made durable."""
        folder, watch, dice = self._disks.folder("commands"), self._disks.watch, self._dice
        names = [name for name in folder.names() if name.endswith(".segment")]
        names = [name for name in names if int(name[:20]) <= watch.segment]
        name = dice.choice((dice.choice(names), names[-1]))
        is_last = int(name[:20]) == watch.segment
        size = watch.end if is_last else folder.open(name).size()
        self.journal = (name, dice.randrange(8 * size))
        self.journal_count += 1
        folder.flip(*self.journal)

    def put_right(self) -> None:
        """Somebody has a good copy of the journal."""
        if self.journal is not None:
            folder, (name, bit) = self._disks.folder("commands"), self.journal
            self.journal = None
            if name in folder.names():  # Else it was archived; that looks at its hash.
                folder.flip(name, bit)

    def spoil_events(self) -> bool:
        """What may become of a log that is not synced, and of one that somebody tidied up."""
        folder, dice = self._disks.folder("events"), self._dice
        names = folder.names()
        if not names:
            return False  # The power loss has taken them.
        name = dice.choice(names)
        has_index = name.endswith(".events") and name.replace(".events", ".index") in names
        match dice.randrange(4):
            case 0:
                self._disks.wipe("events")
            case 1:
                folder.remove(name)
                folder.sync_folder()
            case 2 if not has_index:
                self._cut(folder, name)
            case 3 if not has_index:
                self._flip(folder, name)
            case _:
                return False  # What has an index is trusted, unless its size differs.
        self.spoiled_count += 1
        return True

    def spoil_snapshots(self) -> bool:
        """One of them is damaged, cut or gone."""
        folder, dice = self._disks.folder("snapshots"), self._dice
        names = [name for name in folder.names() if name.endswith(".snapshot")]
        if not names:
            return False
        name = dice.choice(names)
        self._spoiled.add(name)
        self.spoiled_count += 1
        match dice.randrange(3):
            case 0:
                folder.remove(name)
                folder.sync_folder()
            case 1:
                self._cut(folder, name)
            case _:
                self._flip(folder, name)
        return True

    def spoil_checkpoint(self) -> bool:
        """What the feed has saved is damaged or cut."""
        folder = self._disks.folder("feed")
        names = [name for name in folder.names() if folder.open(name).size()]
        if not names:
            return False
        name = self._dice.choice(names)
        self._dice.choice((self._cut, self._flip))(folder, name)
        return True

    def _cut(self, folder: MemoryStorage, name: str) -> None:
        content = folder.images()[name]
        folder.put(name, content[: self._dice.randrange(len(content) + 1)])

    def _flip(self, folder: MemoryStorage, name: str) -> None:
        size = folder.open(name).size()
        if size:
            folder.flip(name, self._dice.randrange(8 * size))

    def check_snapshots(self) -> None:
        """Every snapshot that is there has the state of its sequence, byte for byte."""
        folder = SnapshotFolder(self._disks.folder("snapshots"))
        heads = sorted(folder.heads(), key=lambda head: head.sequence)
        for name, why in folder.bad:
            if name not in self._spoiled:
                raise Violation(f"snapshot {name} is bad: {why}")
        engine, records = Engine(), iter(self._truth.records)
        for head in heads:
            if (head.sequence, head.image_hash) in self.compared:
                continue
            while engine.sequence < head.sequence:
                record = next(records, None)
                if record is None:
                    raise Violation(f"a snapshot of {head.sequence}, which is not durable")
                engine.replay(record.first_sequence, record.command_count, record.payload)
            try:
                image = folder.read(head)
            except JournalError:
                if head.name in self._spoiled:
                    continue
                raise
            if engine.sequence != head.sequence or engine.image() != image:
                raise Violation(f"the snapshot of sequence {head.sequence} has another state")
            self.compared.add((head.sequence, head.image_hash))
