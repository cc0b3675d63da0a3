// Preloaded into a venue: a bad disk under its journal's segments, from the moment that a file
// exists whose path is $BRIER_DISK_PATH followed by a dot and what goes wrong: `fdatasync` and
// `pwrite` fail with EIO, with `slow` every fdatasync takes SLOW_NS longer, with `held` it waits
// until that file is gone, and makes one with `waits` first; with `short` a write is done by a
// third.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define SLOW_NS 5000000

static int is_bad(int descriptor, const char *how) {
    const char *prefix = getenv("BRIER_DISK_PATH");
    const char *suffix = ".segment";
    char path[4096], link[64];
    if (prefix == NULL) {
        return 0;
    }
    snprintf(path, sizeof path, "%s.%s", prefix, how);
    if (access(path, F_OK) != 0) {
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path);
    size_t suffix_size = strlen(suffix);
    return size > (ssize_t)suffix_size
        && memcmp(path + size - suffix_size, suffix, suffix_size) == 0;
}

static void say_that_it_waits(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.waits", getenv("BRIER_DISK_PATH"));
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    if (file >= 0) {
        close(file);
    }
}

int fdatasync(int descriptor) {
    struct timespec pause = {0, SLOW_NS};
    if (is_bad(descriptor, "slow")) {
        nanosleep(&pause, NULL);
    }
    while (is_bad(descriptor, "held")) {
        say_that_it_waits();
        nanosleep(&pause, NULL);
    }
    if (is_bad(descriptor, "fdatasync")) {
        errno = EIO;
        return -1;
    }
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return next(descriptor);
}

typedef ssize_t (*Write)(int, const void *, size_t, off_t);

static ssize_t write_at(const char *name, int descriptor, const void *data, size_t size, off_t at) {
    if (is_bad(descriptor, "pwrite")) {
        errno = EIO;
        return -1;
    }
    if (is_bad(descriptor, "short") && size > 1) {
        size -= size * 2 / 3;
    }
    Write next = (Write)dlsym(RTLD_NEXT, name);
    return next(descriptor, data, size, at);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
    return write_at("pwrite", descriptor, data, size, at);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t at) {
    return write_at("pwrite64", descriptor, data, size, at);
}
