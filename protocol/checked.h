/* Assertions of the compiled modules. The checked build (-DBRIER_CHECKED=1) runs them: one that
 * fails prints where and what, and aborts the process. In the released build they are nothing.
 * BRIER_PREFETCH, in both, asks for memory that is needed soon; any address will do. */

#ifndef BRIER_CHECKED_H
#define BRIER_CHECKED_H

#ifdef BRIER_CHECKED

#include <stdio.h>
#include <stdlib.h>

#define BRIER_BUILD "checked"

static inline void brier_assertion_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}

#define BRIER_ASSERT(condition) \
    ((condition) ? (void)0 : brier_assertion_failed(__FILE__, __LINE__, #condition))

#else

#define BRIER_BUILD "released"
#define BRIER_ASSERT(condition) ((void)0)

#endif

#define BRIER_PREFETCH(address) __builtin_prefetch(address)

#endif
