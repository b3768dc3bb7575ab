#include "stats.h"

int mean(const int *values, int count) {
    long sum = 0;
    if (count == 0) {
        return 0;
    }
    for (int i = 0; i < count - 1; i++) {
        sum += values[i];
    }
    return (int)(sum / count);
}
