"""Clean, torn or damaged, against an independent restatement of the rule.

`expected_outcome` below knows only how the intact journal looked, sector by sector, and applies the
rule of FORMAT.md, section 7, to what the damage left of it. Every case runs the real start-up path
on a folder in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from random import Random

import pytest

from journal import Journal, JournalDamaged, run_inline
from journal.memory import MemoryStorage
from journal.reader import verify
from journal.record import HEADER_SIZE, RECORD_SIZE_MAX

SEED = 20
SEGMENT = "00000000000000000001-00000000000000000001.segment"
SEGMENT_SIZE = 32 * 512


def payloads() -> list[bytes]:
    """Payloads of records of 1 to 6 sectors and 1 again: noise with runs of zeros in it."""
    dice = Random(SEED)
    made = []
    for sector_count in (1, 2, 3, 4, 5, 6, 1):
        size = sector_count * 512 - HEADER_SIZE - dice.randrange(0, 300)
        payload = bytearray(dice.randbytes(size))
        for start in range(0, size, 512):
            # A run that leaves at least two bits in each sector, and that may end a sector.
            at = start + dice.randrange(100, 200)
            payload[at : min(at + 250, size - 1)] = bytes(min(at + 250, size - 1) - at)
        made.append(bytes(payload))
    return made


def write_journal(storage: MemoryStorage, contents: list[bytes], segment_size: int) -> None:
    """A journal of these payloads whose process ended without a clean stop."""
    journal = Journal.open(storage, segment_size=segment_size, prepare=run_inline)
    assert list(journal.records()) == []
    journal.start(term=1)
    for content in contents:
        journal.write(journal.build(content, 1, 0, 1))
        journal.sync()
    journal.close()


@dataclass(frozen=True)
class Whole:
    """An intact journal in one segment; `extents` are first and last sector of each record."""

    files: dict[str, bytes]
    contents: list[bytes]
    extents: list[tuple[int, int]]

    @property
    def image(self) -> bytes:
        return self.files[SEGMENT]

    def is_intact(self, damaged: bytes, index: int) -> bool:
        start, end = self.extents[index]
        return damaged[start * 512 : end * 512] == self.image[start * 512 : end * 512]

    def has_header(self, damaged: bytes, index: int) -> bool:
        start = self.extents[index][0] * 512
        return damaged[start : start + HEADER_SIZE] == self.image[start : start + HEADER_SIZE]


def make_whole(contents: list[bytes], segment_size: int = SEGMENT_SIZE) -> Whole:
    storage = MemoryStorage()
    write_journal(storage, contents, segment_size)
    files = {name: content for name, content in storage.images().items() if "prepared" not in name}
    extents = []
    sector = 1
    for content in contents:
        sector_count = -(-(HEADER_SIZE + len(content)) // 512)
        extents.append((sector, sector + sector_count))
        sector += sector_count
    return Whole(files, contents, extents)


def expected_outcome(whole: Whole, damaged: bytes) -> tuple[str, int]:
    """The rule again: clean, torn or refused, and how many records are left."""
    good = 0
    while good < len(whole.extents) and whole.is_intact(damaged, good):
        good += 1
    end = whole.extents[good - 1][1] if good else 1
    sectors = [damaged[start : start + 512] for start in range(0, len(damaged), 512)]
    used = {index for index in range(end, len(sectors)) if any(sectors[index])}
    if not used:
        return "clean", good
    if good == len(whole.extents):
        first_of_next, end_of_next = end, None
    else:
        first_of_next, end_of_next = whole.extents[good]
    if first_of_next in used:
        if end_of_next is None or not whole.has_header(damaged, good):
            return "refused", 0
        is_gap = any(index not in used for index in range(first_of_next, end_of_next))
        return ("torn", good) if is_gap and max(used) < end_of_next else ("refused", 0)
    if max(used) >= end + RECORD_SIZE_MAX // 512:
        return "refused", 0
    if any(whole.has_header(damaged, index) for index in range(good, len(whole.extents))):
        return "refused", 0
    return "torn", good


def actual_outcome(whole: Whole, damaged: bytes, segment_size: int) -> tuple[str, int]:
    """The same of the real journal; checks that it changes what it may and nothing else."""
    files = {**whole.files, SEGMENT: damaged}
    storage = MemoryStorage(files)
    journal = Journal.open(storage, segment_size=segment_size, prepare=run_inline)
    try:
        contents = [bytes(record.payload) for record in journal.records()]
    except JournalDamaged as error:
        refused_file = error.file
    else:
        refused_file = ""
    if refused_file:
        assert refused_file == SEGMENT
        assert storage.images() == files, "a refusal changes no file"
        return "refused", 0
    assert storage.images() == files, "reading changes no file"
    assert contents == whole.contents[: len(contents)]
    journal.start(term=1)
    journal.close()
    after = storage.images()
    end = (whole.extents[len(contents) - 1][1] if contents else 1) * 512
    assert after[SEGMENT] == damaged[:end] + bytes(len(damaged) - end)
    copies = [name for name in after if name.startswith("torn-")]
    if journal.repaired is None:
        assert not copies
        assert damaged == after[SEGMENT]
        return "clean", len(contents)
    [copy] = copies
    assert copy == f"torn-{1:020}-{end:020}-1.bin"
    assert copy in journal.repaired
    assert after[copy].ljust(len(damaged) - end, b"\0") == damaged[end:]
    return "torn", len(contents)


def check(whole: Whole, damaged: bytes, segment_size: int = SEGMENT_SIZE) -> str:
    expected = expected_outcome(whole, damaged)
    assert actual_outcome(whole, damaged, segment_size) == expected
    return expected[0]


def test_zero_from_every_offset() -> None:
    whole = make_whole(payloads())
    outcomes: Counter[str] = Counter()
    for offset in range(512, whole.extents[-1][1] * 512 + 1):
        damaged = whole.image[:offset].ljust(SEGMENT_SIZE, b"\0")
        outcomes[check(whole, damaged)] += 1
    assert set(outcomes) == {"clean", "torn", "refused"}
    # By hand: cut in its first sector a longer record is torn, a record of one sector damaged.
    assert check(whole, whole.image[: 512 * 2 + 200].ljust(SEGMENT_SIZE, b"\0")) == "torn"
    assert check(whole, whole.image[: 512 + 200].ljust(SEGMENT_SIZE, b"\0")) == "refused"


def zero_sectors(image: bytes, chosen: list[int]) -> bytes:
    damaged = bytearray(image)
    for sector in chosen:
        damaged[sector * 512 : sector * 512 + 512] = bytes(512)
    return bytes(damaged)


@pytest.mark.parametrize("sector_count", [1, 2, 3, 4, 5, 6])
def test_every_subset_of_the_sectors_of_the_last_record(sector_count: int) -> None:
    whole = make_whole([payloads()[2], payloads()[sector_count - 1]])
    start, end = whole.extents[-1]
    outcomes: Counter[str] = Counter()
    for keep in product((False, True), repeat=end - start):
        chosen = [start + index for index, is_kept in enumerate(keep) if not is_kept]
        outcomes[check(whole, zero_sectors(whole.image, chosen))] += 1
    # By hand: all there or nothing there is clean, any other subset is torn.
    assert outcomes == Counter(clean=2, torn=2**sector_count - 2)


def test_every_subset_of_the_sectors_of_two_records() -> None:
    outcomes: Counter[str] = Counter()
    for first, second in ((1, 1), (1, 3), (2, 2), (3, 1), (4, 4)):
        contents = [payloads()[2], payloads()[first - 1], payloads()[second - 1]]
        whole = make_whole(contents)
        start, end = whole.extents[1][0], whole.extents[2][1]
        for keep in product((False, True), repeat=end - start):
            chosen = [start + index for index, is_kept in enumerate(keep) if not is_kept]
            outcomes[check(whole, zero_sectors(whole.image, chosen))] += 1
    assert set(outcomes) == {"clean", "torn", "refused"}


def test_random_sectors_zero_anywhere() -> None:
    print("seed", SEED)
    dice = Random(SEED)
    whole = make_whole(payloads())
    sectors = range(1, whole.extents[-1][1])
    outcomes: Counter[str] = Counter()
    for _ in range(1000):
        tail = [sector for sector in sectors if sector > dice.choice(sectors)]
        chosen = dice.sample(sectors, dice.randrange(3)) + (tail if dice.random() < 0.7 else [])
        outcomes[check(whole, zero_sectors(whole.image, chosen))] += 1
    assert set(outcomes) == {"clean", "torn", "refused"}


@pytest.mark.parametrize(
    ("offset", "outcome"),
    [
        (0, "refused"),  # the first sector after the end is used
        (511, "refused"),
        (512, "torn"),
        (RECORD_SIZE_MAX - 1, "torn"),
        (RECORD_SIZE_MAX, "refused"),  # further than one record reaches
        (RECORD_SIZE_MAX + 512, "refused"),
        (2 * RECORD_SIZE_MAX + 100, "refused"),
    ],
)
def test_a_stray_byte_behind_the_end(offset: int, outcome: str) -> None:
    segment_size = 3 * RECORD_SIZE_MAX
    whole = make_whole(payloads()[:2], segment_size)
    damaged = bytearray(whole.image)
    damaged[whole.extents[-1][1] * 512 + offset] = 0x80
    assert check(whole, bytes(damaged), segment_size) == outcome


def test_a_header_behind_a_gap_is_refused_at_every_place() -> None:
    """Also when the record behind it is torn: a durable record must have been before it."""
    segment_size = 2 * RECORD_SIZE_MAX
    whole = make_whole(payloads()[:2], segment_size)
    end = whole.extents[-1][1] * 512
    header = whole.image[512 : 512 + HEADER_SIZE]
    for sector in (1, 2, 100, 511):
        damaged = bytearray(whole.image)
        start = end + sector * 512
        damaged[start : start + HEADER_SIZE] = header
        assert actual_outcome(whole, bytes(damaged), segment_size) == ("refused", 0)
        damaged[start] ^= 1
        assert actual_outcome(whole, bytes(damaged), segment_size) == ("torn", 2)


def test_a_record_that_would_pass_the_segment_is_refused() -> None:
    """Else torn by the rule: header valid and chained, a zero sector, nothing behind it."""
    large = make_whole([payloads()[0], payloads()[5]]).image
    assert large[1024:1032] == b"BRIERREC"
    size = 1024 + 4 * 512  # The second record needs six sectors.
    storage = MemoryStorage()
    write_journal(storage, payloads()[:1], size)
    files = storage.images()
    files[SEGMENT] = files[SEGMENT][:1024] + large[1024 : size - 512] + bytes(512)
    with pytest.raises(JournalDamaged, match="record passes the end of the segment"):
        verify(MemoryStorage(files))


def three_segments() -> dict[str, bytes]:
    """Sealed, full but not sealed yet, and open; no marker. Records of 1 to 3 sectors."""
    storage = MemoryStorage()
    dice = Random(SEED)
    sizes = [400, 900, 300, 1300, 300, 800]
    contents = [dice.randbytes(size) for size in sizes]
    journal = Journal.open(storage, segment_size=3072, prepare=run_inline)
    assert list(journal.records()) == []
    journal.start(term=1)
    manifests = []
    for content in contents:
        journal.write(journal.build(content, 1, 0, 1))
        journal.sync()
        manifests.append(storage.images()["manifest"])
    journal.close()
    files = {name: image for name, image in storage.images().items() if "prepared" not in name}
    names = [name for name in files if name.endswith(".segment")]
    assert len(names) == 3
    # Back to the manifest of the moment before the second segment was sealed.
    files["manifest"] = next(text for text in manifests if len(text.splitlines()) == 3)
    assert verify(MemoryStorage(files)).sealed_count == 1
    return files


def test_every_bit_of_every_file() -> None:
    """Each flip is refused, or is torn in the zeros behind the last record and loses nothing."""
    files = three_segments()
    before = verify(MemoryStorage(files))
    last = max(name for name in files if name.endswith(".segment"))
    end = max(index for index, byte in enumerate(files[last]) if byte) + 1
    assert end % 512 == 0
    assert end <= len(files[last]) - 1024, "there are zeros behind the last record"
    torn_count = 0
    for name, content in files.items():
        for bit in range(len(content) * 8):
            bad = bytearray(content)
            bad[bit // 8] ^= 1 << bit % 8
            storage = MemoryStorage({**files, name: bytes(bad)})
            if name == last and bit // 8 >= end + 512:
                summary = verify(storage)
                assert summary.end.startswith("torn")
                assert summary.head_hash == before.head_hash
                torn_count += 1
                continue
            with pytest.raises(JournalDamaged):
                verify(storage)
    assert torn_count == (len(files[last]) - end - 512) * 8


def test_every_length_of_every_file_is_refused() -> None:
    files = three_segments()
    for name, content in files.items():
        lengths = {0, 1, 83, 84, 85, len(content) - 1, len(content) + 1, len(content) + 512}
        for boundary in range(0, len(content), 512):
            lengths |= {boundary - 1, boundary, boundary + 1}
        if name == "manifest":
            lengths = set(range(len(content)))
        for length in sorted(lengths - {-1, len(content)}):
            changed = {**files, name: content[:length].ljust(length, b"\0")}
            storage = MemoryStorage(changed)
            with pytest.raises(JournalDamaged):
                list(Journal.open(storage, prepare=run_inline).records())
            assert storage.images() == changed


def test_every_missing_file_is_refused() -> None:
    """The last of the three needs the floor: the one before it is not in the manifest yet."""
    files = three_segments()
    last = max(name for name in files if name.endswith(".segment"))
    for name in files:
        rest = {other: content for other, content in files.items() if other != name}
        storage = MemoryStorage(rest)
        floor = 6 if name == last else 0
        with pytest.raises(JournalDamaged):
            list(Journal.open(storage, floor_sequence=floor, prepare=run_inline).records())
        assert storage.images() == rest


def test_a_missing_last_segment_is_refused_once_the_one_before_is_sealed() -> None:
    storage = MemoryStorage()
    write_journal(storage, payloads(), segment_size=8 * 512)
    files = storage.images()
    names = sorted(name for name in files if name.endswith(".segment"))
    assert len(names) > 2
    del files[names[-1]]
    with pytest.raises(JournalDamaged, match="segments do not fit a manifest"):
        verify(MemoryStorage(files))


def test_a_segment_before_the_last_is_never_torn() -> None:
    """Torn by the rule if it were the last; with a segment behind it the write was durable."""
    files = three_segments()
    names = sorted(name for name in files if name.endswith(".segment"))
    second = bytearray(files[names[1]])
    second[1024:1536] = bytes(512)  # the middle sector of its first record
    second[2048:2560] = bytes(512)  # all of its second record
    storage = MemoryStorage({**files, names[1]: bytes(second)})
    with pytest.raises(JournalDamaged, match="sectors never written, and a segment follows"):
        verify(storage)


def test_a_cut_that_crashes_is_cut_again() -> None:
    """A torn end stays torn, or gets clean, while its zeros reach the disk one by one."""
    whole = make_whole(payloads()[:6])
    start, end = whole.extents[-1]
    damaged = zero_sectors(whole.image, [start + 2])
    for keep in product((False, True), repeat=end - start):
        chosen = [start + index for index, is_kept in enumerate(keep) if not is_kept]
        assert check(whole, zero_sectors(damaged, chosen)) in ("torn", "clean")


def test_copies_of_two_cuts_at_one_place_are_both_kept() -> None:
    whole = make_whole(payloads()[:2])
    damaged = zero_sectors(whole.image, [whole.extents[-1][1] - 1])
    copy = f"torn-{1:020}-{whole.extents[-1][0] * 512:020}-1.bin"
    files = {**whole.files, SEGMENT: damaged, copy: b"of an earlier start"}
    storage = MemoryStorage(files)
    journal = Journal.open(storage, prepare=run_inline, segment_size=SEGMENT_SIZE)
    assert len(list(journal.records())) == 1
    journal.start(term=1)
    journal.close()
    after = storage.images()
    assert after[copy] == b"of an earlier start"
    assert after[copy.replace("-1.bin", "-2.bin")] == damaged[1024:1536]
