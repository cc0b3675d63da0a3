"""Types of the compiled reader of records; see chain.pyx."""

from journal.record import Buffer, Head, Record

_HeaderFields = tuple[bytes, int, int, int, int, int, int, bytes, int, int, int]

def unpack_header(content: Buffer, offset: int) -> _HeaderFields | int: ...
def unpack_chained_header(
    content: Buffer, previous: Head, is_first_of_segment: bool
) -> _HeaderFields | int: ...
def unpack_record(
    content: memoryview,
    previous: Head,
    segment_number: int,
    offset: int,
    is_first: bool,
    kinds: tuple[type[Head], type[Record]],
) -> Record | int: ...
