#ifndef STATS_H
#define STATS_H

/* Arithmetic mean of count values, rounded towards zero; 0 if there are none. */
int mean(const int *values, int count);

#endif
