"""Planted bugs of what is around a venue: clients, feed, consumers, replica, and the operator's
archive and repair. See `canaries.py`."""

from itertools import islice
from typing import TYPE_CHECKING, Any

import journal.damage
from exchange.client.connector import Connector
from exchange.client.consumer import Consumer
from exchange.client.inbox import Inbox
from exchange.client.tickets import Requests
from exchange.feed.run import Feed
from exchange.node.connection import Connection
from exchange.node.sequencer import Sequencer
from exchange.replica.replica import Replica
from exchange.replica.snapshotter import NotMadeError, Snapshotter, head_of
from journal import EventRecord, JournalFailed, SnapshotHead, hash_image
from journal.segment import SegmentReader
from journal.walk import Walk
from protocol.books import Book
from tests.simulation import archiving

if TYPE_CHECKING:
    from tests.simulation.canaries import Patches

__all__ = [
    "client_ignores_the_epoch",
    "client_sends_again",
    "consumer_forgets",
    "consumer_is_silent",
    "feed_skips_a_record",
    "mixed_up_answers",
    "no_archive",
    "no_second_snapshot",
    "no_snapshots",
    "old_connection_goes_on",
    "repair_cuts_a_record_more",
    "repair_in_the_same_term",
    "snapshot_one_record_late",
    "told_a_batch_early",
]


def mixed_up_answers(patches: "Patches") -> None:
    """The client gives each answer to the newest request."""

    def make(reported: Any) -> Any:
        def to_the_newest(requests: Any, report: Any) -> None:
            number, tickets = getattr(report, "number", 0), requests._open
            if number in tickets:
                last = next(reversed(tickets))
                tickets[number], tickets[last] = tickets[last], tickets[number]
            reported(requests, report)

        return to_the_newest

    patches.set(Requests, "reported", make)


def no_snapshots(patches: "Patches") -> None:
    """The replica thinks that the disk is full."""

    def make(check: Any) -> Any:
        def refuse(maker: Any, size: int) -> None:
            raise NotMadeError("no room, says the canary")

        return refuse

    patches.set(Snapshotter, "_check_room", make)


def no_second_snapshot(patches: "Patches") -> None:
    """The replica thinks so as soon as it has made one."""

    def make(check: Any) -> Any:
        def refuse(maker: Any, size: int) -> None:
            if maker.made_count:
                raise NotMadeError("no room, says the canary")
            check(maker, size)

        return refuse

    patches.set(Snapshotter, "_check_room", make)


def no_archive(patches: "Patches") -> None:
    """Archiving finds damage everywhere."""

    def make(move: Any) -> Any:
        def refuse(*arguments: Any) -> int:
            raise JournalFailed("archive", "says the canary")

        return refuse

    patches.set(archiving, "archive_segments", make)


def client_sends_again(patches: "Patches") -> None:
    """The client takes a request without an answer for one that was lost, and sends it anew."""

    def make(established: Any) -> Any:
        def established_again(inbox: Any, *arguments: Any) -> None:
            tickets = [*inbox.requests._open.values()]
            established(inbox, *arguments)
            for ticket in tickets:
                inbox.images.ask.__self__.link.send(ticket.command)

        return established_again

    patches.set(Inbox, "established", make)


def client_ignores_the_epoch(patches: "Patches") -> None:
    """The client asks for the report behind its last one, whatever has become of that."""

    def make(make_log_on: Any) -> Any:
        def make_in_any_epoch(connector: Any, hello: Any) -> Any:
            connector._epoch = hello.epoch
            return make_log_on(connector, hello)

        return make_in_any_epoch

    patches.set(Connector, "make_log_on", make)


def feed_skips_a_record(patches: "Patches") -> None:
    """Now and then the feed leaves out a record."""

    def make(take: Any) -> Any:
        def take_most(feed: Any, record: EventRecord) -> None:
            if record.header.first_sequence % 50:
                take(feed, record)

        return take_most

    patches.set(Feed, "take", make)


def consumer_forgets(patches: "Patches") -> None:
    """Now and then a consumer leaves an order in its book that was deleted."""

    def make(delete: Any) -> Any:
        def delete_most(book: Any, order_id: int) -> None:
            if order_id % 40:
                delete(book, order_id)

        return delete_most

    patches.set(Book, "delete", make)


def snapshot_one_record_late(patches: "Patches") -> None:
    """A snapshot names the last record, and its image is that of the one before."""

    def make_apply(apply: Any) -> Any:
        def apply_and_keep(replica: Any, record: Any) -> None:
            replica.stale_image = replica.engine.image()
            apply(replica, record)

        return apply_and_keep

    async def write(maker: Any, replica: Any, at: Any, execute: Any) -> SnapshotHead:
        image = replica.stale_image
        head = head_of(replica, at, replica.engine.image())
        head = head._replace(image_size=len(image), image_hash=hash_image(image))
        written = await execute(lambda: maker._folder.write(head, image))
        await execute(written.publish)
        return head

    patches.set(Replica, "apply", make_apply)
    patches.set(Snapshotter, "_write_and_prove", lambda _: write)


def repair_in_the_same_term(patches: "Patches") -> None:
    """A repair that loses durable records leaves the term as it is."""
    patches.set(journal.damage, "_choose_term", lambda _: lambda *arguments: None)


def repair_cuts_a_record_more(patches: "Patches") -> None:
    """Where a segment is damaged, the last good record goes, too."""

    def make(read_records: Any) -> Any:
        def read_less(walk: Any, file: Any, segment: Any) -> Any:
            head = walk._found.head
            reader, healed = read_records(walk, file, segment)
            if not walk._judge(file, segment, reader) or not reader.record_count:
                return reader, healed
            shorter = SegmentReader(file, segment, head)
            for _ in islice(shorter.records(), reader.record_count - 1):
                pass
            shorter.defect = reader.defect
            return shorter, healed

        return read_less

    patches.set(Walk, "_read_records", make)


def old_connection_goes_on(patches: "Patches") -> None:
    """A connection whose session somebody else has taken goes on taking frames."""
    patches.set(Connection, "give_way", lambda _: lambda connection: None)


def told_a_batch_early(patches: "Patches") -> None:
    """What waits for everything that is applied waits for the next durable record only."""

    def make(after_durable: Any) -> Any:
        def after_next(sequencer: Any, action: Any) -> None:
            if sequencer.engine.sequence <= sequencer.durable_sequence:
                after_durable(sequencer, action)
            else:
                sequencer._after.append((sequencer.durable_sequence + 1, action))

        return after_next

    patches.set(Sequencer, "after_durable", make)


def consumer_is_silent(patches: "Patches") -> None:
    """A consumer keeps its books, and tells its user nothing."""
    patches.set(Consumer, "_tell", lambda _: lambda *arguments: None)
