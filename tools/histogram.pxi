# Histograms of durations: buckets that are fine where durations are short, and never too many.

cdef enum:
    # One power of two of nanoseconds has 256 buckets: an error below 0.4 %.
    BUCKET_BITS = 8
    DURATION_BITS = 40           # longer ones, 18 minutes, count as that
    BUCKET_COUNT = (DURATION_BITS - BUCKET_BITS + 1) << BUCKET_BITS


cdef inline int bucket_of(int64_t duration_ns) noexcept nogil:
    """Durations up to 511 have a bucket each, then every power of two has 256."""
    cdef int shift = 0
    if duration_ns >> DURATION_BITS:
        return BUCKET_COUNT - 1
    while duration_ns >> shift >= 2 << BUCKET_BITS:
        shift += 1
    return (shift << BUCKET_BITS) + <int>(duration_ns >> shift)


cdef inline int64_t bucket_top_ns(int bucket) noexcept nogil:
    """The longest duration of a bucket."""
    cdef int shift = (bucket >> BUCKET_BITS) - 1
    if shift <= 0:
        return bucket
    return ((<int64_t>bucket - (shift << BUCKET_BITS) + 1) << shift) - 1


def rounded_ns(int64_t duration_ns):
    """What the histogram makes of a duration."""
    return bucket_top_ns(bucket_of(duration_ns))
