/* Five measurements of a line, as programs make them that nobody may touch: some fail, some hang, some die. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static unsigned long long state;

static double uniform(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((double)(state >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(void) { return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()); }

int main(int count, char **words) {
    if (count != 4) {
        fprintf(stderr, "usage: linear OFFSET SLOPE SEED\n");
        return 2;
    }
    double offset = atof(words[1]), slope = atof(words[2]);
    state = strtoull(words[3], NULL, 10) * 2654435769ULL + 88172645463325252ULL;
    for (int i = 0; i < 20; i++) uniform();
    double luck = uniform();
    if (luck < 0.02) {
        fprintf(stderr, "step 7:\n no convergence\n");
        return 3;
    }
    if (luck < 0.0205)
        for (;;) sleep(1);
    if (luck < 0.0225) abort();
    for (int i = 0; i < 5; i++) printf("%.9g\n", offset + slope * (i - 1.0) + 0.5 * normal());
    return 0;
}
