# What the generator uses of the system: byte order, clock, epoll, sockets, many datagrams at once.

cdef extern from "<endian.h>":
    uint64_t htobe64(uint64_t value) noexcept nogil

cdef extern from "<time.h>":
    cdef struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* time) noexcept nogil

cdef extern from "<sys/epoll.h>":
    cdef union epoll_data:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CLOEXEC
    int epoll_create1(int flags) noexcept nogil
    int epoll_ctl(int poll, int operation, int descriptor, epoll_event* event) noexcept nogil
    int epoll_wait(int poll, epoll_event* events, int count, int timeout_ms) noexcept nogil

cdef extern from "<sys/uio.h>":
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>":
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    Py_ssize_t recv(int descriptor, void* data, size_t size, int flags) noexcept nogil
    Py_ssize_t send(int descriptor, const void* data, size_t size, int flags) noexcept nogil
    int recvmmsg(int descriptor, mmsghdr* messages, unsigned int count, int flags,
                 timespec* timeout) noexcept nogil

cdef extern from "<unistd.h>":
    int close(int descriptor) noexcept nogil


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec
