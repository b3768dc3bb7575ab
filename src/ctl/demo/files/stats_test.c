#include "stats.h"

#include <stdio.h>

static int failures = 0;

static void expect(const char *what, int got, int wanted) {
    if (got != wanted) {
        printf("FAIL %s: got %d, wanted %d\n", what, got, wanted);
        failures++;
    } else {
        printf("ok   %s\n", what);
    }
}

int main(void) {
    int few[] = {2, 4, 6};
    int one[] = {7};
    expect("mean of three", mean(few, 3), 4);
    expect("mean of one", mean(one, 1), 7);
    expect("mean of none", mean(one, 0), 0);
    return failures == 0 ? 0 : 1;
}
