/* Rows divided among threads, each a row of its own: with any number of threads the same rows give the same bits.
 *
 * Before this is included there must be a structure call_t whose first members are `ptrdiff_t rows, shares, next`,
 * and a function some_rows(const call_t *, ptrdiff_t begin, ptrdiff_t rows) for at most LANES rows.
 */
#pragma once

static void take_shares(void *data) {
    call_t *call = data;
    const ptrdiff_t tiles = (call->rows + LANES - 1) / LANES;
    ptrdiff_t share;
    while ((share = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED)) < call->shares) {
        for (ptrdiff_t tile = tiles * share / call->shares; tile < tiles * (share + 1) / call->shares; tile++) {
            const ptrdiff_t begin = tile * LANES;
            if (call->rows - begin >= LANES)
                some_rows(call, begin, LANES);
            else
                some_rows(call, begin, call->rows - begin);
        }
    }
}

int lanes(void) { return LANES; }

/* `team` is GOMP_parallel of the OpenMP library that PyTorch has loaded, or null. */
void run(call_t *call, void (*team)(void (*)(void *), void *, unsigned, unsigned)) {
    call->next = 0;
    if (team && call->shares > 1)
        team(take_shares, call, (unsigned)call->shares, 0);
    else
        take_shares(call);
}
